"""What a worker lacks, told before the start or when it shows, with what to do about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.contract.spec import ModelSpec
from tests.specs import Document, train_spec
from tests.worker.conftest import Read, Submit
from worker.engine.errors import OutOfMemory
from worker.engine.resources import refuse_what_does_not_fit

# Room for the reserve that a run asks for, and not much beside it.
ENOUGH_TO_START = 40


def _run_on_small_disk(database_url: str, folder: Path, job_id: str, *, megabytes: int, fill: str) -> str:
    """The names of the files that are left on a disk of this size, which nobody else sees."""
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs "$1" && shift && exec "$@"'
    run = [sys.executable, "-m", "tests.worker.full_disk", database_url, folder, job_id, fill]
    # Root of a user namespace would lack root's way to the database's socket; anybody else needs one to mount at all.
    namespaces = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    command = ["unshare", *namespaces, "sh", "-c", mount, "sh", folder, *run]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _error(read: Read, job_id: str) -> Document:
    row = read(job_id)
    assert row.error is not None
    assert (row.status, row.error["code"], row.error["retryable"]) == ("failed", "disk_full", True)
    return row.error


def test_a_disk_that_is_too_small_is_told_before_the_start(
    database_url: str, submit: Submit, read: Read, tmp_path: Path
) -> None:
    job_id = submit(train_spec())
    assert _run_on_small_disk(database_url, tmp_path, job_id, megabytes=8, fill="no") == ""
    error = _error(read, job_id)
    assert "needs about 0.03 GB of disk and the artifact folder has 0.01 GB free" in error["message"]
    assert error["details"]["phase"] == "preparing_data"


def test_a_disk_that_fills_up_costs_the_checkpoints_then_the_job_and_leaves_nothing(
    database_url: str, submit: Submit, read: Read, tmp_path: Path
) -> None:
    job_id = submit(train_spec(training={"epochs": 40}))
    left = _run_on_small_disk(database_url, tmp_path, job_id, megabytes=ENOUGH_TO_START, fill="yes")
    error = _error(read, job_id)
    kept = [checkpoint["name"] for checkpoint in read(job_id).checkpoints]
    assert kept
    assert left.split() == sorted([*kept, "somebody-elses"])
    assert "no space left for the artifacts" in error["message"]
    assert error["details"]["phase"] == "reporting"
    assert any("checkpoint not written" in line for line in error["details"]["log"])
    assert len(error["details"]["log"]) <= 20


def test_a_job_that_does_not_fit_into_memory_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"needs about [\d.]+ GB of memory and the worker has [\d.]+ GB free: take a"):
        refuse_what_does_not_fit(ModelSpec(), 100_000_000, torch.device("cpu"), tmp_path)


def test_the_networks_that_people_train_fit(tmp_path: Path) -> None:
    refuse_what_does_not_fit(ModelSpec(), 100, torch.device("cpu"), tmp_path)
