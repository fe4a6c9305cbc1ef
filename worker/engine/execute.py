"""Carries out a plan on a network: prunes, measures, and asks for its courses of training; from the beginning, or from
where another attempt was."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from app.contract.reference import CheckpointRef
from app.contract.status import Phase
from worker.engine.data import Dataset
from worker.engine.evaluate import evaluate
from worker.engine.makers import Making
from worker.engine.model import Cnn
from worker.engine.observer import Observer
from worker.engine.placed import Placed
from worker.engine.plan import Course, Cut, Stage
from worker.engine.progress import Progress, state_of
from worker.engine.pruning import Mask, needs_gradients, prune, thresholds
from worker.engine.pruning.gradients import gradients_for
from worker.engine.recalibrate import recalibrate
from worker.engine.resume import Origin, TrainingState
from worker.engine.together import Member
from worker.engine.train import Examples

T = TypeVar("T")

BEFORE, PRUNED, AFTER = "before_pruning", "after_pruning", "after_fine_tuning"
"""The points of a run at which it is measured on the test images."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network on its device, and what it is trained with and measured on."""

    network: Cnn
    dataset: Dataset
    validation_images: int
    device: torch.device
    teachers: Mapping[CheckpointRef, nn.Module]
    """On the device too, by what the courses call them."""
    placed: Placed

    def teacher(self, course: Course) -> nn.Module | None:
        distillation = course.settings.distillation
        return None if distillation is None else self.teachers[distillation.teacher]

    def examples(self) -> Examples:
        """The training images, without those for validation."""
        return self.placed.examples(self.dataset, self.validation_images, self.device)

    def test(self) -> tuple[Tensor, Tensor]:
        """Images and labels."""
        return self.placed.test(self.dataset, self.device)


class Training(NamedTuple):
    """A course that a run has come to, and waits for."""

    member: Member
    examples: Examples
    teacher: nn.Module | None
    memory: int
    """Bytes that it takes, roughly, beside what is there anyway."""

    @property
    def observer(self) -> Observer:
        return self.member.observer


Awaited: TypeAlias = Training | Making
Steps: TypeAlias = Generator[Awaited, Any, T]
"""A run: it yields each training that is to be done before it goes on, and what it makes files of, which it is sent, or
None: then it makes them itself. What ended either early it is told by `throw`."""


def execute(
    stages: Sequence[Stage],
    candidate: Candidate,
    progress: Progress,
    observer: Observer,
    origin: Origin,
    resumed: TrainingState | None,
    memory: int,
) -> Steps[None]:
    """Do what the stages say to the candidate's network, and note in `progress` what came of it. `resumed` is the
    state that `progress` is of; `memory` is what each training takes.

    Afterwards the network is what is to be published, with zeros wherever the mask holds. `accuracies` has BEFORE and,
    when something was pruned, PRUNED, and AFTER when training followed.
    """
    examples = candidate.examples() if any(map(_needs_examples, stages)) else None
    for number, stage in enumerate(stages):
        if number < progress.stage:
            continue
        progress.stage = number
        if isinstance(stage, Cut):
            _cut(stage, candidate, examples, progress, observer)
            continue
        assert examples is not None
        observer.enter(stage.phase)
        of_this = resumed if resumed is not None and resumed.progress.stage == number else None
        member = Member(candidate.network, stage, progress, observer, origin, of_this)
        yield Training(member, examples, candidate.teacher(stage), memory)
        resumed = None
        if stage.gradual is not None:
            _end_gradual(stage, candidate, examples, progress, observer)
    _conclude(stages, candidate, progress, observer)


def _needs_examples(stage: Stage) -> bool:
    if isinstance(stage, Course):
        return True
    return stage.pruning.recalibrate_batchnorm or needs_gradients(stage.pruning)


def _cut(stage: Cut, candidate: Candidate, examples: Examples | None, progress: Progress, observer: Observer) -> None:
    network, pruning = candidate.network, stage.pruning
    is_first = progress.dense is None
    if is_first:
        progress.dense = state_of(network)
        _measure(network, BEFORE, candidate, progress, observer)
    observer.enter(Phase.PRUNING)
    # On the CPU, where all that ranks and sums up comes out the same each time.
    state = state_of(network)
    mask = progress.mask or Mask.full({name: state[name] for name, _ in network.named_parameters()})
    batches = (
        gradients_for(pruning, network, examples.images, examples.labels, observer.check)
        if examples is not None
        else ()
    )
    limits = thresholds(pruning, state, mask)
    progress.thresholds = limits if is_first or limits == progress.thresholds else {}
    progress.mask = prune(pruning, state, mask, sparsity=stage.sparsity, gradients=batches)
    network.load_state_dict(progress.mask.apply(state))
    if examples is not None and pruning.recalibrate_batchnorm:
        recalibrate(network, examples.images, observer.check)
    if stage.last:
        _measure(network, PRUNED, candidate, progress, observer)
    if stage.rewind:
        assert progress.early is not None  # the training has kept it
        network.load_state_dict(progress.mask.apply(progress.early))
        if examples is not None and pruning.recalibrate_batchnorm:
            recalibrate(network, examples.images, observer.check)


def _end_gradual(
    stage: Course, candidate: Candidate, examples: Examples, progress: Progress, observer: Observer
) -> None:
    """What was not to interrupt the training."""
    assert stage.gradual is not None
    assert progress.dense is not None
    if stage.gradual.recalibrate_batchnorm:
        recalibrate(candidate.network, examples.images, observer.check)
    dense = copy.deepcopy(candidate.network)
    dense.load_state_dict(progress.dense)
    _measure(dense, BEFORE, candidate, progress, observer)
    _measure(candidate.network, PRUNED, candidate, progress, observer)


def _conclude(stages: Sequence[Stage], candidate: Candidate, progress: Progress, observer: Observer) -> None:
    network, last = candidate.network, stages[-1]
    if progress.mask is not None:  # held throughout; this makes of −0 and 0 the one zero
        network.load_state_dict(progress.mask.apply(state_of(network)))
    if BEFORE not in progress.accuracies:
        _measure(network, BEFORE, candidate, progress, observer)
    elif isinstance(last, Course) and last.gradual is None:
        _measure(network, AFTER, candidate, progress, observer)


def _measure(network: nn.Module, point: str, candidate: Candidate, progress: Progress, observer: Observer) -> None:
    observer.enter(Phase.EVALUATING)
    measured = evaluate(network, *candidate.test(), observer)
    progress.accuracies[point], progress.predictions[point] = measured
    observer.record("evaluated", {"stage": point} | measured.accuracy.model_dump(mode="json"))
