"""What a spec may say of teachers, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from app.contract.datasets import DATASETS, DatasetName
from app.contract.explain import explain
from app.contract.reference import CheckpointRef
from app.contract.spec import (
    SPEC,
    ModelSpec,
    PruneSpec,
    TrainSpec,
    all_macs,
    checkpoints,
    parse_spec,
    refuse_misfit,
    taught,
)
from tests.specs import Document, prune_spec, train_spec

JOB, OTHER = "job_" + "0" * 32, "job_" + "1" * 32
WIDE = ModelSpec(channels=(512, 512, 512), hidden=4096)
ITERATIVE = {"method": "magnitude", "sparsity": 0.5, "schedule": {"name": "iterative", "rounds": 4}}
IMAGES = 1_437
DIGITS, MNIST = DATASETS[DatasetName.DIGITS], DATASETS[DatasetName.MNIST]


def _course(job: str, epochs: int = 1, **more: Any) -> Document:
    return {"epochs": epochs, "distillation": {"teacher": {"job_id": job}, **more}}


def _parsed(document: Document) -> TrainSpec | PruneSpec:
    spec = parse_spec(document)
    assert isinstance(spec, TrainSpec | PruneSpec)
    return spec


def test_a_teacher_is_all_that_distillation_needs() -> None:
    told = _parsed(train_spec(training=_course(JOB))).model_dump(mode="json")["training"]["distillation"]

    teacher = {"job_id": JOB, "artifact": "model.safetensors"}
    assert told == {"teacher": teacher, "temperature": 3.0, "weight": 0.8}


@pytest.mark.parametrize(
    ("distillation", "pointer", "code"),
    [
        ({}, "/teacher", "missing"),
        ({"teacher": None}, "/teacher", "model_type"),
        ({"teacher": {"job_id": "job_1"}}, "/teacher/job_id", "string_pattern_mismatch"),
        ({"teacher": {"job_id": JOB, "artifact": "model.pt"}}, "/teacher/artifact", "unknown_value"),
        ({"teacher": {"job_id": JOB}, "temperature": 0.99}, "/temperature", "greater_than_equal"),
        ({"teacher": {"job_id": JOB}, "temperature": 100.1}, "/temperature", "less_than_equal"),
        ({"teacher": {"job_id": JOB}, "weight": 0}, "/weight", "greater_than"),
        ({"teacher": {"job_id": JOB}, "weight": 1.01}, "/weight", "less_than_equal"),
        ({"teacher": {"job_id": JOB}, "alpha": 1}, "/alpha", "unknown_field"),
    ],
    ids=str,
)
@pytest.mark.parametrize("course", ["training", "fine_tuning"])
def test_what_no_teacher_can_do_is_refused(course: str, distillation: Document, pointer: str, code: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_spec(train_spec(**{course: {"distillation": distillation}}))

    [error] = explain(caught.value, SPEC)
    assert (error.pointer, error.code) == (f"/{course}/distillation{pointer}", code)


def test_the_courses_with_teachers_are_told_with_the_epochs_of_all_rounds() -> None:
    both = _parsed(train_spec(training=_course(JOB, 3), fine_tuning=_course(OTHER, 2), pruning=ITERATIVE))
    tuned = _parsed(prune_spec(JOB, fine_tuning=_course(OTHER, 2)))

    assert [(each.pointer, each.teacher.job_id, each.epochs) for each in taught(both)] == [
        ("/training/distillation/teacher", JOB, 3),
        ("/fine_tuning/distillation/teacher", OTHER, 8),
    ]
    assert [(each.pointer, each.epochs) for each in taught(tuned)] == [("/fine_tuning/distillation/teacher", 2)]
    assert taught(_parsed(train_spec(fine_tuning={}))) == ()


def test_all_checkpoints_that_a_run_reads_are_told_once() -> None:
    dense, model = (CheckpointRef(job_id=JOB, artifact=f"{name}.safetensors") for name in ("dense", "model"))  # type: ignore[arg-type]
    continued = train_spec(initial={"job_id": JOB}, training=_course(OTHER), fine_tuning=_course(OTHER))

    assert checkpoints(_parsed(prune_spec(JOB, fine_tuning=_course(JOB)))) == (dense, model)
    assert checkpoints(_parsed(continued)) == (model, CheckpointRef(job_id=OTHER))
    assert checkpoints(_parsed(train_spec())) == ()


def test_a_teacher_costs_one_look_at_every_image_that_is_trained_on() -> None:
    spec = _parsed(train_spec(training=_course(JOB, 3), fine_tuning=_course(OTHER, 2), pruning=ITERATIVE))
    first, second = ModelSpec(channels=(1, 2, 3), hidden=4), ModelSpec()
    teachers = {CheckpointRef(job_id=JOB): first, CheckpointRef(job_id=OTHER): second}

    more = all_macs(spec, ModelSpec(), DIGITS, teachers) - all_macs(spec, ModelSpec(), DIGITS)

    assert more == IMAGES * (3 * first.macs() + 4 * 2 * second.macs())


def test_too_much_work_of_a_teacher_is_told_at_the_field_that_names_the_dearest() -> None:
    spec = _parsed(train_spec(dataset={"name": "mnist"}, training=_course(JOB, 40), fine_tuning=_course(OTHER, 50)))
    student, refs = ModelSpec(), (CheckpointRef(job_id=JOB), CheckpointRef(job_id=OTHER))

    refuse_misfit(spec, student, MNIST)
    refuse_misfit(spec, student, MNIST, {refs[1]: WIDE})
    with pytest.raises(PydanticCustomError, match="take fewer epochs or a smaller teacher") as caught:
        refuse_misfit(spec, student, MNIST, dict.fromkeys(refs, WIDE))

    pointer = "/fine_tuning/distillation/teacher"
    assert (caught.value.type, (caught.value.context or {})["pointer"]) == ("too_much_work", pointer)
