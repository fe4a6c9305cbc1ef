"""An import's file: read as it arrived, and gone when nobody needs it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.torch import save
from sqlalchemy.orm import Session, sessionmaker

from app.contract.spec import parse_stored
from app.core.errors import UploadNotKept
from app.core.ids import new_job_id
from app.db import jobs
from app.db.jobs import artifacts
from app.queue import Queue
from app.services.jobs import retry
from app.storage import sha256_of
from app.sweeping import ORPHANED_SECONDS, Round
from tests.engine.uploads import endless, state_dict, torch_file
from tests.limits import NO_LIMITS
from tests.waiting import wait_until
from tests.worker.conftest import Read
from worker.runner import Runtime, run_job


def _uploaded(runtime: Runtime, content: bytes, format: str = "torch") -> str:
    """The id of a queued import of this file."""
    job_id = new_job_id()
    runtime.store.incoming(job_id).write_bytes(content)
    runtime.store.accept(job_id)
    sha256 = sha256_of(runtime.store.upload(job_id))
    spec = parse_stored({"kind": "import", "format": format, "size": len(content), "sha256": sha256})
    with runtime.sessions.begin() as session:
        jobs.insert_job(
            session,
            job_id=job_id,
            tenant="t",
            spec=spec.model_dump(mode="json"),
            spec_version=1,
            retention_days=1,
        )
    return job_id


@pytest.fixture
def sweep(runtime: Runtime, broker_url: str) -> Iterator[Round]:
    queue = Queue(broker_url)
    yield Round(runtime.sessions, queue, runtime.store, 3, NO_LIMITS.max_running)
    queue.close()


def test_an_import_publishes_a_checkpoint_and_its_upload_goes(runtime: Runtime, read: Read, sweep: Round) -> None:
    job_id = _uploaded(runtime, torch_file(state_dict()))

    run_job(job_id, runtime)

    row = read(job_id)
    assert (row.status, row.error) == ("succeeded", None)
    assert row.result is not None
    assert (row.result["channels"], row.result["hidden"]) == ([2, 3, 4], 5)
    with runtime.sessions() as session:
        found = {artifact.name for artifact in artifacts(session, job_id)}
    assert found == {"model.safetensors", "model.pt", "manifest.json"}
    assert runtime.store.upload(job_id).exists()
    sweep.run()
    assert not runtime.store.upload(job_id).exists()


def test_a_wrong_file_fails_its_job_for_good(
    runtime: Runtime, read: Read, sweep: Round, sessions: sessionmaker[Session]
) -> None:
    job_id = _uploaded(runtime, save(state_dict(fc2__bias=None)), "safetensors")

    run_job(job_id, runtime)

    row = read(job_id)
    assert row.error is not None
    assert (row.status, row.error["code"], row.error["details"]["phase"]) == (
        "failed",
        "invalid_checkpoint",
        "importing",
    )
    assert "missing 'fc2.bias'" in row.error["message"]
    with sessions() as session, pytest.raises(UploadNotKept, match="upload one anew"):
        retry(session, "t", job_id, NO_LIMITS)
    sweep.run()
    assert runtime.store.uploads() == {}


@pytest.mark.parametrize("change", ["damaged", "gone"])
def test_a_file_that_is_not_what_was_uploaded_is_not_read(runtime: Runtime, read: Read, change: str) -> None:
    job_id = _uploaded(runtime, torch_file(state_dict()))
    path = runtime.store.upload(job_id)
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")

    run_job(job_id, runtime)

    error = read(job_id).error
    assert error is not None
    assert (error["code"], error["message"]) == (
        "artifact_corrupt",
        "the uploaded file is gone or damaged: upload it again",
    )


def test_a_job_that_may_go_well_again_keeps_its_file(
    runtime: Runtime, read: Read, sweep: Round, sessions: sessionmaker[Session]
) -> None:
    job_id = _uploaded(runtime, save(state_dict()), "safetensors")
    blocked = runtime.store.folder(job_id, 1).parent
    blocked.write_text("in the way of the attempt's folder")
    run_job(job_id, runtime)
    assert read(job_id).status == "failed"
    blocked.unlink()

    sweep.run()
    with sessions.begin() as session:
        assert retry(session, "t", job_id, NO_LIMITS).status == "queued"
    run_job(job_id, runtime)

    assert read(job_id).status == "succeeded"


def test_a_cancel_ends_the_converter(runtime: Runtime, read: Read, sessions: sessionmaker[Session]) -> None:
    job_id = _uploaded(runtime, endless())
    attempt = threading.Thread(target=run_job, args=(job_id, runtime))
    attempt.start()
    converter = wait_until(_converter, timeout=30, what="the converter runs")

    with sessions.begin() as session:
        jobs.request_cancel(session, job_id, "t")
    attempt.join(timeout=30)

    assert read(job_id).status == "cancelled"
    assert not converter.is_running()


def _converter() -> psutil.Process | None:
    return next((each for each in psutil.Process().children() if "worker.engine.convert" in each.cmdline()), None)


def test_an_upload_that_is_no_jobs_goes_after_a_day(runtime: Runtime, sweep: Round) -> None:
    old, young = new_job_id(), new_job_id()
    for job_id in (old, young):
        runtime.store.incoming(job_id).write_bytes(b"x")
    _age(runtime.store.incoming(old), ORPHANED_SECONDS + 60)
    _age(runtime.store.incoming(young), ORPHANED_SECONDS - 3_600)

    sweep.run()

    assert runtime.store.uploads().keys() == {young}


def _age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))
