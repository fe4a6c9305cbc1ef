"""How time and memory grow with the work."""

from __future__ import annotations

import math
import resource
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.contract.datasets import DatasetName
from app.contract.spec import parse_spec
from benchmarks.bench.apart import workers
from benchmarks.bench.measuring import Setting, seconds
from benchmarks.bench.rows import Row
from benchmarks.bench.writing import number, table
from worker.engine import pipeline
from worker.engine.data import Dataset, DatasetStore

_IMAGES = (1, 2, 4, 8, 16, 20)
"""Halves of the usual number: up to all of MNIST."""
CHANNELS, HIDDEN = (16, 16, 32), 300


@dataclass(frozen=True)
class Work:
    """Jobs that a process runs one after another, and how much there is in each."""

    setting: Setting
    images: int
    epochs: int = 1
    width: float = 1.0
    """Of each layer, in parts of the default one's."""
    members: int = 1

    def __call__(self) -> tuple[float, float]:
        """The seconds that they take, and the bytes of memory that the process has had at most."""
        torch.set_num_threads(1)
        store = _Part(self.setting.data_dir, self.images)
        store.load(DatasetName(self.setting.dataset))
        pipeline.warm_up()
        took = seconds(lambda: self._run(store))()
        return took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _run(self, store: DatasetStore) -> None:
        widths = [round(self.width * each) for each in CHANNELS]
        for seed in range(self.members):
            spec: dict[str, Any] = {
                "kind": "train",
                "dataset": {"name": self.setting.dataset},
                "model": {"channels": widths, "hidden": round(self.width * HIDDEN)},
                "training": {"epochs": self.epochs, "seed": seed, "device": "cpu"},
                "pruning": {"method": "magnitude", "sparsity": 0.9},
            }
            with tempfile.TemporaryDirectory(prefix="growth-") as folder:
                pipeline.run(parse_spec(spec), datasets=store, inputs={}, out=Path(folder))


class _Part(DatasetStore):
    """The first so many training images of each data set."""

    def __init__(self, root: Path | None, images: int) -> None:
        super().__init__(root)
        self._images = images

    def load(self, name: DatasetName) -> Dataset:
        whole = super().load(name)
        images, labels = whole.train_images[: self._images], whole.train_labels[: self._images]
        return replace(whole, train_images=images, train_labels=labels)


def measure(setting: Setting) -> tuple[Sequence[Row], str]:
    """No row: a table, one thing grown at a time."""
    base = Work(setting, 6_000 if setting.data_dir and not setting.quick else 140)
    halves = tuple(base.images * times // 2 for times in _IMAGES)
    lines = [
        _line(setting, "epochs", (1, 2, 4, 8), lambda amount: replace(base, epochs=int(amount))),
        _line(setting, "training images", halves, lambda amount: replace(base, images=int(amount))),
        _line(setting, "width", (0.5, 1, 2, 4), lambda amount: replace(base, width=amount)),
        _line(
            setting, "members, one after another", (1, 2, 4, 8, 16), lambda amount: replace(base, members=int(amount))
        ),
    ]
    head = ("what grows", "amounts", "s", "exponent", "of the last two", "GB at most", "exponent")
    text = (
        "Whole jobs by the engine, reports and files included, each amount in a process of its own, one thread; "
        f"beside what grows {base.images:,} images, one epoch, the default widths, one job. An exponent is the slope "
        "of the logarithms, by least squares: 1 is as the amount, 0 does not grow. Width counts on both sides of a "
        "layer, so its arithmetic grows by the square."
    )
    return [], f"{text}\n\n{table(head, lines)}"


def _line(
    setting: Setting, what: str, usual: Sequence[float], work: Callable[[float], Work]
) -> tuple[str, str, str, str, str, str, str]:
    amounts = usual[: setting.work(len(usual), 2)]
    found = [_alone(work(amount)) for amount in amounts]
    took, most = [each[0] for each in found], [each[1] for each in found]
    return (
        what,
        ", ".join(f"{amount:g}" for amount in amounts),
        ", ".join(number(value) for value in took),
        number(exponent(amounts, took)),
        number(exponent(amounts[-2:], took[-2:])),
        ", ".join(number(value / 1e9) for value in most),
        number(exponent(amounts, most)),
    )


def _alone(work: Work) -> tuple[float, float]:
    with workers(1) as (worker,):
        found = worker(work)
    assert isinstance(found, tuple)
    return found


def exponent(amounts: Sequence[float], found: Sequence[float]) -> float:
    """p of found ≈ c · amount**p, by least squares of the logarithms."""
    slope, _ = np.polyfit([math.log(each) for each in amounts], [math.log(each) for each in found], 1)
    return float(slope)
