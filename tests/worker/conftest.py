from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.contract.spec import parse_spec
from app.core.ids import new_job_id
from app.core.limits import UNLIMITED
from app.db import jobs
from app.db.models import JobRow
from app.storage import LocalStore
from tests.specs import Document
from worker.engine.data import DatasetStore
from worker.runner import Runtime

Submit = Callable[[Document], str]
Read = Callable[[str], JobRow]


@pytest.fixture
def runtime(sessions: sessionmaker[Session], tmp_path: Path) -> Runtime:
    """What a worker process has, on the test's own database."""
    return Runtime(
        owner="worker of the test/1",
        sessions=sessions,
        store=LocalStore(tmp_path / "artifacts"),
        datasets=DatasetStore(tmp_path / "data", download=False),
        heartbeat_seconds=0.05,
        lease_seconds=30,
        checkpoint_seconds=30,
        latency_seconds=0,
        max_running=UNLIMITED,
        wake=lambda _: None,
        remind=lambda _: None,
        working_on=lambda _: None,
    )


@pytest.fixture
def submit(sessions: sessionmaker[Session]) -> Submit:
    """Queue a job of a resolved spec; returns its id."""

    def insert(spec: Document) -> str:
        job_id = new_job_id()
        resolved = parse_spec(spec).model_dump(mode="json")
        with sessions.begin() as session:
            jobs.insert_job(session, job_id=job_id, tenant="t", spec=resolved, spec_version=1, retention_days=1)
        return job_id

    return insert


@pytest.fixture
def read(sessions: sessionmaker[Session]) -> Read:
    def fetch(job_id: str) -> JobRow:
        with sessions() as session:
            row = jobs.get(session, job_id)
        assert row is not None
        return row

    return fetch
