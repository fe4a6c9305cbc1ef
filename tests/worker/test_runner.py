from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app.db import jobs
from app.db.models import ArtifactRow, EventRow
from app.storage import is_intact
from tests.engine.few import FEW
from tests.specs import Document, compare_spec, prune_spec, train_spec
from tests.worker.conftest import Read, Submit
from worker.runner import Runtime, run_job


@pytest.fixture
def runtime(runtime: Runtime) -> Runtime:
    """Nobody asks how well these networks learn."""
    return replace(runtime, datasets=FEW)


def _artifacts(runtime: Runtime, job_id: str) -> Sequence[ArtifactRow]:
    with runtime.sessions() as session:
        return jobs.artifacts(session, job_id)


def _events(runtime: Runtime, job_id: str) -> Sequence[EventRow]:
    with runtime.sessions() as session:
        return jobs.events(session, job_id, after=0, limit=100)


def _requeued(runtime: Runtime, job_id: str) -> list[Document]:
    return [event.data for event in _events(runtime, job_id) if event.type == "requeued"]


def _files(runtime: Runtime, job_id: str) -> list[Path]:
    return [path for path in runtime.store.folder(job_id, 1).parent.rglob("*") if path.is_file()]


def test_a_run_ends_in_success_with_its_artifacts(runtime: Runtime, submit: Submit, read: Read) -> None:
    job_id = submit(train_spec(histogram={"tensors": ["fc2.weight"]}))

    run_job(job_id, runtime)

    row, artifacts = read(job_id), _artifacts(runtime, job_id)
    assert (row.status, row.attempt, row.lease_owner) == ("succeeded", 1, None)
    runtime.store.tidy(job_id, 1, (), 1)  # which the sweeper does
    assert {path.name for path in _files(runtime, job_id)} == {artifact.name for artifact in artifacts}
    for artifact in artifacts:
        assert is_intact(runtime.store.folder(job_id, 1) / artifact.name, size=artifact.size, sha256=artifact.sha256)


def test_the_log_tells_phases_epochs_and_pruning_in_order_and_the_result_what_the_report_does(
    runtime: Runtime, submit: Submit, read: Read
) -> None:
    job_id = submit(train_spec(training={"epochs": 2}))

    run_job(job_id, runtime)

    told = [event.data.get("phase", event.type) for event in _events(runtime, job_id)]
    assert told == [
        "queued",
        "running",
        "preparing_data",
        "training",
        "epoch",
        "epoch",
        "evaluating",
        "evaluated",
        "pruning",
        "evaluating",
        "evaluated",
        "reporting",
        "pruned",
        "publishing",
        "succeeded",
    ]
    report = json.loads((runtime.store.folder(job_id, 1) / "report.json").read_text())
    result = read(job_id).result
    assert result is not None
    assert result["accuracy_after"] == report["accuracy_after"]["accuracy"]
    assert (result["parameters"], result["nonzero_after"]) == (
        report["total"]["parameters"],
        report["total"]["nonzero_after"],
    )


@pytest.mark.parametrize("fate", [OperationalError("COMMIT", None, OSError("connection lost")), SystemExit()], ids=repr)
def test_a_success_whose_commit_was_not_acknowledged_keeps_its_files(
    runtime: Runtime, submit: Submit, read: Read, sessions: sessionmaker[Session], fate: BaseException
) -> None:
    job_id = submit(train_spec())
    quit_before = signal.getsignal(signal.SIGQUIT)
    struck: list[bool] = []

    @event.listens_for(sessions, "after_commit")
    def strike(_: Session) -> None:
        if not struck and read(job_id).status == "succeeded":
            struck.append(True)
            raise fate

    with contextlib.suppress(SystemExit):
        run_job(job_id, runtime)
    signal.signal(signal.SIGQUIT, quit_before)

    assert struck
    assert read(job_id).status == "succeeded"
    for artifact in _artifacts(runtime, job_id):
        assert is_intact(runtime.store.folder(job_id, 1) / artifact.name, size=artifact.size, sha256=artifact.sha256)


def test_a_claim_that_was_not_acknowledged_is_given_back(
    runtime: Runtime, submit: Submit, read: Read, sessions: sessionmaker[Session]
) -> None:
    """Whose job would else wait for the end of a lease that nobody renews, and lose one of its attempts."""
    runtime = replace(runtime, heartbeat_seconds=0.01)
    first, second = submit(train_spec()), submit(train_spec())
    struck: list[bool] = []

    @event.listens_for(sessions, "after_commit")
    def strike(_: Session) -> None:
        if not struck:
            struck.append(True)
            assert read(first).status == "running"
            raise OperationalError("COMMIT", None, OSError("connection lost"))

    run_job(first, runtime)

    assert (read(first).status, read(first).crashes) == ("queued", 0)
    assert _requeued(runtime, first) == [{"reason": "out_of_touch"}]
    assert read(second).status == "succeeded"
    run_job(first, runtime)
    assert (read(first).status, read(first).attempt) == ("succeeded", 2)


def test_an_attempt_that_could_not_beat_is_handed_back(runtime: Runtime, submit: Submit, read: Read) -> None:
    job_id = submit(train_spec())

    run_job(job_id, replace(runtime, heartbeat_seconds=60, lease_seconds=0.01))

    assert (read(job_id).status, read(job_id).crashes) == ("queued", 0)
    assert _requeued(runtime, job_id) == [{"reason": "out_of_touch"}]


def test_a_message_leads_to_the_job_whose_turn_it_is_and_its_end_to_the_next(
    runtime: Runtime, submit: Submit, read: Read
) -> None:
    first, second = submit(train_spec()), submit(train_spec())
    reminded: list[str] = []
    worked_on: list[str | None] = []

    run_job(second, replace(runtime, max_running=1, remind=reminded.append, working_on=worked_on.append))

    assert [read(job_id).status for job_id in (first, second)] == ["succeeded", "queued"]
    assert reminded == [second]
    assert worked_on == [first, None]


def test_a_job_that_has_ended_is_not_run_again(runtime: Runtime, source: str, read: Read) -> None:
    before = read(source).revision

    run_job(source, runtime)

    assert (read(source).attempt, read(source).revision) == (1, before)


def test_latency_is_measured_for_no_longer_than_the_worker_is_told(runtime: Runtime, source: str) -> None:
    report = json.loads((runtime.store.folder(source, 1) / "report.json").read_text())
    assert runtime.latency_seconds == 0
    assert max(each["runs"] for each in report["latency"]["measured"]) <= 10  # a single round


def test_a_message_about_no_job_is_ignored(runtime: Runtime) -> None:
    run_job("job_" + "0" * 32, runtime)

    assert not list(runtime.store.folder("x", 1).parent.parent.glob("*"))


def test_missing_data_fails_the_job_and_leaves_no_file(runtime: Runtime, submit: Submit, read: Read) -> None:
    job_id = submit(train_spec(dataset={"name": "mnist"}))

    run_job(job_id, runtime)

    row = read(job_id)
    assert row.error is not None
    assert (row.status, row.error["code"], row.error["attempt"]) == ("failed", "dataset_unavailable", 1)
    assert row.error["details"]["phase"] == "preparing_data"
    assert _files(runtime, job_id) == []


def test_a_bug_fails_the_job_without_telling_its_inside(
    runtime: Runtime, submit: Submit, read: Read, sessions: sessionmaker[Session]
) -> None:
    job_id = submit(train_spec())
    with sessions.begin() as session:  # a row that no API of ours would have written
        session.execute(text('UPDATE jobs SET spec = spec || \'{"model": {"channels": "secret"}}\''))

    run_job(job_id, runtime)

    row = read(job_id)
    assert row.error is not None
    assert (row.status, row.error["code"]) == ("failed", "internal_error")
    assert "secret" not in json.dumps(row.error)


def test_a_process_that_can_compute_no_more_ends_and_leaves_its_job_to_others(
    database_url: str, submit: Submit, read: Read, sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    job_id = submit(train_spec())
    with sessions.begin() as session:  # whatever a GPU's fault would raise
        session.execute(text('UPDATE jobs SET spec = spec || \'{"model": {"channels": "broken"}}\''))

    program = [sys.executable, "-m", "tests.worker.broken_gpu", database_url, str(tmp_path), job_id]
    ended = subprocess.run(program, check=False, capture_output=True, text=True, timeout=60)

    assert ended.returncode == os.EX_SOFTWARE, ended.stderr
    assert "can no longer compute on its GPU" in ended.stderr
    row = read(job_id)
    assert (row.status, row.error, row.lease_owner) == ("running", None, "w/1")


@pytest.fixture
def source(runtime: Runtime, submit: Submit) -> str:
    job_id = submit(train_spec())
    run_job(job_id, runtime)
    return job_id


def test_a_pruning_starts_from_the_checkpoint_of_its_source(
    runtime: Runtime, submit: Submit, read: Read, source: str
) -> None:
    job_id = submit(prune_spec(source, dataset={"name": "digits"}))

    run_job(job_id, runtime)

    manifest = json.loads((runtime.store.folder(job_id, 1) / "manifest.json").read_text())
    dense = next(a for a in _artifacts(runtime, source) if a.name == "dense.safetensors")
    assert read(job_id).status == "succeeded"
    assert manifest["receipt"]["inputs"] == {f"{source}/dense.safetensors": dense.sha256}
    assert "metrics.jsonl" not in {artifact.name for artifact in _artifacts(runtime, job_id)}


def _taught(source: str) -> Document:
    """The sparse network of a job learns from the dense one."""
    teacher = {"job_id": source, "artifact": "dense.safetensors"}
    tuning = {"epochs": 1, "distillation": {"teacher": teacher}}
    spec = prune_spec(source, dataset={"name": "digits"}, fine_tuning=tuning)
    return {**spec, "source": {"job_id": source}}


def test_a_network_learns_from_another_one_of_the_same_job(
    runtime: Runtime, submit: Submit, read: Read, source: str
) -> None:
    job_id = submit(_taught(source))

    run_job(job_id, runtime)

    assert read(job_id).status == "succeeded"
    inputs = json.loads((runtime.store.folder(job_id, 1) / "manifest.json").read_text())["receipt"]["inputs"]
    published = {f"{source}/{each.name}": each.sha256 for each in _artifacts(runtime, source)}
    assert inputs == {name: published[name] for name in inputs}
    assert inputs.keys() == {f"{source}/model.safetensors", f"{source}/dense.safetensors"}


def test_a_damaged_file_of_a_source_is_refused(runtime: Runtime, submit: Submit, read: Read, source: str) -> None:
    for name in ("dense.safetensors", "report.json"):
        path = runtime.store.folder(source, 1) / name
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    readers = [
        (prune_spec(source, dataset={"name": "digits"}), "dense.safetensors"),
        (_taught(source), "dense.safetensors"),
        (compare_spec(source, "job_" + "1" * 32), "report.json"),
    ]
    for spec, damaged in readers:
        job_id = submit(spec)
        run_job(job_id, runtime)

        row = read(job_id)
        assert row.error is not None
        assert (row.status, row.error["code"]) == ("failed", "artifact_corrupt")
        assert damaged in row.error["message"]
