"""The data sets that the service knows by name: their sizes, for validation and estimates, and where files belong."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class DatasetName(StrEnum):
    DIGITS = "digits"
    MNIST = "mnist"
    FASHION_MNIST = "fashion-mnist"
    KMNIST = "kmnist"


class DatasetInfo(BaseModel):
    """A data set of grey images, 28×28 pixels, scaled to [0, 1], in ten classes."""

    model_config = ConfigDict(frozen=True)

    name: DatasetName
    description: str
    train_images: int
    test_images: int
    classes: int = 10
    height: int = 28
    width: int = 28
    folder: str | None
    """Below the data directory, in torchvision's layout; None when the data ships with a dependency."""


_IDX = {"train_images": 60_000, "test_images": 10_000}

DATASETS: dict[DatasetName, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            name=DatasetName.DIGITS,
            description="UCI handwritten digits as shipped by scikit-learn, enlarged from 8×8 to 28×28; always there.",
            train_images=1_437,
            test_images=360,
            folder=None,
        ),
        DatasetInfo(name=DatasetName.MNIST, description="MNIST handwritten digits.", folder="MNIST/raw", **_IDX),
        DatasetInfo(
            name=DatasetName.FASHION_MNIST,
            description="Fashion-MNIST: ten kinds of clothing.",
            folder="FashionMNIST/raw",
            **_IDX,
        ),
        DatasetInfo(
            name=DatasetName.KMNIST, description="Kuzushiji-MNIST: ten cursive hiragana.", folder="KMNIST/raw", **_IDX
        ),
    )
}
