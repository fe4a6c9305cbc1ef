"""Data sets on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.data import Dataset
from worker.engine.pixels import scaled
from worker.engine.train import Examples


class Placed:
    """Each lies there once, however many of the runs that share this ask for it."""

    def __init__(self) -> None:
        self._examples: dict[tuple[str, int, torch.device], Examples] = {}
        self._test: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}

    def examples(self, dataset: Dataset, validation_images: int, device: torch.device) -> Examples:
        """The training images, without those for validation; the same object each time."""
        key = (dataset.sha256, validation_images, device)
        if key not in self._examples:
            (images, labels), (held_out, their_labels) = dataset.split(validation_images)
            self._examples[key] = Examples(
                _placed(images, device), labels.to(device), _placed(held_out, device), their_labels.to(device)
            )
        return self._examples[key]

    def test(self, dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
        """The test images and their labels."""
        key = (dataset.sha256, device)
        if key not in self._test:
            self._test[key] = _placed(dataset.test_images, device), dataset.test_labels.to(device)
        return self._test[key]


def _placed(images: Tensor, device: torch.device) -> Tensor:
    """As bytes, but for a GPU: it has the memory, and divides with another last bit than a CPU does."""
    return images if device.type == "cpu" else scaled(images).to(device)
