"""Sixteen members of one shape: trained together against one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from app.contract.spec import ModelSpec
from app.contract.training import L1Penalty, TrainingSpec
from benchmarks.bench.measuring import Setting, in_turn, seconds, threads
from benchmarks.bench.rows import Row
from benchmarks.bench.training import examples, load
from benchmarks.bench.writing import number, table
from worker.engine import device, memory
from worker.engine.model import fresh
from worker.engine.observer import Observer
from worker.engine.plan import Course
from worker.engine.progress import Progress
from worker.engine.seeding import reproducible
from worker.engine.together import Member, train_together, way
from worker.engine.train import Examples, train

MEMBERS = 16
AGAINST = "one after another"
EPOCHS = 2
"""Of a training on a GPU: sixteen one after another take a quarter of a minute."""


def on_cpu(setting: Setting) -> tuple[Sequence[Row], str]:
    """An epoch of some images: a figure for `worker.engine.together.way`, which has jobs of their own there."""
    memory.keep_freed()
    with threads(1):
        here = examples(load(setting), setting.work(1_000, 200))
        row = _row("a CPU, 1 thread", here, setting.rounds(3), epochs=1, must=None)
    return [row], _text(len(here.labels), 1)


def on_gpu(setting: Setting) -> tuple[Sequence[Row], str]:
    """Whole trainings, recording of steps included."""
    if not torch.cuda.is_available():
        skipped = "there is no CUDA device here"
        return [Row(what=_what("a GPU"), against=AGAINST, kind="speed-up", must=4, skipped=skipped)], ""
    here = examples(load(setting), setting.work(60_000, 2_000), torch.device("cuda"))
    begun = time.perf_counter()
    _trained(here, MEMBERS, 1)  # kernels are built at the first call, and kept
    print(f"  one epoch of {MEMBERS} members, kernels built: {time.perf_counter() - begun:.1f} s", flush=True)
    row = _row("a GPU", here, setting.rounds(2), epochs=EPOCHS, must=4)
    return [row], f"{_text(len(here.labels), EPOCHS)}\n\n{_steps(here)}"


def _what(where: str) -> str:
    return f"{MEMBERS} members trained together on {where}"


def _text(images: int, epochs: int) -> str:
    epoch = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    return f"{epoch} of {images:,} images, batches of 100, Adam at 0.001, an L1 term; seeds and strengths differ."


def _row(where: str, here: Examples, rounds: int, epochs: int, must: float | None) -> Row:
    ours, plain = in_turn(
        rounds,
        _told(seconds(lambda: _trained(here, MEMBERS, epochs))),
        _told(seconds(lambda: _trained(here, MEMBERS, epochs, _one_after_another))),
    )
    chosen = way([each.course for each in members(here.images.device, MEMBERS, epochs)], here.images.device)
    told = f"{'together' if chosen.together else 'as jobs'}: {chosen.reason}"
    return Row(what=_what(where), against=AGAINST, kind="speed-up", ours=ours, plain=plain, must=must, remark=told)


def _told(measure: Callable[[], float]) -> Callable[[], float]:
    """Says what was measured at once: rounds are long."""

    def telling() -> float:
        found = measure()
        print(f"  {found:.2f} s", flush=True)
        return found

    return telling


def _steps(here: Examples) -> str:
    """Milliseconds a step, by members: what two more epochs of 200 steps take."""
    part = Examples(here.images[:20_000], here.labels[:20_000], here.images[:0], here.labels[:0])
    lines = []
    for count in (1, 4, 16, 64):
        once, thrice = (seconds(lambda e=e: _trained(part, count, e))() for e in (1, 3))  # type: ignore[misc] # noqa: B023
        each = (thrice - once) / 2 / (len(part.labels) / 100) * 1000
        lines.append((str(count), number(each), number(each / count)))
    return table(("members", "ms a step of all", "ms a step of one"), lines)


def members(on: torch.device, count: int, epochs: int) -> list[Member]:
    found = []
    for seed in range(count):
        network, strength = fresh(ModelSpec(), seed), 1e-5 * (1 + seed)
        device.place(network, on)
        course = Course(TrainingSpec(epochs=epochs, seed=seed), L1Penalty(penalty="l1", strength=strength))
        found.append(Member(network, course, Progress()))
    return found


def _all_at_once(given: Sequence[Member], here: Examples) -> None:
    failures = train_together(given, here)
    assert not any(failures), failures


def _one_after_another(given: Sequence[Member], here: Examples) -> None:
    for each in given:
        train(each.network, here, each.course, each.progress, Observer())


def _trained(
    here: Examples,
    count: int,
    epochs: int,
    how: Callable[[Sequence[Member], Examples], None] = _all_at_once,
) -> None:
    on = here.images.device
    with reproducible(on):
        how(members(on, count, epochs), here)
        if on.type == "cuda":
            torch.cuda.synchronize(on)
