from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from app.contract.status import Status
from app.db import attempts, workers
from tests.db.conftest import Jobs


def _seen(
    sessions: sessionmaker[Session], job_id: str | None = None, *, worker_id: str = "host:1", device: str = "cpu"
) -> None:
    with sessions.begin() as session:
        workers.seen(
            session,
            worker_id=worker_id,
            device=device,
            device_name="x86_64",
            threads=2,
            versions={"torch": "2"},
            job_id=job_id,
        )


def test_a_worker_is_one_row_however_often_it_is_seen(sessions: sessionmaker[Session]) -> None:
    _seen(sessions)
    _seen(sessions, "job_1")
    with sessions() as session:
        [(row, alive)] = workers.all_workers(session)
    assert (row.job_id, alive) == ("job_1", True)
    assert row.last_seen_at > row.started_at


@pytest.mark.parametrize(
    ("minutes", "there", "alive"), [(0, True, True), (1, True, False), (24 * 60 + 1, False, False)]
)
def test_a_worker_not_seen_for_long_is_away_then_forgotten(
    sessions: sessionmaker[Session], minutes: int, there: bool, alive: bool
) -> None:
    _seen(sessions)
    with sessions.begin() as session:
        session.execute(text(f"UPDATE workers SET last_seen_at = last_seen_at - interval '{minutes} minutes'"))
        workers.forget_old(session)
        assert [ok for _, ok in workers.all_workers(session)] == ([alive] if there else [])


def test_a_worker_that_takes_leave_is_gone(sessions: sessionmaker[Session]) -> None:
    _seen(sessions)
    with sessions.begin() as session:
        workers.gone(session, "host:1")
        assert workers.all_workers(session) == []


def test_idle_is_who_is_alive_and_holds_no_lease(made: Jobs, sessions: sessionmaker[Session]) -> None:
    for worker_id, device in (("host:1", "cuda"), ("host:10", "cuda"), ("host:2", "cuda"), ("host:3", "cpu")):
        _seen(sessions, worker_id=worker_id, device=device)

    def idle(device: str = "cuda") -> int:
        with sessions() as session:
            return workers.count_idle(session, device=device, beside="host:1")

    assert (idle(), idle("cpu")) == (2, 1)
    job_id = made.queued()
    with sessions.begin() as session:
        assert attempts.claim(session, job_id, owner="host:10/7", lease_seconds=60)
    assert idle() == 1
    made.end(job_id, Status.SUCCEEDED)
    assert idle() == 2
    with sessions.begin() as session:
        session.execute(
            text("UPDATE workers SET last_seen_at = last_seen_at - interval '1 minute' WHERE id = 'host:2'")
        )
    assert idle() == 1
