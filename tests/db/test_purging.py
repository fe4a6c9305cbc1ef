"""From the mark to the tombstone, by any number of reapers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from app.contract.status import Status
from app.db import idempotency, jobs, sweep
from app.db.models import IdempotencyRow, PurgedRow
from tests.db.conftest import Jobs

ENDED = [status for status in Status if status.is_terminal]


def _purge(made: Jobs, job_id: str) -> bool:
    with made.sessions.begin() as session:
        return jobs.purge(session, job_id)


@pytest.mark.parametrize("status", Status)
def test_only_what_has_ended_is_purged_and_once(made: Jobs, status: Status) -> None:
    job_id = made.in_state(status)
    assert _purge(made, job_id) == status.is_terminal
    assert not _purge(made, job_id)
    assert (made.row(job_id).purged_at is not None) == status.is_terminal


@pytest.mark.parametrize("status", Status)
def test_a_job_expires_once_it_has_ended_and_its_time_is_over(made: Jobs, status: Status) -> None:
    job_id = made.in_state(status)
    assert (made.row(job_id).expires_at is not None) == status.is_terminal
    with made.sessions.begin() as session:
        assert sweep.expire(session) == []
    if status.is_terminal:
        made.past(job_id, "expires_at")
        with made.sessions.begin() as session:
            assert sweep.expire(session) == [job_id]
        with made.sessions.begin() as session:
            assert sweep.expire(session) == []


def test_a_retry_stops_the_clock(made: Jobs) -> None:
    job_id = made.in_state(Status.FAILED)
    with made.sessions.begin() as session:
        assert jobs.retry(session, job_id, "default")
    assert made.row(job_id).expires_at is None


def test_what_is_purged_is_not_retried(made: Jobs) -> None:
    job_id = made.in_state(Status.FAILED)
    _purge(made, job_id)
    with made.sessions.begin() as session:
        assert not jobs.retry(session, job_id, "default")


def test_what_cannot_be_removed_keeps_nothing_else_from_its_turn(made: Jobs) -> None:
    """Of as many as fill a batch."""
    stuck = {made.in_state(Status.FAILED) for _ in range(sweep.TIDY_BATCH)}
    last = made.in_state(Status.FAILED)
    with made.sessions.begin() as session:
        batches = [{ended.job_id for ended in sweep.untidied(session)} for _ in range(20)]
    assert all(len(batch) == sweep.TIDY_BATCH for batch in batches)
    assert any(last in batch for batch in batches)
    assert set().union(*batches) == {*stuck, last}


def test_what_another_job_reads_does_not_expire(made: Jobs) -> None:
    source, free = made.in_state(Status.SUCCEEDED), made.in_state(Status.SUCCEEDED)
    for job_id in (source, free):
        made.past(job_id, "expires_at")
    reader = made.queued(sources=[source])

    with made.sessions.begin() as session:
        assert sweep.expire(session) == [free]
    made.running(reader)
    made.end(reader, Status.SUCCEEDED)
    with made.sessions.begin() as session:
        assert sweep.expire(session) == [source]


def test_who_submits_upon_a_job_and_who_purges_it_do_not_both_win(made: Jobs, both: Callable[..., list[Any]]) -> None:
    for _ in range(20):
        source = made.in_state(Status.SUCCEEDED)
        made.past(source, "expires_at")

        def submits(sessions: sessionmaker[Session], source: str = source) -> bool:
            with sessions.begin() as session:
                row = jobs.get(session, source, "default", lock="keep")
                if row is None or row.purged_at is not None:
                    return False
                new = made.insert(session, sources=[source])
            return bool(new)

        def expires(sessions: sessionmaker[Session], source: str = source) -> bool:
            with sessions.begin() as session:
                return source in sweep.expire(session)

        submitted, expired = both(submits, expires)
        assert not (submitted and expired)


def test_reapers_at_once_bury_each_job_once(made: Jobs, both: Callable[..., list[Any]]) -> None:
    purged = {made.in_state(Status.SUCCEEDED) for _ in range(10)}
    for job_id in purged:
        _purge(made, job_id)

    def reap(sessions: sessionmaker[Session]) -> list[str]:
        with sessions.begin() as session:
            found = sweep.doomed(session)
            sweep.buried(session, found)
            return list(found)

    assert reap(made.sessions) == []  # not so soon
    with made.sessions.begin() as session:
        session.execute(text("UPDATE jobs SET purged_at = purged_at - interval '1 minute'"))
    first, second = both(reap, reap)
    assert sorted(first + second) == sorted(purged)
    with made.sessions() as session:
        assert all(jobs.get(session, job_id) is None for job_id in purged)
        assert all(jobs.purged_at(session, job_id, "default") for job_id in purged)
        assert jobs.purged_at(session, next(iter(purged)), "other") is None


def test_a_mark_is_of_ended_jobs_alone(made: Jobs) -> None:
    made.running()
    with pytest.raises(IntegrityError, match="purged_when_terminal"), made.sessions.begin() as session:
        session.execute(text("UPDATE jobs SET purged_at = now()"))


def test_what_nobody_asks_for_any_more_is_forgotten(made: Jobs) -> None:
    with made.sessions.begin() as session:
        for key in ("old", "new"):
            assert idempotency.reserve(session, "default", "submit_job", key, "0") is None
        session.execute(text("UPDATE idempotency_keys SET created_at = now() - interval '3 days' WHERE key = 'old'"))
        for days in (1, 400):
            values = {"id": f"job_{days}", "tenant": "default", "days": days}
            session.execute(
                text("INSERT INTO purged_jobs VALUES (:id, :tenant, now() - make_interval(days => :days))"), values
            )
    with made.sessions.begin() as session:
        sweep.forget(session)
    with made.sessions() as session:
        assert session.scalars(select(IdempotencyRow.key)).all() == ["new"]
        assert session.scalars(select(PurgedRow.id)).all() == ["job_1"]


def test_a_key_waits_for_whoever_has_it_and_is_free_when_that_one_gives_up(
    made: Jobs, both: Callable[..., list[Any]]
) -> None:
    def gives_up(sessions: sessionmaker[Session]) -> bool:
        with sessions() as session:
            idempotency.reserve(session, "default", "submit_job", "key", "0")
            session.rollback()
        return True

    def goes_on(sessions: sessionmaker[Session]) -> bool:
        with sessions.begin() as session:
            return idempotency.reserve(session, "default", "submit_job", "key", "0") is None

    assert both(gives_up, goes_on) == [True, True]
