from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from app.contract.failure import Failure, FailureCode
from app.contract.members import members
from app.contract.spec import SPEC_VERSION, SweepSpec, parse_spec
from app.contract.status import Status
from app.db import attempts, jobs
from app.db.attempts import NewArtifact
from app.db.models import JobRow
from app.services.jobs import Terms, insert_sweep
from tests.limits import NO_LIMITS
from tests.specs import sweep_spec, train_spec

LEASE = 60
FILE = NewArtifact(name="report.json", role="report", media_type="application/json", size=2, sha256="0" * 64)
FAILURE = Failure.of(FailureCode.INTERNAL_ERROR, "It broke.", attempt=1)


TERMS = Terms(retention_days=30, limits=NO_LIMITS)


class Sweep(NamedTuple):
    id: str
    members: Sequence[str]


class Jobs:
    """Makes jobs in any state by lawful moves, and moves their times as only the clock could."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self.sessions = sessions

    def queued(self, *, tenant: str = "default", **overrides: Any) -> str:
        with self.sessions.begin() as session:
            return self.insert(session, tenant=tenant, **overrides)

    def insert(
        self, session: Session, *, tenant: str = "default", sources: Sequence[str] = (), **overrides: Any
    ) -> str:
        spec = parse_spec(train_spec(**overrides)).model_dump(mode="json")
        job_id = f"job_{uuid4().hex}"
        jobs.insert_job(
            session,
            job_id=job_id,
            tenant=tenant,
            spec=spec,
            spec_version=SPEC_VERSION,
            sources=sources,
            retention_days=30,
        )
        return job_id

    def sweep(self, thresholds: Sequence[float] = (0.01, 0.05), **overrides: Any) -> Sweep:
        """A sweep that waits, with a queued member for each threshold."""
        spec = parse_spec(sweep_spec(grid={"thresholds": thresholds}, **overrides))
        assert isinstance(spec, SweepSpec)
        with self.sessions.begin() as session:
            row = insert_sweep(session, "default", spec, [member.spec for member in members(spec)], TERMS)
        return Sweep(row.id, row.sources)

    def running(self, job_id: str | None = None) -> str:
        job_id = job_id or self.queued()
        with self.sessions.begin() as session:
            assert attempts.claim(session, job_id, owner="worker", lease_seconds=LEASE)
        return job_id

    def in_state(self, status: Status) -> str:
        if status is Status.QUEUED:
            return self.queued()
        if status is Status.WAITING:
            return self.sweep().id
        job_id = self.running()
        self.end(job_id, status)
        return job_id

    def end(self, job_id: str, status: Status) -> None:
        """Bring a job that runs as attempt 1 into this state."""
        with self.sessions.begin() as session:
            if status is Status.SUCCEEDED:
                attempts.succeed(session, job_id, 1, result={"kind": "train"}, files=[FILE])
            elif status is Status.FAILED:
                attempts.fail(session, job_id, 1, failure=FAILURE)
            elif status is not Status.RUNNING:
                jobs.request_cancel(session, job_id, "default")
            if status is Status.CANCELLED:
                attempts.cancelled(session, job_id, 1)
        assert self.row(job_id).status == status

    def row(self, job_id: str) -> JobRow:
        with self.sessions() as session:
            row = jobs.get(session, job_id)
        assert row is not None
        return row

    def events(self, job_id: str) -> list[str]:
        with self.sessions() as session:
            return [event.type for event in jobs.events(session, job_id, after=0, limit=1_000)]

    def past(self, job_id: str, *columns: str) -> None:
        """Let these times of a job have passed a second ago."""
        moved = ", ".join(f"{column} = clock_timestamp() - interval '1 second'" for column in columns)
        with self.sessions.begin() as session:
            session.execute(text(f"UPDATE jobs SET {moved} WHERE id = :id"), {"id": job_id})


@pytest.fixture
def made(sessions: sessionmaker[Session]) -> Jobs:
    return Jobs(sessions)


@pytest.fixture
def both(sessions: sessionmaker[Session]) -> Callable[..., list[Any]]:
    """Runs functions at the same time, each with a thread and sessions of its own."""

    def both(*functions: Callable[[sessionmaker[Session]], Any]) -> list[Any]:
        start = Barrier(len(functions))

        def run(function: Callable[[sessionmaker[Session]], Any]) -> Any:
            start.wait(timeout=30)
            return function(sessions)

        with ThreadPoolExecutor(len(functions)) as pool:
            return [future.result(timeout=60) for future in [pool.submit(run, function) for function in functions]]

    return both
