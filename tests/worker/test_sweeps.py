"""A sweep from its submission to its frontier: by whoever runs its members, and whoever dies meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from app.contract.frontier import Frontier
from app.contract.spec import parse_spec
from app.db import attempts, jobs
from app.queue import Queue
from app.services import jobs as service
from app.services.jobs import Terms
from app.sweeping import Round
from tests.engine.few import BATCH, FEW
from tests.limits import NO_LIMITS
from tests.specs import Document, sweep_spec, train_spec
from tests.worker.conftest import Read, Submit
from worker.runner import Runtime, run_job

Sweep = Callable[..., str]
TERMS = Terms(retention_days=1, limits=NO_LIMITS)
TOO_WIDE = {"channels": [512, 512, 512], "hidden": 16}
"""With batches of 4,096 images: 66 GB."""
NARROW = {"channels": [2, 2, 4], "hidden": 8}


@pytest.fixture
def runtime(runtime: Runtime) -> Runtime:
    """Nobody asks how well these networks learn."""
    return replace(runtime, datasets=FEW)


@pytest.fixture
def submit_sweep(sessions: sessionmaker[Session]) -> Sweep:
    def submit_sweep(**overrides: object) -> str:
        spec = sweep_spec(**{"base": train_spec(), **overrides})
        with sessions.begin() as session:
            return service.submit(session, "t", parse_spec(spec), TERMS).row.id

    return submit_sweep


@pytest.fixture
def round_(runtime: Runtime, broker_url: str) -> Iterator[Round]:
    queue = Queue(broker_url)
    yield Round(runtime.sessions, queue, runtime.store, 3, NO_LIMITS.max_running)
    queue.close()


def _run_all(runtime: Runtime, read: Read, sweep_id: str) -> None:
    """One worker runs all that there is."""
    for _ in range(len(read(sweep_id).sources) + 1):
        run_job(sweep_id, runtime)


def _document(runtime: Runtime, job_id: str, name: str) -> Document:
    found: Document = json.loads((runtime.store.folder(job_id, 1) / name).read_bytes())
    return found


def _names(runtime: Runtime, job_id: str) -> Sequence[str]:
    with runtime.sessions() as session:
        return sorted(artifact.name for artifact in jobs.artifacts(session, job_id))


def test_a_sweep_runs_its_members_puts_them_side_by_side_and_tells_its_story(
    runtime: Runtime, submit_sweep: Sweep, read: Read
) -> None:
    sweep_id = submit_sweep(grid={"thresholds": [0.01, 0.5], "seeds": [1, 2]})
    woken: list[str] = []

    _run_all(replace(runtime, wake=woken.append), read, sweep_id)

    row = read(sweep_id)
    assert row.status == "succeeded", row.error
    assert row.result is not None
    assert (row.result["members"], row.result["succeeded"]) == (4, 4)
    assert woken == [sweep_id]
    assert _names(runtime, sweep_id) == ["frontier.csv", "frontier.json", "frontier.png", "manifest.json"]
    frontier = Frontier.model_validate(_document(runtime, sweep_id, "frontier.json"))
    assert [member.job_id for member in frontier.members] == row.sources
    for member in frontier.members:
        report = _document(runtime, member.job_id, "report.json")
        assert member.outcome is not None
        assert member.outcome.nonzero == report["total"]["nonzero_after"]
        assert member.outcome.accuracy_after == report["accuracy_after"]["accuracy"]
    assert row.result["front"] == [frontier.members[number].job_id for number in frontier.front]
    with runtime.sessions() as session:
        events = jobs.events(session, sweep_id, after=0, limit=100)
    told = [event.data.get("phase", event.type) for event in events]
    assert told == ["waiting", *["member"] * 4, "queued", "running", "reporting", "publishing", "succeeded"]


def test_a_member_is_what_it_would_be_by_itself(
    runtime: Runtime, submit_sweep: Sweep, submit: Submit, read: Read
) -> None:
    base = train_spec(training={"epochs": 1, "batch_size": BATCH}, histogram={"tensors": ["fc2.weight"]})
    alone = [submit(base), submit({**base, "regularization": {"penalty": "l1", "strength": 0.01}})]
    sweep_id = submit_sweep(base={**base, "regularization": {"penalty": "l1"}}, grid={"strengths": [0, 0.01]})
    members = read(sweep_id).sources
    for job_id in (*alone, *members):
        run_job(job_id, runtime)
    for ours, theirs in zip(members, alone, strict=True):
        for name in ("model.safetensors", "dense.safetensors", "packed.npz", "report.csv", "histogram.json"):
            folders = [runtime.store.folder(job_id, 1) for job_id in (ours, theirs)]
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_a_member_that_fails_is_told_and_the_sweep_succeeds(runtime: Runtime, submit_sweep: Sweep, read: Read) -> None:
    base = train_spec(training={"epochs": 1, "batch_size": 4096})
    sweep_id = submit_sweep(base=base, grid={"widths": [TOO_WIDE, NARROW]})

    _run_all(runtime, read, sweep_id)

    row = read(sweep_id)
    assert row.result is not None
    assert (row.status, row.result["succeeded"], row.result["failed"]) == ("succeeded", 1, 1)
    frontier = Frontier.model_validate(_document(runtime, sweep_id, "frontier.json"))
    assert [(member.status, member.error_code) for member in frontier.members] == [
        ("failed", "out_of_memory"),
        ("succeeded", None),
    ]


def test_a_sweep_of_which_no_member_succeeded_fails_and_says_why(
    runtime: Runtime, submit_sweep: Sweep, read: Read, round_: Round
) -> None:
    sweep_id = submit_sweep(base=train_spec(dataset={"name": "mnist"}))  # whose files are not there
    _run_all(runtime, read, sweep_id)

    row = read(sweep_id)
    assert row.error is not None
    assert (row.status, row.error["code"]) == ("failed", "no_member_succeeded")
    assert "none of the 2 members succeeded (2 dataset_unavailable)" in row.error["message"]
    with runtime.sessions.begin() as session:
        assert service.retry(session, "t", sweep_id, NO_LIMITS).status == "waiting"
    assert {read(job_id).status for job_id in row.sources} == {"queued"}


def test_a_worker_that_died_before_it_told_the_sweep_costs_nothing(
    runtime: Runtime, submit_sweep: Sweep, read: Read, round_: Round
) -> None:
    sweep_id = submit_sweep()
    first, last = read(sweep_id).sources
    run_job(first, runtime)
    with runtime.sessions.begin() as session:  # all that a worker does before it dies
        assert attempts.claim(session, last, owner="w", lease_seconds=30)
        assert attempts.succeed(session, last, 1, result=read(first).result or {}, files=_published(runtime, first))
    _copy(runtime.store.folder(first, 1), runtime.store.folder(last, 1))
    assert read(sweep_id).status == "waiting"

    round_.run()
    assert read(sweep_id).status == "queued"
    run_job(sweep_id, runtime)

    assert read(sweep_id).status == "succeeded"


def _published(runtime: Runtime, job_id: str) -> list[attempts.NewArtifact]:
    with runtime.sessions() as session:
        rows = jobs.artifacts(session, job_id)
    return [attempts.NewArtifact(row.name, row.role, row.media_type, row.size, row.sha256) for row in rows]


def _copy(there: Path, here: Path) -> None:
    here.mkdir(parents=True)
    for path in there.iterdir():
        (here / path.name).write_bytes(path.read_bytes())


def test_members_that_take_too_long_are_cancelled_and_the_sweep_goes_on(
    runtime: Runtime, submit_sweep: Sweep, read: Read, round_: Round, sessions: sessionmaker[Session]
) -> None:
    sweep_id = submit_sweep(limits={"max_members_seconds": 1})
    first, last = read(sweep_id).sources
    run_job(first, runtime)
    with sessions.begin() as session:  # a second has passed
        session.execute(text("UPDATE jobs SET queue_deadline = created_at WHERE id = :id"), {"id": sweep_id})

    round_.run()

    assert (read(last).status, read(sweep_id).status) == ("cancelled", "queued")
    run_job(sweep_id, runtime)
    ended = read(sweep_id)
    assert ended.result is not None
    assert (ended.status, ended.result["succeeded"], ended.result["cancelled"]) == ("succeeded", 1, 1)


def test_a_damaged_report_of_a_member_is_refused(runtime: Runtime, submit_sweep: Sweep, read: Read) -> None:
    sweep_id = submit_sweep()
    for _ in range(2):
        run_job(sweep_id, runtime)
    path = runtime.store.folder(read(sweep_id).sources[1], 1) / "report.json"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    run_job(sweep_id, runtime)
    row = read(sweep_id)
    assert row.error is not None
    assert (row.status, row.error["code"]) == ("failed", "artifact_corrupt")
    assert "report.json" in row.error["message"]
