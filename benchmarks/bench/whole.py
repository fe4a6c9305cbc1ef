"""Sixteen whole runs of one shape, files and all, and their files by themselves: together against one after another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from app.contract.result import Result
from app.contract.spec import StoredSpec, parse_spec
from app.core.cores import usable_cores
from benchmarks.bench.measuring import Setting, in_turn, seconds
from benchmarks.bench.rows import Row
from benchmarks.bench.together import AGAINST, EPOCHS, MEMBERS
from worker.engine import pipeline
from worker.engine.data import DatasetStore
from worker.engine.execute import Awaited, Steps
from worker.engine.lockstep import APART, Together, Whole, carry_out
from worker.engine.makers import Made, Making
from worker.engine.placed import Placed


def files(setting: Setting) -> tuple[Sequence[Row], str]:
    """Of default networks, by as many processes as there are cores."""
    with tempfile.TemporaryDirectory() as out:
        making = making_of(_steps(_spec(0, 1, "digits"), Path(out), DatasetStore(None), Placed()))
    count, members = usable_cores(), setting.work(MEMBERS, 4)

    def made(together: Together) -> Callable[[], float]:
        return seconds(lambda: _ended([Whole(_waiting(making)) for _ in range(members)], together))

    ours, plain = in_turn(setting.rounds(3), made(Together(processes=count)), made(APART))
    what = f"files of {members} members by {count} processes"
    text = (
        "The default network, an epoch of digits old, pruned at θ = 0.01. That the processes start is counted, which "
        "they do while a sweep is trained."
    )
    return [Row(what=what, against=AGAINST, kind="speed-up", ours=ours, plain=plain)], text


def on_gpu(setting: Setting) -> tuple[Sequence[Row], str]:
    """Through the engine's door, as a worker does it, but for the service's part."""
    members, must = setting.work(MEMBERS, 4), 4
    what = f"{members} whole runs together on a GPU"
    if not torch.cuda.is_available():
        skipped = "there is no CUDA device here"
        return [Row(what=what, against=AGAINST, kind="speed-up", must=must, skipped=skipped)], ""
    specs = [_spec(seed, EPOCHS, setting.dataset) for seed in range(members)]
    runs = _Runs(DatasetStore(setting.data_dir))
    pipeline.warm_up()  # as a worker does: kernels are built, for one and for many, and kept
    runs.carry_out(specs[:1], APART)
    at_once = Together(MEMBERS, processes=usable_cores())
    ours, plain = in_turn(
        setting.rounds(2),
        seconds(lambda: runs.carry_out(specs, at_once)),
        seconds(lambda: runs.carry_out_each(specs)),
    )
    text = f"{EPOCHS} epochs of {setting.dataset}, an L1 term, pruned at θ = 0.01; seeds and strengths differ."
    return [Row(what=what, against=AGAINST, kind="speed-up", ours=ours, plain=plain, must=must)], text


class _Runs:
    def __init__(self, datasets: DatasetStore) -> None:
        self._datasets = datasets

    def carry_out(self, specs: Sequence[StoredSpec], together: Together) -> None:
        placed = Placed()
        with tempfile.TemporaryDirectory() as folder:
            outs = [Path(tempfile.mkdtemp(dir=folder)) for _ in specs]
            pairs = zip(specs, outs, strict=True)
            _ended([Whole(_steps(spec, out, self._datasets, placed)) for spec, out in pairs], together)

    def carry_out_each(self, specs: Sequence[StoredSpec]) -> None:
        for spec in specs:
            self.carry_out([spec], APART)


class _Asking(Whole[Result]):
    """A run that keeps what it wants files of."""

    making: Making

    def go_on(self, answer: object = None, failure: BaseException | None = None) -> Awaited | None:
        awaited = super().go_on(answer, failure)
        if isinstance(awaited, Making):
            self.making = awaited
        return awaited


def making_of(steps: Steps[Result]) -> Making:
    """What this run, which is carried out, wants files of."""
    run = _Asking(steps)
    _ended([run], APART)
    return run.making


def _waiting(making: Making) -> Steps[Made]:
    made: Made | None = yield making
    return made or making.made()


def _steps(spec: StoredSpec, out: Path, datasets: DatasetStore, placed: Placed) -> Steps[Result]:
    return pipeline.steps(spec, datasets=datasets, inputs={}, out=out, placed=placed)


def _spec(seed: int, epochs: int, dataset: str) -> StoredSpec:
    return parse_spec(
        {
            "kind": "train",
            "dataset": {"name": dataset},
            "training": {"epochs": epochs, "seed": seed},
            "regularization": {"penalty": "l1", "strength": 1e-5 * (1 + seed)},
            "pruning": {"method": "threshold", "threshold": 0.01},
        }
    )


def _ended(runs: Sequence[Whole[Any]], together: Together) -> None:
    carry_out(runs, together)
    for run in runs:
        run.result()  # raises what it has failed with
