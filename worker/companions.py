"""Which members of a sweep a worker claims along with one, to train them at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.contract.datasets import DATASETS, DatasetFacts
from app.contract.network import DataShape
from app.contract.spec import DatasetSpec, TrainSpec, parse_stored
from app.db import jobs, workers
from app.db.attempts import Claim
from app.db.turns import Waiting
from worker.engine import device
from worker.engine.errors import DeviceUnavailable
from worker.engine.lockstep import Together
from worker.engine.plan import Course, plan
from worker.engine.resources import memory_beside, most_together
from worker.engine.together import way

CRASHES = 1
"""After more of them a member is run by itself, so that one that takes its process along costs others no more."""


@dataclass(frozen=True)
class Party:
    most: int
    """Beside the first."""
    joins: Callable[[Waiting], bool]
    sharers: int
    """Other workers with such a device that hold no lease."""


def companions(session: Session, first: Claim, together: Together, worker: str) -> Party | None:
    """Who may be trained with `first`, and how many of them this worker has room for; None when it goes alone."""
    spec = _train_spec(first.spec)
    if first.sweep_id is None or together.most < 2 or first.crashes > CRASHES or spec is None:
        return None
    shape = _shape(session, spec.dataset, first.tenant)
    try:
        on = device.choose(spec.training.device)
    except DeviceUnavailable:
        return None
    if shape is None or not way([_course(spec, shape)] * 2, on, together.where).together:
        return None

    def joins(waiting: Waiting) -> bool:
        other = _train_spec(waiting.spec)
        if other is None or waiting.crashes > CRASHES or (other.model, other.dataset) != (spec.model, spec.dataset):
            return False
        # Checkpoints are numbered: those of one number, of members that were trained together, are of one step.
        if [each.name for each in waiting.checkpoints[:1]] != [each.name for each in first.checkpoints[:1]]:
            return False
        return way([_course(spec, shape), _course(other, shape)], on, together.where).together

    stages = plan(spec, spec.model.shapes(shape.ends))
    room = most_together(memory_beside(spec.model, stages, on, shape), on)
    return Party(min(together.most, room) - 1, joins, workers.count_idle(session, device=on.type, beside=worker))


def _train_spec(document: dict[str, Any]) -> TrainSpec | None:
    """None of what is no training, or no spec at all, which its own attempt will tell."""
    try:
        spec = parse_stored(document)
    except ValidationError:
        return None
    return spec if isinstance(spec, TrainSpec) else None


def _course(spec: TrainSpec, shape: DataShape) -> Course:
    """Its first one."""
    return next(stage for stage in plan(spec, spec.model.shapes(shape.ends)) if isinstance(stage, Course))


def _shape(session: Session, dataset: DatasetSpec, tenant: str) -> DataShape | None:
    """None of a data set that is gone, which its own attempt will tell."""
    if dataset.name is not None:
        return DATASETS[dataset.name].shape
    assert dataset.id is not None  # one of the two
    row = jobs.get(session, dataset.id, tenant)
    return DatasetFacts.model_validate(row.result["facts"]).shape if row is not None and row.result else None
