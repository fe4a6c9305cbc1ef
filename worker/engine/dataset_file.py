"""An uploaded data set as it is kept: one safetensors file with four arrays, checked anew whenever it is read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import ValidationError

from app.contract.closed import Closed
from app.contract.datasets import MAX_VALUES, DatasetFacts, DatasetFormat
from app.contract.network import LEAST_CLASSES, LEAST_SIDE, MOST_CLASSES, MOST_SIDE
from worker.engine.errors import InvalidDataset

Bytes = NDArray[np.uint8]
Labels = NDArray[np.integer]
Arrays = tuple[Bytes, Labels, Bytes, Labels]
"""Training images [N, C, H, W] or, of grey ones, [N, H, W]; training labels [N]; test images and labels likewise."""

NAMES = ("train_images", "train_labels", "test_images", "test_labels")
_METADATA = "dataset"


class About(Closed):
    """What the arrays do not tell of themselves."""

    format: DatasetFormat
    class_names: tuple[str, ...] | None = None


class Content(NamedTuple):
    arrays: Arrays
    about: About


def write(path: Path, content: Content) -> None:
    """The same content gives the same bytes."""
    metadata = {_METADATA: content.about.model_dump_json()}
    safetensors.numpy.save_file(dict(zip(NAMES, content.arrays, strict=True)), path, metadata)


def read(path: Path) -> Content:
    """What `write` wrote. Raises `InvalidDataset`."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = About.model_validate_json((file.metadata() or {})[_METADATA])
            if sorted(file.keys()) != sorted(NAMES):
                raise InvalidDataset(f"{path.name} holds other arrays than {', '.join(NAMES)}")
            train_images, train_labels, test_images, test_labels = (file.get_tensor(name) for name in NAMES)
    except (safetensors.SafetensorError, ValidationError, KeyError, OSError) as error:
        raise InvalidDataset(f"{path.name} cannot be read as a data set: {error}") from error
    return Content((train_images, train_labels, test_images, test_labels), about)


def facts_of(arrays: Arrays) -> DatasetFacts:
    """Of arrays that fit together; every class has a training image. Raises `InvalidDataset`."""
    train_images, train_labels, test_images, test_labels = arrays
    for images, labels, split in ((train_images, train_labels, "train"), (test_images, test_labels, "test")):
        refuse_images(f"{split}_images", images.shape)
        if labels.shape != images.shape[:1]:
            raise InvalidDataset(
                f"{split}_labels has shape {labels.shape}, expected one label for each image of "
                f"{split}_images, which has {len(images)}"
            )
    if train_images.shape[1:] != test_images.shape[1:]:
        raise InvalidDataset(
            f"test_images has images of {_told(test_images.shape)} (channels, height, width), expected "
            f"{_told(train_images.shape)} as in train_images"
        )
    if train_images.size + test_images.size > MAX_VALUES:
        raise InvalidDataset(f"all images together have more than the {MAX_VALUES} values that a data set may have")
    channels, height, width = train_images.shape[1:]
    classes = _classes(train_labels, test_labels)
    return DatasetFacts(
        channels=channels,
        height=height,
        width=width,
        classes=classes,
        train_images=len(train_images),
        test_images=len(test_images),
    )


def refuse_images(name: str, shape: tuple[int, ...], left: int = MAX_VALUES) -> None:
    """Before anything of this size is made: [N, C, H, W], within the bounds of each and of the product, of which so
    much is left. Raises `InvalidDataset`."""
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise InvalidDataset(f"{name} has shape {shape}, expected images of 1 or 3 channels")
    count, _, *sides = shape
    if not all(LEAST_SIDE <= side <= MOST_SIDE for side in sides):
        raise InvalidDataset(
            f"{name} has images of {_told(shape)} (channels, height, width), expected {LEAST_SIDE} to {MOST_SIDE} "
            "pixels in height and width"
        )
    if count < 1:
        raise InvalidDataset(f"{name} holds no image, expected one at least")
    if (values := count * shape[1] * sides[0] * sides[1]) > left:
        raise InvalidDataset(
            f"{name} has {values} values (images × channels × height × width), expected {left} at most, of the "
            f"{MAX_VALUES} that all images of a data set may have"
        )


def _told(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape[1:]))


def _classes(train: Labels, test: Labels) -> int:
    found = np.unique(train)
    classes = int(found[-1]) + 1
    if found[0] < 0 or not LEAST_CLASSES <= classes <= MOST_CLASSES:
        raise InvalidDataset(
            f"train_labels goes from {found[0]} to {found[-1]}, expected 0 to the number of classes less one, of "
            f"{LEAST_CLASSES} to {MOST_CLASSES} classes"
        )
    if len(found) < classes:
        missing = np.setdiff1d(np.arange(classes), found)
        raise InvalidDataset(f"train_labels has no {missing[0]}, expected each of 0 to {classes - 1} at least once")
    if test.min() < 0 or test.max() >= classes:
        odd = test[(test < 0) | (test >= classes)][0]
        raise InvalidDataset(f"test_labels holds {odd}, expected 0 to {classes - 1} as in train_labels")
    return classes
