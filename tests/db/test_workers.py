from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from app.db import workers


def _seen(sessions: sessionmaker[Session], job_id: str | None = None) -> None:
    with sessions.begin() as session:
        workers.seen(
            session,
            worker_id="host:1",
            device="cpu",
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
