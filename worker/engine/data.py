"""Data sets as tensors in memory."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from app.contract.datasets import DATASETS, DatasetInfo, DatasetName
from app.contract.network import DataShape
from worker.engine import dataset_file
from worker.engine.dataset_file import Arrays, Bytes, facts_of
from worker.engine.digits import load_digits
from worker.engine.errors import DatasetUnavailable
from worker.engine.export import file_sha256
from worker.engine.idx import BrokenIdx, read_images, read_labels
from worker.engine.seeding import generator

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_TORCHVISION_CLASSES = {
    DatasetName.MNIST: "MNIST",
    DatasetName.FASHION_MNIST: "FashionMNIST",
    DatasetName.KMNIST: "KMNIST",
}
KEPT_BYTES = 128 << 20
"""Of images that a store keeps in memory beside those asked for last: MNIST has 55 million."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images are bytes, 0 to 255, shaped [N, channels, height, width]; labels are int64, shaped [N]."""

    name: str
    shape: DataShape
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    sha256: str

    @classmethod
    def of(cls, name: str, shape: DataShape, arrays: Arrays) -> Dataset:
        train_images, train_labels, test_images, test_labels = arrays
        return cls(
            name=name,
            shape=shape,
            train_images=_images(train_images),
            train_labels=torch.from_numpy(train_labels.astype(np.int64)),
            test_images=_images(test_images),
            test_labels=torch.from_numpy(test_labels.astype(np.int64)),
            sha256=digest(arrays),
        )

    @property
    def size(self) -> int:
        """Bytes of all images."""
        return self.train_images.nbytes + self.test_images.nbytes

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

    Unless images are grey and of 28×28 pixels: the numbers of channels, rows and columns, as eight bytes each,
    big-endian. Then for training images, training labels, test images and test labels, in this order: the number of
    images, likewise, then the bytes themselves, channel by channel and row by row; a label is one byte, or two,
    little-endian, where there are more than 256 classes.
    """
    content = hashlib.sha256()
    images = arrays[0]
    size = (1, *images.shape[1:]) if images.ndim == 3 else images.shape[1:]
    if size != (1, 28, 28):
        content.update(b"".join(side.to_bytes(8, "big") for side in size))
    for array in arrays:
        content.update(len(array).to_bytes(8, "big"))
        content.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return content.hexdigest()


def _images(images: Bytes) -> Tensor:
    tensor = torch.from_numpy(images.copy())  # what was read may be of a file's bytes, which nobody may write to
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor


class DatasetStore:
    """Finds data sets by name below `root`, in torchvision's layout, and keeps the last few in memory."""

    def __init__(self, root: Path | None, *, download: bool = False) -> None:
        self._root = root
        self._download = download
        self._kept: OrderedDict[str, Dataset] = OrderedDict()

    def load(self, name: DatasetName) -> Dataset:
        """Raises `DatasetUnavailable` when files are missing or broken."""
        info = DATASETS[name]
        return self._keep(name, lambda: Dataset.of(name, info.shape, self._arrays(info)))

    def read(self, name: str, path: Path) -> Dataset:
        """An uploaded data set, which is called so, from the file in which it is kept. Raises `InvalidDataset`."""

        def read() -> Dataset:
            arrays = dataset_file.read(path).arrays
            return Dataset.of(name, facts_of(arrays).shape, arrays)

        return replace(self._keep(file_sha256(path), read), name=name)

    def _keep(self, key: str, make: Callable[[], Dataset]) -> Dataset:
        if key not in self._kept:
            self._forget(KEPT_BYTES)
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]

    def _forget(self, most: int) -> None:
        """The longest unused ones, until the others have so many bytes at most."""
        while sum(dataset.size for dataset in self._kept.values()) > most:
            self._kept.popitem(last=False)

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
