"""The digits, read once for all runs of a process, and a few of them."""

from __future__ import annotations

from app.contract.datasets import DatasetName
from worker.engine.data import Dataset, DatasetStore

TRAIN, TEST = 300, 100
BATCH = 20
"""Makes as many steps of an epoch as all digits make with batches of 100."""


class _Few(DatasetStore):
    def load(self, name: DatasetName) -> Dataset:
        return self._keep(f"few {name}", lambda: _few_of(super(_Few, self).load(name)))


def _few_of(whole: Dataset) -> Dataset:
    images = [images[:count, 0].numpy() for images, count in ((whole.train_images, TRAIN), (whole.test_images, TEST))]
    labels = [whole.train_labels[:TRAIN].byte().numpy(), whole.test_labels[:TEST].byte().numpy()]
    return Dataset.of(whole.name, whole.shape, (images[0], labels[0], images[1], labels[1]))


ALL: DatasetStore = DatasetStore(None)
FEW: DatasetStore = _Few(None)
"""For runs of which nobody asks how well they learn."""
