"""Which courses can be trained together, and where they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.contract.pruning import MagnitudePruning
from tests.engine.together import course
from tests.specs import Document
from worker.engine.together import misfit, way

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
L1: Document = {"penalty": "l1"}
DISTILLED: Document = {"teacher": {"job_id": "job_" + "a" * 32, "artifact": "model.safetensors"}}


def test_seeds_rates_and_strengths_may_differ() -> None:
    assert misfit([course(seed, L1) for seed in range(4)]) is None


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"epochs": 3}, "epochs"),
        ({"batch_size": 7}, "batch_size"),
        ({"optimizer": {"name": "adamw"}}, "optimizer"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"random_shift": 1}, "random_shift"),
        ({"learning_rate_schedule": "cosine"}, "learning_rate_schedule"),
        ({"warmup_epochs": 1}, "warmup_epochs"),
        ({"select": "best"}, "select"),
    ],
    ids=str,
)
def test_other_settings_do_not_fit_together(changes: Document, name: str) -> None:
    assert misfit([course(0), course(1), course(2, **changes)]) == f"member 2 differs from member 0 in {name}"


def test_penalties_of_two_kinds_do_not_fit_together() -> None:
    for other in (None, {"penalty": "l2"}):
        assert misfit([course(0, L1), course(1, other)]) == "member 1 has another kind of penalty than member 0"


def test_teachers_narrow_numbers_and_prunings_within_the_course_are_for_one_alone() -> None:
    bf16 = [course(seed, precision="bf16") for seed in range(2)]
    taught = [course(seed, distillation=DISTILLED) for seed in range(2)]
    gradual = MagnitudePruning.model_validate(
        {"method": "magnitude", "keep": 50, "schedule": {"name": "gradual", "end_epoch": 1, "every_steps": 1}},
        strict=False,
    )

    assert misfit(bf16) == "member 0 computes in bf16"
    assert misfit(taught) == "member 0 learns from a teacher"
    assert misfit([replace(course(0), gradual=gradual)] * 2) == "member 0 is pruned within its course"


def test_a_gpu_trains_them_together_and_a_cpu_does_not() -> None:
    courses = [course(seed, L1) for seed in range(4)]

    assert way(courses, CUDA).together
    assert not way(courses, CPU).together
    assert way(courses, CPU, "any").together
    assert not way(courses[:1], CUDA).together
    assert way([course(0), course(1, L1)], CUDA) == (False, "member 1 has another kind of penalty than member 0")
