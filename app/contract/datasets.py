"""The data sets that the service knows by name: their sizes, for validation and estimates, and where files belong."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeAlias

from app.contract.network import DataShape

MAX_VALUES = 1 << 28
"""Pixels times channels of all images of an uploaded data set; a GB, as float32. CIFAR-10 has 184 million."""

MAX_IMAGES = 1_000_000

DatasetFormat: TypeAlias = Literal["idx", "npz", "images"]
IdxPart: TypeAlias = Literal["train_images", "train_labels", "test_images", "test_labels"]
DatasetPart: TypeAlias = Literal["file", IdxPart]
"""The files of an upload: four, or one that holds all."""


class DatasetName(StrEnum):
    DIGITS = "digits"
    MNIST = "mnist"
    FASHION_MNIST = "fashion-mnist"
    KMNIST = "kmnist"


class DatasetFacts(DataShape):
    """What there is to know of a data set ahead of its images."""

    train_images: int
    test_images: int

    @property
    def shape(self) -> DataShape:
        return DataShape(channels=self.channels, height=self.height, width=self.width, classes=self.classes)


class DatasetInfo(DatasetFacts):
    """A data set that needs no upload: grey images of 28×28 pixels in ten classes."""

    name: DatasetName
    description: str
    folder: str | None
    """Below the data directory, in torchvision's layout; None when the data ships with a dependency."""


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
        DatasetInfo(
            name=DatasetName.MNIST,
            description="MNIST handwritten digits.",
            folder="MNIST/raw",
            train_images=60_000,
            test_images=10_000,
        ),
        DatasetInfo(
            name=DatasetName.FASHION_MNIST,
            description="Fashion-MNIST: ten kinds of clothing.",
            folder="FashionMNIST/raw",
            train_images=60_000,
            test_images=10_000,
        ),
        DatasetInfo(
            name=DatasetName.KMNIST,
            description="Kuzushiji-MNIST: ten cursive hiragana.",
            folder="KMNIST/raw",
            train_images=60_000,
            test_images=10_000,
        ),
    )
}
