"""What every connection of ours is bound by."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session, sessionmaker

from app.db.models import JobRow
from app.db.session import AWAY, make_engine
from tests.db.conftest import Jobs


def test_a_client_that_freezes_amid_a_transaction_does_not_keep_its_job_locked(
    made: Jobs, sessions: sessionmaker[Session]
) -> None:
    job_id = made.running()
    with sessions() as frozen, sessions.begin() as other:
        assert frozen.scalar(text("SHOW idle_in_transaction_session_timeout")) == "15s"
        frozen.execute(text("SET idle_in_transaction_session_timeout = '200ms'"))
        frozen.get(JobRow, job_id, with_for_update=True)
        # Waits for the lock, ten seconds at most.
        assert other.get(JobRow, job_id, with_for_update=True) is not None
        with pytest.raises(AWAY):
            frozen.commit()


def test_what_the_database_refuses_is_told_without_what_was_sent(sessions: sessionmaker[Session]) -> None:
    with sessions() as session, pytest.raises(ProgrammingError) as caught:
        session.execute(text("SELECT :sent FROM nowhere"), {"sent": "sesame"})
    assert "nowhere" in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_a_connection_that_died_while_it_rested_is_replaced_unseen(
    database_url: str, sessions: sessionmaker[Session]
) -> None:
    engine = make_engine(database_url, pool_size=1, rested_seconds=0)
    try:
        with engine.connect() as connection:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with sessions() as session:
            session.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT pg_backend_pid()")) != pid
    finally:
        engine.dispose()
