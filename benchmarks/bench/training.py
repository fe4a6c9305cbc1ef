"""Training on a CPU against the source's own loop."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch

from app.contract.datasets import DatasetName
from app.contract.spec import ModelSpec
from app.contract.training import L1Penalty, Precision, Regularization, TrainingSpec
from app.core.cores import usable_cores
from benchmarks.bench import source
from benchmarks.bench.apart import Worker, timed, workers
from benchmarks.bench.measuring import Setting, in_turn
from benchmarks.bench.rows import Row
from benchmarks.bench.writing import table
from worker.engine import device, memory
from worker.engine.data import Dataset, DatasetStore
from worker.engine.evaluate import evaluate
from worker.engine.model import fresh
from worker.engine.observer import Observer
from worker.engine.placed import Placed
from worker.engine.plan import Course
from worker.engine.progress import Progress
from worker.engine.seeding import reproducible
from worker.engine.train import Examples, train

CPU = torch.device("cpu")
STRENGTH = 0.001
WARM = 300
"""Images of a training ahead of those that are measured."""


@cache
def load(setting: Setting) -> Dataset:
    return DatasetStore(setting.data_dir).load(DatasetName(setting.dataset))


def examples(dataset: Dataset, count: int | None = None, on: torch.device = CPU) -> Examples:
    whole = Placed().examples(dataset, 0, on)
    return replace(whole, images=whole.images[:count], labels=whole.labels[:count])


@dataclass(frozen=True)
class Ours:
    """New weights and a training by the engine, in a process or another."""

    setting: Setting
    settings: TrainingSpec
    count: int
    threads: int
    regularization: Regularization | None = None

    def __call__(self) -> None:
        memory.keep_freed()
        torch.set_num_threads(self.threads)
        trained(examples(load(self.setting), self.count), self.settings, self.regularization)


def trained(
    training: Examples, settings: TrainingSpec, regularization: Regularization | None = None
) -> torch.nn.Module:
    on = training.images.device
    network = fresh(ModelSpec(), settings.seed)
    with reproducible(on):
        device.place(network, on)
        train(network, training, Course(settings, regularization), Progress(), Observer())
    return network


def theirs(folder: Path | None, count: int, threads: int, l1: float | None = None) -> None:
    """The same by the source's loop."""
    torch.set_num_threads(threads)
    source.train(source.Network(), source.pictures(folder, count), l1=l1)


def thread_counts() -> Sequence[int]:
    return sorted({1, usable_cores()})


def measure(setting: Setting) -> tuple[Sequence[Row], str]:
    """An epoch of the source's network, in float32 and bf16."""
    count = _count(setting, 60_000, 4_000)
    rows = []
    with source.files(setting) as folder, workers(2) as (plain, ours):
        for used in thread_counts():
            _warm(setting, folder, used, plain, ours)
            rows += _with_threads(setting, folder, count, used, plain, ours)
    return rows, _text(setting, count)


def _with_threads(
    setting: Setting, folder: Path | None, count: int, used: int, plain: Worker, ours: Worker
) -> list[Row]:
    found = in_turn(
        setting.rounds(3),
        timed(plain, partial(theirs, folder, count, used)),
        timed(ours, Ours(setting, _settings("float32"), count, used)),
        timed(ours, Ours(setting, _settings("bf16"), count, used)),
    )
    lacks = None if device.has_bf16(CPU) else f"{device.name_of(CPU)} has no bf16"
    bounds = (("float32", found[1], 1.4, 2.0, None), ("bf16", found[2], 2.0, 3.0, lacks))
    return [
        Row(
            what=f"training on a CPU, {precision}, {_said(used)}",
            against="the source's loop in float32, as many threads",
            kind="speed-up",
            ours=values,
            plain=found[0],
            must=must,
            aim=aim,
            skipped=skipped,
        )
        for precision, values, must, aim, skipped in bounds
    ]


def penalty(setting: Setting) -> tuple[Sequence[Row], str]:
    """What an L1 term adds to an epoch, here and in the source."""
    count = _count(setting, 12_000, 2_000)
    l1 = L1Penalty(penalty="l1", strength=STRENGTH)
    rows = []
    with source.files(setting) as folder, workers(2) as (plain, ours):
        for used in thread_counts():
            _warm(setting, folder, used, plain, ours)
            with_l1, without, source_with, source_without = in_turn(
                setting.rounds(7),
                timed(ours, Ours(setting, _settings("float32"), count, used, l1)),
                timed(ours, Ours(setting, _settings("float32"), count, used)),
                timed(plain, partial(theirs, folder, count, used, STRENGTH)),
                timed(plain, partial(theirs, folder, count, used)),
            )
            told = f"an epoch with L1, {_said(used)}"
            against = "the same without"
            rows += [
                Row(what=told, against=against, kind="cost", ours=with_l1, plain=without, must=1.05),
                Row(what=f"{told}: the source's", against=against, kind="cost", ours=source_with, plain=source_without),
            ]
    return rows, _text(setting, count)


def precision(setting: Setting) -> tuple[Sequence[Row], str]:
    """Test accuracy after training in bf16 and in float32, three seeds each."""
    what, against = "test accuracy, bf16", "float32, mean of three seeds"
    if not device.has_bf16(CPU):
        lacks = f"{device.name_of(CPU)} has no bf16"
        return [Row(what=what, against=against, kind="value", unit="points", must=0.2, skipped=lacks)], ""
    count, epochs = _count(setting, 60_000, 4_000), setting.work(5, 1)
    memory.keep_freed()
    found = {
        kind: [_accuracy(setting, count, TrainingSpec(epochs=epochs, seed=seed, precision=kind)) for seed in range(3)]
        for kind in _PRECISIONS
    }
    means = [statistics.mean(found[kind]) for kind in _PRECISIONS]
    row = Row(
        what=what,
        against=against,
        kind="value",
        unit="points",
        ours=(abs(means[1] - means[0]),),
        must=0.2,
        remark=f"bf16 less float32: {means[1] - means[0]:+.3f} points",
    )
    lines = [
        (kind, *(f"{value:.2f} %" for value in found[kind]), f"{statistics.mean(found[kind]):.3f} %") for kind in found
    ]
    text = f"After {epochs} epochs of {count:,} images, each seed with the same weights and order in both."
    return [row], f"{text}\n\n{table(('precision', 'seed 0', 'seed 1', 'seed 2', 'mean'), lines)}"


_PRECISIONS: tuple[Precision, Precision] = ("float32", "bf16")


def _accuracy(setting: Setting, count: int, settings: TrainingSpec) -> float:
    dataset = load(setting)
    network = trained(examples(dataset, count), settings)
    return 100 * evaluate(network, dataset.test_images, dataset.test_labels, Observer()).accuracy.accuracy


def _settings(kind: Precision) -> TrainingSpec:
    return TrainingSpec(epochs=1, device="cpu", precision=kind)


def _count(setting: Setting, usual: int, quick: int) -> int:
    return min(setting.work(usual, quick), len(load(setting).train_labels))


def _warm(setting: Setting, folder: Path | None, used: int, plain: Worker, ours: Worker) -> None:
    plain(partial(theirs, folder, WARM, used))
    for kind in _PRECISIONS:
        ours(Ours(setting, _settings(kind), WARM, used))


def _said(used: int) -> str:
    return "1 thread" if used == 1 else f"{used} threads"


def _text(setting: Setting, images: int) -> str:
    data = "MNIST" if setting.data_dir else "the digits of scikit-learn, since no folder with MNIST was given"
    return (
        f"{images:,} images of {data}, batches of 100, Adam at 0.001, new weights each time; each side in a process of "
        "its own. The source's loop reads item by item through torchvision's `ToTensor` and a `DataLoader`, and calls "
        "`.item()` for the loss and the accuracy of every step."
    )
