"""Training on a CPU against the source's own loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from app.contract.datasets import DatasetName
from app.contract.spec import ModelSpec
from app.contract.training import L1Penalty, Regularization, TrainingSpec
from app.core.cores import usable_cores
from benchmarks.bench import source
from benchmarks.bench.measuring import Setting, in_turn, seconds, threads
from benchmarks.bench.rows import Row
from worker.engine import device
from worker.engine.data import Dataset, DatasetStore
from worker.engine.model import fresh
from worker.engine.observer import Observer
from worker.engine.plan import Course
from worker.engine.progress import Progress
from worker.engine.seeding import reproducible
from worker.engine.train import Examples, train

CPU = torch.device("cpu")
STRENGTH = 0.001


def load(setting: Setting) -> Dataset:
    return DatasetStore(setting.data_dir).load(DatasetName(setting.dataset))


def examples(dataset: Dataset, count: int | None = None, on: torch.device = CPU) -> Examples:
    (images, labels), validation = dataset.split(0)
    return Examples(*(tensor.to(on) for tensor in (images[:count], labels[:count], *validation)))


def ours(
    training: Examples, settings: TrainingSpec, regularization: Regularization | None = None
) -> Callable[[], object]:
    """New weights and a training by the engine."""
    on = training.images.device

    def work() -> None:
        network = fresh(ModelSpec(), settings.seed)
        with reproducible(on):
            device.place(network, on)
            train(network, training, Course(settings, regularization), Progress(), Observer())

    return work


def thread_counts() -> Sequence[int]:
    return sorted({1, usable_cores()})


def measure(setting: Setting) -> tuple[Sequence[Row], str]:
    """An epoch of the source's network."""
    count = setting.work(60_000, 4_000)
    here = examples(load(setting), count)
    rows = []
    with source.pictures(setting, len(here.labels)) as pictures:
        for used in thread_counts():
            with threads(used):
                rows += _with_threads(setting, here, pictures, used)
    return rows, _text(setting, len(here.labels))


def _with_threads(setting: Setting, here: Examples, pictures: source.Pictures, used: int) -> list[Row]:
    plain, float32 = in_turn(
        setting.rounds(3),
        seconds(lambda: source.train(source.Network(), pictures)),
        seconds(ours(here, TrainingSpec(epochs=1, device="cpu"))),
    )
    return [
        Row(
            what=f"training on a CPU, float32, {_said(used)}",
            against="the source's loop, as many threads",
            kind="speed-up",
            ours=float32,
            plain=plain,
            must=1.4,
            aim=2,
        )
    ]


def penalty(setting: Setting) -> tuple[Sequence[Row], str]:
    """What an L1 term adds to an epoch, here and in the source."""
    count = setting.work(12_000, 2_000)
    here = examples(load(setting), count)
    settings, l1 = TrainingSpec(epochs=1, device="cpu"), L1Penalty(penalty="l1", strength=STRENGTH)
    rows = []
    with source.pictures(setting, len(here.labels)) as pictures:
        for used in thread_counts():
            with threads(used):
                with_l1, without, source_with, source_without = in_turn(
                    setting.rounds(7),
                    seconds(ours(here, settings, l1)),
                    seconds(ours(here, settings)),
                    seconds(lambda: source.train(source.Network(), pictures, l1=STRENGTH)),
                    seconds(lambda: source.train(source.Network(), pictures)),
                )
            told = f"L1 term of an epoch, {_said(used)}"
            rows += [
                Row(what=told, against="the same without", kind="cost", ours=with_l1, plain=without, must=1.05),
                Row(
                    what=f"the source's: {told}",
                    against="the same without",
                    kind="cost",
                    ours=source_with,
                    plain=source_without,
                ),
            ]
    return rows, _text(setting, len(here.labels))


def _said(used: int) -> str:
    return "1 thread" if used == 1 else f"{used} threads"


def _text(setting: Setting, images: int) -> str:
    data = "MNIST" if setting.data_dir else "the digits of scikit-learn, since no folder with MNIST was given"
    return (
        f"{images:,} images of {data}, batches of 100, Adam at 0.001, new weights each time. The source's loop reads "
        "item by item through torchvision's `ToTensor` and a `DataLoader`, and calls `.item()` for the loss and the "
        "accuracy of every step."
    )
