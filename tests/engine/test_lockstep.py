"""Several runs of the engine at once: each comes to what it would by itself, and to its own end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from app.contract.datasets import DatasetName
from app.contract.report import Manifest, Report
from app.contract.spec import ModelSpec
from app.contract.status import Phase
from app.contract.training import TrainingSpec
from tests.engine.conftest import Listener, run
from tests.engine.few import BATCH, FEW
from tests.engine.measured import Measured, Unpublished, Watched, measured
from tests.engine.together import Keeping, Power
from tests.specs import Document, train_spec
from worker.engine.errors import NonFiniteLoss, OutOfMemory
from worker.engine.execute import Steps, Training
from worker.engine.lockstep import APART, Together, Whole, carry_out
from worker.engine.model import fresh
from worker.engine.observer import Observer
from worker.engine.placed import Placed
from worker.engine.plan import Course
from worker.engine.progress import Progress
from worker.engine.resume import Recovery
from worker.engine.together import Member

ANY = Together(16, "any")
PLACED, DIGITS = Placed(), FEW.load(DatasetName.DIGITS)
SGD = {"optimizer": {"name": "sgd"}, "learning_rate": 0.01, "batch_size": BATCH}
"""It does not blow rounding up, as Adam does."""


def _spec(seed: int, **overrides: object) -> Document:
    penalty = {"penalty": "l2", "strength": 0.001 * (seed + 1)}
    training = {"epochs": 1, "seed": seed, "device": "cpu", **SGD}
    return train_spec(training=training, regularization=penalty, **overrides)


NOTHING: Mapping[int, Any] = MappingProxyType({})


class Ran:
    """Runs that were carried out together, up to what they publish unless somebody hears of that too."""

    def __init__(
        self,
        folder: Path,
        specs: Sequence[Document],
        together: Together = ANY,
        heard: Mapping[int, Listener] = NOTHING,
        recoveries: Mapping[int, Recovery] = NOTHING,
    ) -> None:
        self._placed = Placed()
        self.folders = [folder / str(number) for number in range(len(specs))]
        self.heard = [heard.get(number, Unpublished()) for number in range(len(specs))]
        self.runs = [self._run(number, spec, recoveries.get(number, Recovery())) for number, spec in enumerate(specs)]
        carry_out(self.runs, together)

    def _run(self, number: int, spec: Document, recovery: Recovery) -> Watched:
        self.folders[number].mkdir(parents=True)
        given: Mapping[str, Any] = {"datasets": FEW, "recovery": recovery, "placed": self._placed}
        return Watched(spec, self.folders[number], self.heard[number], **given)

    @property
    def together(self) -> list[int | None]:
        return [run.progress.together for run in self.runs]

    def manifest(self, number: int) -> Manifest:
        return Manifest.model_validate_json((self.folders[number] / "manifest.json").read_bytes())


Alone = Callable[[Document], Watched]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """What comes of a spec by itself, which several tests want to know."""
    known: dict[str, Watched] = {}
    out = tmp_path_factory.mktemp("alone")

    def run(spec: Document) -> Watched:
        key = json.dumps(spec)
        if key not in known:
            known[key] = measured(spec, out, datasets=FEW)
        return known[key]

    return run


def _agree(ours: Watched, theirs: Watched) -> None:
    """By losses: accuracies of 360 images jump in the first steps of a training, which these are."""
    assert ours.before.loss == pytest.approx(theirs.before.loss, rel=0.005)
    assert ours.after.loss == pytest.approx(theirs.after.loss, rel=0.03)
    assert ours.nonzero == pytest.approx(theirs.nonzero, rel=0.01)


def _same_bits(ours: Watched, theirs: Watched) -> bool:
    pairs = zip(ours.state.values(), theirs.state.values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs) and ours.after == theirs.after


PLANS: Mapping[str, Document] = {
    "one shot": {},
    "none": {"pruning": None},
    "fine-tuned": {"fine_tuning": {"epochs": 1, **SGD}},
    "before training": {
        "pruning": {"method": "random", "sparsity": 0.5, "schedule": {"name": "one-shot", "when": "before-training"}}
    },
    "rounds": {
        "pruning": {
            "method": "magnitude",
            "sparsity": 0.8,
            "schedule": {"name": "iterative", "rounds": 2, "rewind_epoch": 0},
        },
        "fine_tuning": {"epochs": 1, **SGD},
    },
}


@pytest.mark.parametrize("plan", PLANS)
def test_each_comes_to_what_it_would_by_itself(plan: str, tmp_path: Path, alone: Alone) -> None:
    specs = [_spec(seed, **PLANS[plan]) for seed in range(3)]

    ran = Ran(tmp_path, specs)

    assert ran.together == [3, 3, 3]
    for ours, spec in zip(ran.runs, specs, strict=True):
        theirs = alone(spec)
        assert (ours.heard.heard, ours.heard.steps) == (theirs.heard.heard, theirs.heard.steps)
        assert theirs.progress.together is None
        _agree(ours, theirs)


def test_each_publishes_what_it_would_by_itself_and_says_how_many_they_were(tmp_path: Path) -> None:
    specs = [_spec(seed, **PLANS["fine-tuned"]) for seed in range(2)]

    ran = Ran(tmp_path / "together", specs, heard={number: Listener() for number in range(2)})

    theirs = run(specs[0], tmp_path / "alone", datasets=FEW)
    assert ran.heard[0].heard == theirs.heard.heard
    assert [ran.manifest(number).receipt.together for number in range(2)] == [2, 2]
    assert (theirs.manifest.receipt.together, theirs.manifest.receipt.kernels) == (None, None)
    assert [file.name for file in ran.manifest(0).files] == [file.name for file in theirs.manifest.files]
    for number, each in enumerate(ran.runs):
        report = Report.model_validate_json((ran.folders[number] / "report.json").read_bytes())
        assert (report.accuracy_before, report.accuracy_after) == (each.before, each.after)
        assert report.total.nonzero_after == each.nonzero


def test_the_same_group_comes_to_the_same_bits(tmp_path: Path) -> None:
    specs = [_spec(seed, **PLANS["fine-tuned"]) for seed in range(2)]
    first, again = Ran(tmp_path / "first", specs), Ran(tmp_path / "again", specs)
    assert all(map(_same_bits, first.runs, again.runs))


@pytest.mark.parametrize("together", [APART, Together(1, "any"), Together(16, "gpu")], ids=str)
def test_where_it_is_not_wanted_each_comes_to_its_own_bits(together: Together, tmp_path: Path, alone: Alone) -> None:
    specs = [_spec(seed) for seed in range(2)]
    ran = Ran(tmp_path, specs, together)
    assert ran.together == [None, None]
    assert all(map(_same_bits, ran.runs, map(alone, specs)))


def test_no_more_than_are_wanted_are_trained_at_once(tmp_path: Path) -> None:
    assert Ran(tmp_path, [_spec(seed) for seed in range(5)], Together(2, "any")).together == [2, 2, 2, 2, None]


def test_what_does_not_fit_is_trained_by_itself(tmp_path: Path, alone: Alone) -> None:
    """Of other widths, with another number of validation images, and pruned within its course."""
    wide = {"architecture": "cnn", "channels": [4, 4, 8], "hidden": 20}
    gradual = {"method": "magnitude", "keep": 50, "schedule": {"name": "gradual", "end_epoch": 1, "every_steps": 5}}
    odd = [
        _spec(2, model=wide),
        _spec(3, dataset={"name": "digits", "validation_images": 100}),
        _spec(4, pruning=gradual),
    ]
    ran = Ran(tmp_path, [_spec(0), *odd, _spec(1)])
    assert ran.together == [2, None, None, None, 2]
    assert all(map(_same_bits, ran.runs[1:-1], map(alone, odd)))


def test_one_that_fails_fails_alone(tmp_path: Path, alone: Alone) -> None:
    """So strong a penalty drives the weights out of all bounds."""
    training = {"epochs": 4, "device": "cpu", "optimizer": {"name": "sgd", "momentum": 0}, "learning_rate": 0.3}
    specs = [
        train_spec(training=training, regularization={"penalty": "l1", "strength": strength})
        for strength in (0.05, 1.0, 0.3)
    ]

    ran = Ran(tmp_path, specs, heard={1: Listener(), 2: Listener()})

    assert [type(each.failure) for each in ran.runs] == [Measured, NonFiniteLoss, type(None)]
    assert list(ran.folders[1].iterdir()) == []
    assert (ran.folders[2] / "manifest.json").is_file()
    assert ran.runs[2].before.loss == pytest.approx(alone(specs[2]).before.loss, rel=0.1)


class _Cancelled(Exception):
    pass


class _Impatient(Unpublished):
    """Wants to end at a step, or at the first question after its training."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self._step = step

    def advance(self, completed: int, total: int, unit: str) -> None:
        super().advance(completed, total, unit)
        if unit == "steps" and completed == self._step:
            raise _Cancelled

    def check(self) -> None:
        if self._step is None and "training" in self.heard:
            raise _Cancelled


@pytest.mark.parametrize("step", [2, None])
def test_one_that_leaves_does_not_hold_up_the_others(step: int | None, tmp_path: Path, alone: Alone) -> None:
    specs = [_spec(seed) for seed in range(3)]
    leaving = _Impatient(step)

    ran = Ran(tmp_path, specs, heard={1: leaving})

    assert isinstance(ran.runs[1].failure, _Cancelled)
    assert leaving.heard == ["preparing_data", "training"]
    for number in (0, 2):
        _agree(ran.runs[number], alone(specs[number]))


class _Ending(Listener):
    """The process is to end, in this phase of it."""

    def __init__(self, phase: str) -> None:
        super().__init__()
        self._phase = phase

    def advance(self, completed: int, total: int, unit: str) -> None:
        super().advance(completed, total, unit)
        if self.heard[-1] == self._phase:
            raise SystemExit


def _bare(number: int, progress: Progress, observer: Observer, memory: int = 1) -> Training:
    network = fresh(ModelSpec(channels=(2, 2, 4), hidden=8), number)
    member = Member(network, Course(TrainingSpec(epochs=1, batch_size=BATCH, seed=number)), progress, observer)
    return Training(member, PLACED.examples(DIGITS, 0, torch.device("cpu")), None, memory)


def _ending(ended: list[int], number: int) -> Steps[None]:
    """A run that sees what ends it; the second one is the reason."""
    observer = _Ending("training") if number == 1 else Listener()
    observer.enter(Phase.TRAINING)
    try:
        yield _bare(number, Progress(), observer)
    except SystemExit:
        ended.append(number)
        raise


def test_what_ends_the_process_goes_through_each() -> None:
    ended: list[int] = []
    with pytest.raises(SystemExit):
        carry_out([Whole(_ending(ended, number)) for number in range(3)], ANY)
    assert ended == [0, 1, 2]


@pytest.mark.parametrize(("memory", "together"), [(1 << 20, 3), (1 << 60, None)])
def test_no_more_are_trained_at_once_than_there_is_memory_for(memory: int, together: int | None) -> None:
    progresses = [Progress() for _ in range(3)]

    def steps(number: int) -> Steps[None]:
        yield _bare(number, progresses[number], Observer(), memory)

    carry_out([Whole(steps(number)) for number in range(3)], ANY)

    assert [(each.together, each.steps) for each in progresses] == [(together, 15)] * 3


class _Room(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A device whose memory ends when a convolution has more channels than these, networks side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._channels = channels

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default and len(args[1]) > self._channels:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return func(*args, **(kwargs or {}))


def test_where_memory_ends_all_the_same_they_are_trained_in_smaller_groups(tmp_path: Path) -> None:
    """Another process has taken some since it was looked at. Four have 64 channels in their widest layer, two 32."""
    specs = [_spec(seed, model={"architecture": "cnn", "channels": [4, 8, 16], "hidden": 10}) for seed in range(5)]
    with _Room(48):
        short = Ran(tmp_path / "short", specs)

    assert short.together == [2, 2, 2, 2, None]
    in_pairs = Ran(tmp_path / "pairs", specs, Together(2, "any"))
    assert all(map(_same_bits, short.runs, in_pairs.runs))
    assert [each.progress.steps for each in short.runs] == [each.progress.steps for each in in_pairs.runs]


def test_one_that_finds_no_memory_by_itself_fails_and_says_so(tmp_path: Path) -> None:
    with _Room(1):
        ran = Ran(tmp_path, [_spec(seed) for seed in range(2)])
    assert [type(each.failure) for each in ran.runs] == [OutOfMemory, OutOfMemory]


def test_what_ends_the_process_amid_the_work_of_one_leaves_what_is_done(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        Ran(tmp_path, [_spec(seed) for seed in range(3)], heard={0: Listener(), 1: _Ending("evaluating")})
    assert (tmp_path / "0" / "manifest.json").is_file()
    assert list((tmp_path / "1").iterdir()) == list((tmp_path / "2").iterdir()) == []


def _interrupted(folder: Path, specs: Sequence[Document], steps: Sequence[int]) -> Mapping[int, Recovery]:
    """To go on from, of runs whose power went at these steps."""
    paths = [folder / f"{number}.pt" for number in range(len(specs))]
    keeping = {number: Keeping(path, step) for number, (path, step) in enumerate(zip(paths, steps, strict=True))}
    ran = Ran(folder / "cut short", specs, heard=keeping)
    assert [type(each.failure) for each in ran.runs] == [Power] * len(specs)
    return {number: Recovery(2, (path,)) for number, path in enumerate(paths)}


def test_those_that_stand_at_one_step_go_on_together_to_the_same_bits(tmp_path: Path) -> None:
    specs = [_spec(seed, **PLANS["fine-tuned"]) for seed in range(2)]
    whole = Ran(tmp_path / "whole", specs)

    ran = Ran(tmp_path / "ran", specs, recoveries=_interrupted(tmp_path, specs, [7, 7]))

    assert ran.together == [2, 2]
    assert [len(each.steps) for each in ran.heard] == [len(each.steps) - 7 for each in whole.heard]
    assert all(map(_same_bits, ran.runs, whole.runs))


def test_those_at_other_steps_go_on_by_themselves_and_meet_at_the_next_course(tmp_path: Path, alone: Alone) -> None:
    specs = [_spec(seed, **PLANS["fine-tuned"]) for seed in range(3)]
    recoveries = dict(_interrupted(tmp_path, specs, [7, 9, 7]))
    del recoveries[2]  # which begins anew

    ran = Ran(tmp_path / "ran", specs, recoveries=recoveries)

    assert ran.together == [3, 3, 3]
    assert [each.heard.count("resumed") for each in ran.heard] == [1, 1, 0]
    for ours, spec in zip(ran.runs, specs, strict=True):
        _agree(ours, alone(spec))
