"""What each spec comes to: courses of training, and cuts between them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from app.contract.network import parameter_shapes
from app.contract.pruning import MagnitudePruning
from app.contract.spec import PruneSpec, TrainSpec, parse_spec
from tests.specs import prune_spec, train_spec
from worker.engine.plan import Course, Cut, of_time, plan
from worker.engine.pruning import Mask

SHAPES = parameter_shapes((4, 4, 8), 16)
JOB = "job_" + "a" * 32
TUNING = {"epochs": 2, "learning_rate": 0.01}


def _plan(spec: dict[str, Any]) -> list[str]:
    parsed = parse_spec(spec)
    assert isinstance(parsed, TrainSpec | PruneSpec)
    return [_told(stage) for stage in plan(parsed, SHAPES)]


def _told(stage: Course | Cut) -> str:
    if isinstance(stage, Cut):
        amount = "all" if stage.sparsity is None else f"{stage.sparsity:.3f}"
        return f"cut {amount}{' and rewind' if stage.rewind else ''}{'' if stage.last else ' …'}"
    number = "" if stage.round is None else f" {stage.round}"
    kept = "" if stage.keep_epoch is None else f" keep {stage.keep_epoch}"
    return f"{stage.name}{number}{' gradually' if stage.gradual else ''}{kept}"


MAGNITUDE = {"method": "magnitude", "sparsity": 0.875}
ROUNDS = {"name": "iterative", "rounds": 3}


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        ({"pruning": None}, ["training"]),
        ({"pruning": MAGNITUDE}, ["training", "cut all"]),
        ({"pruning": MAGNITUDE, "fine_tuning": TUNING}, ["training", "cut all", "fine_tuning"]),
        (
            {"pruning": {**MAGNITUDE, "schedule": {"name": "one-shot", "when": "before-training"}}},
            ["cut all", "training"],
        ),
        (
            {"pruning": {**MAGNITUDE, "schedule": ROUNDS}, "fine_tuning": TUNING},
            [
                "training",
                "cut 0.500 …",
                "fine_tuning 1",
                "cut 0.750 …",
                "fine_tuning 2",
                "cut all",
                "fine_tuning 3",
            ],
        ),
        (
            {"pruning": {**MAGNITUDE, "schedule": {**ROUNDS, "rounds": 2, "rewind_epoch": 1}}, "fine_tuning": TUNING},
            ["training keep 1", "cut 0.646 and rewind …", "fine_tuning 1", "cut all and rewind", "fine_tuning 2"],
        ),
        (
            {"pruning": {"method": "threshold", "schedule": {**ROUNDS, "rounds": 2}}, "fine_tuning": TUNING},
            ["training", "cut all …", "fine_tuning 1", "cut all", "fine_tuning 2"],
        ),
        (
            {"pruning": {**MAGNITUDE, "schedule": {"name": "gradual", "end_epoch": 1}}, "fine_tuning": TUNING},
            ["training gradually", "fine_tuning"],
        ),
    ],
)
def test_a_train_spec(overrides: dict[str, Any], stages: list[str]) -> None:
    assert _plan(train_spec(**overrides)) == stages


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        ({}, ["cut all"]),
        ({"fine_tuning": TUNING}, ["cut all", "fine_tuning"]),
        (
            {"pruning": {**MAGNITUDE, "schedule": {"name": "gradual", "end_epoch": 2}}, "fine_tuning": TUNING},
            ["fine_tuning gradually"],
        ),
    ],
)
def test_a_prune_spec(overrides: dict[str, Any], stages: list[str]) -> None:
    assert _plan(prune_spec(JOB, **overrides)) == stages


def test_rounds_that_keep_a_number_leave_the_same_share_each() -> None:
    total = sum(_size(shape) for shape in SHAPES.values())
    pruning = {"method": "magnitude", "keep": total // 16, "schedule": {"name": "iterative", "rounds": 4}}

    cuts = [stage for stage in _plan(train_spec(pruning=pruning, fine_tuning=TUNING)) if stage.startswith("cut")]

    assert cuts == ["cut 0.500 …", "cut 0.750 …", "cut 0.875 …", "cut all"]


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for each in shape:
        size *= each
    return size


def test_no_two_courses_draw_the_same_numbers() -> None:
    spec = parse_spec(train_spec(pruning={**MAGNITUDE, "schedule": ROUNDS}, fine_tuning=TUNING))
    assert isinstance(spec, TrainSpec)

    streams = [stage.stream for stage in plan(spec, SHAPES) if isinstance(stage, Course)]

    assert len(set(streams)) == len(streams) == 4


def test_only_the_training_has_the_penalty() -> None:
    spec = parse_spec(train_spec(regularization={"penalty": "l1"}, fine_tuning=TUNING))
    assert isinstance(spec, TrainSpec)

    told = {stage.name: stage.regularization for stage in plan(spec, SHAPES) if isinstance(stage, Course)}

    assert told == {"training": spec.regularization, "fine_tuning": None}


def _sparse(share: float) -> Mask:
    """Of the first entries of each tensor, so many are gone."""
    return Mask(
        {
            name: (torch.arange(math.prod(shape)) >= round(share * math.prod(shape))).view(shape)
            for name, shape in SHAPES.items()
        }
    )


def test_schedules_go_on_from_what_the_source_has_lost_already() -> None:
    mask = _sparse(0.5)
    lost = 1 - sum(mask.kept.values()) / sum(math.prod(shape) for shape in SHAPES.values())
    spec = parse_spec(prune_spec(JOB, pruning={**MAGNITUDE, "schedule": {**ROUNDS, "rounds": 2}}, fine_tuning=TUNING))
    assert isinstance(spec, PruneSpec)
    first = plan(spec, SHAPES, mask)[0]
    assert isinstance(first, Cut)
    assert first.sparsity == pytest.approx(1 - math.sqrt((1 - lost) * 0.125))

    schedule = {"name": "gradual", "end_epoch": 1}
    spec = parse_spec(prune_spec(JOB, pruning={**MAGNITUDE, "schedule": schedule}, fine_tuning=TUNING))
    assert isinstance(spec, PruneSpec)
    (course,) = plan(spec, SHAPES, mask)
    assert isinstance(course, Course)
    assert isinstance(spec.pruning, MagnitudePruning)
    reached = [of_time(spec.pruning, SHAPES, course.begun, time) for time in (0, 0.5, 1)]
    assert reached == pytest.approx([lost, 0.875 - (0.875 - lost) / 8, 0.875])


def test_a_source_that_has_lost_more_than_is_asked_for_loses_nothing_in_any_round() -> None:
    spec = parse_spec(prune_spec(JOB, pruning={**MAGNITUDE, "schedule": ROUNDS}, fine_tuning=TUNING))
    assert isinstance(spec, PruneSpec)
    cuts = [stage for stage in plan(spec, SHAPES, _sparse(0.95)) if isinstance(stage, Cut)]
    assert [cut.sparsity for cut in cuts] == [0.875, 0.875, None]
