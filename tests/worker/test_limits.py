"""What a worker lacks, told before the start or when it shows, with what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.contract.network import DataShape
from app.contract.spec import ModelSpec
from app.contract.training import TrainingSpec
from tests.small_disk import run_on_small_disk
from tests.specs import Document, train_spec
from tests.worker.conftest import Read, Submit
from worker.engine.errors import OutOfMemory
from worker.engine.plan import Course
from worker.engine.resources import memory_needed, refuse_what_does_not_fit

PROGRAM = "tests.worker.full_disk"

# Room for the reserve that a run asks for, and not much beside it.
ENOUGH_TO_START = 40


def _error(read: Read, job_id: str) -> Document:
    row = read(job_id)
    assert row.error is not None
    assert (row.status, row.error["code"], row.error["retryable"]) == ("failed", "disk_full", True)
    return row.error


@pytest.mark.host
def test_a_disk_that_fills_up_costs_the_checkpoints_then_the_job_and_the_next_is_told_before_its_start(
    database_url: str, submit: Submit, read: Read, tmp_path: Path
) -> None:
    job_id, next_id = submit(train_spec(training={"epochs": 5})), submit(train_spec())
    left = run_on_small_disk(tmp_path, PROGRAM, database_url, tmp_path, job_id, next_id, megabytes=ENOUGH_TO_START)

    error = _error(read, job_id)
    kept = [checkpoint["name"] for checkpoint in read(job_id).checkpoints]
    assert kept
    assert left.split() == sorted([*kept, "somebody-elses"])
    assert "no space left for the artifacts" in error["message"]
    assert error["details"]["phase"] == "reporting"
    assert any("checkpoint not written" in line for line in error["details"]["log"])
    assert len(error["details"]["log"]) <= 20
    error = _error(read, next_id)
    assert "needs about 0.03 GB of disk and the artifact folder has 0.00 GB free" in error["message"]
    assert error["details"]["phase"] == "preparing_data"


def _training(batch_size: int) -> tuple[Course]:
    return (Course(TrainingSpec.model_construct(batch_size=batch_size)),)


def test_a_job_that_does_not_fit_into_memory_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"needs about [\d.]+ GB of memory and the worker has [\d.]+ GB free: take a"):
        refuse_what_does_not_fit(ModelSpec(), _training(100_000_000), torch.device("cpu"), tmp_path)


def test_teachers_are_counted_with_their_weights_and_what_a_batch_becomes_in_them(tmp_path: Path) -> None:
    stages, teacher = _training(100), ModelSpec(channels=(512, 512, 512), hidden=4096)
    more = memory_needed(ModelSpec(), stages, [teacher]) - memory_needed(ModelSpec(), stages)
    again = memory_needed(ModelSpec(), stages, [teacher, teacher]) - memory_needed(ModelSpec(), stages, [teacher])

    assert again == 4 * teacher.parameters()
    assert more > again + 4 * 100 * 512 * 28 * 28
    with pytest.raises(OutOfMemory, match="take a smaller batch_size, a smaller teacher or smaller widths"):
        refuse_what_does_not_fit(ModelSpec(), stages, torch.device("cpu"), tmp_path, teachers=[teacher] * 10_000)


def test_what_the_gradient_by_wide_weights_takes_on_a_gpu_is_counted() -> None:
    wide, small = ModelSpec(channels=(512, 512, 512), hidden=8), DataShape(height=8, width=8)
    on_cpu, on_gpu = (memory_needed(wide, _training(1_000), shape=small, captured=each) for each in (False, True))
    assert on_gpu - on_cpu > 4 * 1_000 * 512 * 512 * 9


def test_the_networks_that_people_train_fit(tmp_path: Path) -> None:
    refuse_what_does_not_fit(ModelSpec(), _training(100), torch.device("cpu"), tmp_path)
