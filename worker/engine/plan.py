"""A spec as what is done one after another: courses of training, and cuts between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from app.contract.pruning import Amount, ChannelPruning, Gradual, Iterative, OneShot, Pruning, Scored, eligible
from app.contract.spec import PruneSpec, TrainSpec
from app.contract.status import Phase
from app.contract.training import FineTuningSpec, Regularization
from worker.engine.pruning import Mask

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Course:
    """A training: of new weights, or of what a mask has left."""

    settings: FineTuningSpec
    regularization: Regularization | None = None
    name: Literal["training", "fine_tuning"] = "training"
    round: int | None = None
    gradual: Scored | None = None
    """A pruning that happens within this course, by its gradual schedule."""
    begun: float = 0.0
    """Share of what that pruning may touch that an earlier job has pruned."""
    keep_epoch: int | None = None
    """The weights after this epoch are kept for rewinding; 0 before the first."""

    @property
    def phase(self) -> Phase:
        return Phase.TRAINING if self.name == "training" else Phase.FINE_TUNING

    @property
    def schedule(self) -> Gradual | None:
        found = self.gradual.schedule if self.gradual is not None else None
        return found if isinstance(found, Gradual) else None

    @property
    def stream(self) -> str:
        """What its random numbers are named after: no two courses of a run draw the same."""
        if self.name == "training":
            return ""
        return "/fine-tuning" if self.round is None else f"/fine-tuning/{self.round}"


@dataclass(frozen=True)
class Cut:
    """A pruning between two courses, or after the last."""

    pruning: Pruning
    sparsity: float | None = None
    """Share of what is eligible, in all rounds but the last; None is the spec's own amount."""
    rewind: bool = False
    """What is left goes back to the weights that the training kept."""
    last: bool = True


Stage: TypeAlias = Course | Cut


def plan(spec: TrainSpec | PruneSpec, shapes: Shapes, mask: Mask | None = None) -> tuple[Stage, ...]:
    """What a run of `spec` does to a network of these shapes, in order. `mask` is what an earlier job has left of it:
    schedules go on from there."""
    if isinstance(spec, PruneSpec):
        return _pruned(spec.pruning, spec.fine_tuning, shapes, _begun(spec.pruning, mask))
    pruning = spec.pruning
    schedule = pruning.schedule if pruning is not None else None
    training = Course(
        spec.training,
        spec.regularization,
        gradual=_gradual(pruning),
        keep_epoch=schedule.rewind_epoch if isinstance(schedule, Iterative) else None,
    )
    if pruning is None:
        return (training,)
    if isinstance(schedule, OneShot) and schedule.when == "before-training":
        return (Cut(pruning), training)
    if isinstance(schedule, Gradual):
        return (training, *_tuned(spec.fine_tuning))
    return (training, *_pruned(pruning, spec.fine_tuning, shapes, begun=0.0))


def _pruned(pruning: Pruning, tuning: FineTuningSpec | None, shapes: Shapes, begun: float) -> tuple[Stage, ...]:
    schedule = pruning.schedule
    if isinstance(schedule, Gradual):
        assert tuning is not None  # the spec refuses it
        return (Course(tuning, name="fine_tuning", gradual=_gradual(pruning), begun=begun),)
    if isinstance(schedule, OneShot):
        return (Cut(pruning), *_tuned(tuning))
    assert tuning is not None
    stages: list[Stage] = []
    for number in range(1, schedule.rounds + 1):
        last = number == schedule.rounds
        sparsity = None if last else _of_round(pruning, shapes, begun, number / schedule.rounds)
        stages.append(Cut(pruning, sparsity, rewind=schedule.rewind_epoch is not None, last=last))
        stages.append(Course(tuning, name="fine_tuning", round=number))
    return tuple(stages)


def _gradual(pruning: Pruning | None) -> Scored | None:
    return pruning if isinstance(pruning, Amount) and isinstance(pruning.schedule, Gradual) else None


def _tuned(tuning: FineTuningSpec | None) -> tuple[Stage, ...]:
    return () if tuning is None else (Course(tuning, name="fine_tuning"),)


def _begun(pruning: Pruning, mask: Mask | None) -> float:
    """Share of what the pruning may touch that the mask drops. Of channels, whose amounts are of units, 0."""
    if mask is None or not isinstance(pruning, Amount):
        return 0.0
    entries = [keep for name, keep in mask.items() if eligible(pruning, name)]
    return sum(int((~keep).sum()) for keep in entries) / sum(keep.numel() for keep in entries)


def _of_round(pruning: Pruning, shapes: Shapes, begun: float, share: float) -> float | None:
    """Each round leaves the same share of what the one before it left. None for methods without an amount."""
    if not isinstance(pruning, Amount | ChannelPruning):
        return None
    final = final_sparsity(pruning, shapes)
    if final <= begun:
        return final
    left: float = (1 - begun) * ((1 - final) / (1 - begun)) ** share
    return 1 - left


def of_time(pruning: Scored, shapes: Shapes, begun: float, share: float) -> float:
    """The sparsity that gradual pruning has reached after this share of its time (Zhu & Gupta 2017, equation 1)."""
    return begun + (final_sparsity(pruning, shapes) - begun) * (1 - (1 - share) ** 3)


def final_sparsity(pruning: Scored | ChannelPruning, shapes: Shapes) -> float:
    """Share of the eligible entries that goes; of the units, in the layer that loses the largest share of them."""
    if pruning.sparsity is not None:
        return pruning.sparsity
    if isinstance(pruning, Amount):
        total = sum(math.prod(shape) for name, shape in shapes.items() if eligible(pruning, name))
        return pruning.pruned_of(total) / total
    assert pruning.keep is not None
    kept = (*pruning.keep.channels, pruning.keep.hidden)
    widths = (shapes[f"{layer}.weight"][0] for layer in ("layer1.0", "layer2.0", "layer3.0", "fc1"))
    return max(1 - k / width for k, width in zip(kept, widths, strict=True))
