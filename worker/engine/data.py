"""Data sets as tensors in memory."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.contract.datasets import DATASETS, DatasetInfo, DatasetName
from app.contract.network import DataShape
from worker.engine.digits import load_digits
from worker.engine.errors import DatasetUnavailable
from worker.engine.idx import BrokenIdx, read_images, read_labels
from worker.engine.seeding import generator

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_TORCHVISION_CLASSES = {
    DatasetName.MNIST: "MNIST",
    DatasetName.FASHION_MNIST: "FashionMNIST",
    DatasetName.KMNIST: "KMNIST",
}
_KEPT = 2
"""Data sets that a store keeps in memory: 60,000 images are 188 MB."""

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
"""Training images [N, 28, 28], training labels [N], test images, test labels."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images are float32 in [0, 1], shaped [N, channels, height, width]; labels are int64, shaped [N]."""

    name: DatasetName
    shape: DataShape
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    sha256: str

    @classmethod
    def of(cls, name: DatasetName, arrays: Arrays) -> Dataset:
        train_images, train_labels, test_images, test_labels = arrays
        return cls(
            name=name,
            shape=DATASETS[name].shape,
            train_images=_scaled(train_images),
            train_labels=torch.from_numpy(train_labels.astype(np.int64)),
            test_images=_scaled(test_images),
            test_labels=torch.from_numpy(test_labels.astype(np.int64)),
            sha256=digest(arrays),
        )

    def split(self, validation_images: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Images and labels to train on, and those to validate with: the same for every seed, since a recipe is chosen
        by them, and at random, since a data set may lie sorted by class."""
        if not validation_images:
            return (self.train_images, self.train_labels), (self.train_images[:0], self.train_labels[:0])
        order = torch.randperm(len(self.train_labels), generator=generator(0, "validation"))
        chosen, rest = (part.sort().values for part in (order[:validation_images], order[validation_images:]))
        images, labels = self.train_images, self.train_labels
        return (images[rest], labels[rest]), (images[chosen], labels[chosen])


def digest(arrays: Arrays) -> str:
    """SHA-256 of the content, not of any file.

    For training images, training labels, test images and test labels, in this order: the number of images as eight
    bytes, big-endian, then the bytes themselves, row by row.
    """
    content = hashlib.sha256()
    for array in arrays:
        content.update(len(array).to_bytes(8, "big"))
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def _scaled(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images.astype(np.float32)).div_(255).unsqueeze(1)


class DatasetStore:
    """Finds data sets by name below `root`, in torchvision's layout, and keeps the last few in memory."""

    def __init__(self, root: Path | None, *, download: bool = False) -> None:
        self._root = root
        self._download = download
        self._kept: OrderedDict[DatasetName, Dataset] = OrderedDict()

    def load(self, name: DatasetName) -> Dataset:
        """Raises `DatasetUnavailable` when files are missing or broken."""
        if name not in self._kept:
            self._kept[name] = Dataset.of(name, self._arrays(DATASETS[name]))
        self._kept.move_to_end(name)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[name]

    def _arrays(self, info: DatasetInfo) -> Arrays:
        if info.folder is None:
            return load_digits(info.train_images, info.test_images)
        if self._root is None:
            raise DatasetUnavailable(
                f"{info.name} needs files and this worker has no data directory: set one that holds {info.folder}/ "
                f"with {_expected()}, or choose the data set 'digits'"
            )
        folder = self._root / info.folder
        try:
            if self._download and _missing(folder):
                _fetch(info, self._root)
            return _read(info, folder)
        except OSError as error:
            raise DatasetUnavailable(
                f"{info.name}: {folder} cannot be read ({error.strerror}): let the worker's user read it and "
                f"{_expected()} in it"
            ) from error


def _read(info: DatasetInfo, folder: Path) -> Arrays:
    if missing := _missing(folder):
        raise DatasetUnavailable(
            f"{info.name}: {folder} lacks {', '.join(missing)}: put {_expected()} there, or allow downloads"
        )
    paths = [_found(folder, stem) for stem in _FILES]
    try:
        return (
            read_images(paths[0], info.train_images, info.height),
            read_labels(paths[1], info.train_images, info.classes),
            read_images(paths[2], info.test_images, info.height),
            read_labels(paths[3], info.test_images, info.classes),
        )
    except BrokenIdx as error:
        raise DatasetUnavailable(
            f"{info.name}: broken file in {folder}: {error}; put intact files there: {_expected()}"
        ) from error


def _expected() -> str:
    return ", ".join(_FILES) + " (each plain, or gzipped with .gz at the end of its name)"


def _missing(folder: Path) -> list[str]:
    return [stem for stem in _FILES if not _found(folder, stem).is_file()]


def _found(folder: Path, stem: str) -> Path:
    plain = folder / stem
    return plain if plain.is_file() else folder / f"{stem}.gz"


def _fetch(info: DatasetInfo, root: Path) -> None:
    """Download beside the data and move complete files into place, so that no other worker reads half a file."""
    assert info.folder is not None
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as scratch:
            _torchvision_class(info.name)(scratch, download=True)
            folder = root / info.folder
            folder.mkdir(parents=True, exist_ok=True)
            for stem in _FILES:
                fetched = _found(Path(scratch) / info.folder, stem)
                os.replace(fetched, folder / fetched.name)  # noqa: PTH105 - the atomic one, by its plain name
    except Exception as error:  # torchvision, its mirrors and the network fail in more ways than can be listed
        raise DatasetUnavailable(
            f"{info.name} could not be downloaded ({error}): try again later, or put {_expected()} "
            f"into {root / info.folder}"
        ) from error


def _torchvision_class(name: DatasetName) -> Callable[..., object]:
    # Imported here: it takes seconds, and a worker that has its files never needs it.
    import torchvision.datasets

    constructor: Callable[..., object] = getattr(torchvision.datasets, _TORCHVISION_CLASSES[name])
    return constructor
