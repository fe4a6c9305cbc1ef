"""Sixteen members of one shape: trained together against one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from app.contract.spec import ModelSpec
from app.contract.training import L1Penalty, TrainingSpec
from benchmarks.bench.measuring import Setting, in_turn, seconds, threads
from benchmarks.bench.rows import Row
from benchmarks.bench.training import CPU, examples, load
from worker.engine import device
from worker.engine.model import fresh
from worker.engine.observer import Observer
from worker.engine.plan import Course
from worker.engine.progress import Progress
from worker.engine.seeding import reproducible
from worker.engine.together import Member, train_together, way
from worker.engine.train import Examples, train

MEMBERS = 16


def measure(setting: Setting) -> tuple[Sequence[Row], str]:
    """An epoch of the source's network, each with a seed and a strength of its own."""
    data = load(setting)
    with threads(1):
        on_cpu = examples(data, setting.work(1_000, 200))
        rows = [_row("a CPU, 1 thread", on_cpu, setting.rounds(3), must=None)]
    if torch.cuda.is_available():
        on_gpu = examples(data, setting.work(60_000, 2_000), torch.device("cuda"))
        rows.append(_row("a GPU", on_gpu, setting.rounds(3), must=4))
    else:
        skipped = "there is no CUDA device here"
        rows.append(Row(what=_what("a GPU"), against=_AGAINST, kind="speed-up", must=4, skipped=skipped))
    return rows, _TEXT.format(images=len(on_cpu.labels))


_AGAINST = "one after another"
_TEXT = (
    "{images:,} images of the data set on the CPU and all of them on the GPU, batches of 100, Adam at 0.001, an L1 "
    "term. On a CPU the members of a sweep are jobs of their own, whatever this figure says of it: see "
    "`worker/engine/together/fit.py`."
)


def _what(where: str) -> str:
    return f"{MEMBERS} members trained together on {where}"


def _row(where: str, here: Examples, rounds: int, must: float | None) -> Row:
    together, alone = _together(here), _one_after_another(here)
    if here.images.is_cuda:  # kernels are built at the first call, and kept
        together()
    ours, plain = in_turn(rounds, seconds(together), seconds(alone))
    courses = [each.course for each in members(here.images.device)]
    remark = way(courses, here.images.device).reason
    return Row(what=_what(where), against=_AGAINST, kind="speed-up", ours=ours, plain=plain, must=must, remark=remark)


def members(on: torch.device) -> list[Member]:
    found = []
    for seed in range(MEMBERS):
        network, strength = fresh(ModelSpec(), seed), 1e-5 * (1 + seed)
        device.place(network, on)
        course = Course(TrainingSpec(epochs=1, seed=seed), L1Penalty(penalty="l1", strength=strength))
        found.append(Member(network, course, Progress()))
    return found


def _together(here: Examples) -> Callable[[], None]:
    def work() -> None:
        with reproducible(here.images.device):
            train_together(members(here.images.device), here, Observer())
            _finish(here.images.device)

    return work


def _one_after_another(here: Examples) -> Callable[[], None]:
    def work() -> None:
        with reproducible(here.images.device):
            for each in members(here.images.device):
                train(each.network, here, each.course, each.progress, Observer())
            _finish(here.images.device)

    return work


def _finish(on: torch.device) -> None:
    """Until a GPU has done all that it was told."""
    if on != CPU:
        torch.cuda.synchronize(on)
