"""What is counted about jobs stays true whoever changes them, and whatever becomes of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from app.contract.status import Status
from app.db import attempts, jobs, metrics, sweep
from app.db.metrics import BOUNDS, Total
from app.services.metrics import in_status, measure
from tests.db.conftest import FAILURE, LEASE, Jobs


def _totals(made: Jobs) -> set[Total]:
    with made.sessions() as session:
        return set(metrics.totals(session))


def _counts(made: Jobs) -> Counter[tuple[str, ...]]:
    """By metric, and where they are told status and reason."""
    found: Counter[tuple[str, ...]] = Counter()
    for total in _totals(made):
        found[tuple(filter(None, (total.metric, total.status, total.reason)))] += total.count
    return found


def _in_status(made: Jobs) -> dict[str, int]:
    measured = measure(made.sessions)
    assert measured is not None
    return {status: count for status, count in in_status(measured).items() if count}


def _rows(made: Jobs) -> int:
    with made.sessions() as session:
        return session.scalar(text("SELECT count(*) FROM job_tallies")) or 0


@pytest.fixture
def eventful(made: Jobs) -> Jobs:
    """One of everything that can happen to a job."""
    made.queued()
    for status in Status:
        made.in_state(status)
    retried = made.in_state(Status.FAILED)
    lost = made.running()
    made.past(lost, "lease_expires_at")
    purged = made.in_state(Status.SUCCEEDED)
    with made.sessions.begin() as session:
        assert jobs.retry(session, retried, "default")
        sweep.sweep(session, max_attempts=3)
        assert jobs.purge(session, purged)
        sweep.buried(session, [purged])
    handed_back = made.running()
    with made.sessions.begin() as session:
        attempts.drain(session, handed_back, 1)
    return made


def test_each_thing_that_happens_to_a_job_counts_once(eventful: Jobs) -> None:
    assert _counts(eventful) == {
        ("submitted",): 14,
        ("queue_wait",): 9,
        ("finished", "succeeded"): 2,
        ("finished", "failed", "internal_error"): 2,
        ("finished", "cancelled"): 1,
        ("run",): 5,
        ("requeued", "retry"): 1,
        ("requeued", "lease_expired"): 1,
        ("requeued", "worker_shutdown"): 1,
        ("purged", "succeeded"): 1,
    }
    assert _in_status(eventful) == {
        "waiting": 1,
        "queued": 7,
        "running": 1,
        "cancelling": 1,
        "succeeded": 1,
        "failed": 1,
        "cancelled": 1,
    }


def test_a_write_that_is_fenced_or_rolled_back_counts_nothing(made: Jobs) -> None:
    job_id = made.running()
    before = _totals(made)
    with made.sessions.begin() as session:
        assert attempts.fail(session, job_id, 2, failure=FAILURE) is None
        assert attempts.claim(session, job_id, owner="another", lease_seconds=LEASE) is None
    with made.sessions() as session:
        attempts.fail(session, job_id, 1, failure=FAILURE)
        session.rollback()
    assert _totals(made) == before


def test_durations_are_of_the_last_wait_and_the_last_attempt(made: Jobs) -> None:
    job_id = made.queued()
    with made.sessions.begin() as session:
        session.execute(text("UPDATE jobs SET queued_at = queued_at - interval '40 s', started_at = '2020-01-01'"))
    made.running(job_id)
    with made.sessions.begin() as session:
        session.execute(text("UPDATE job_events SET at = at - interval '7 s' WHERE type = 'running'"))
    made.end(job_id, Status.SUCCEEDED)
    found = {total.metric: (total.le, total.microseconds // 1_000_000) for total in _totals(made)}
    assert (found["queue_wait"], found["run"]) == ((60, 40), (10, 7))


def test_the_trigger_has_the_buckets_that_the_code_has_and_bounds_belong_to_theirs(made: Jobs) -> None:
    with made.sessions.begin() as session:
        definition = session.scalar(text("SELECT prosrc FROM pg_proc WHERE proname = 'tally_duration'"))
    assert f"ARRAY[{', '.join(map(str, BOUNDS))}]" in definition
    assert "took <= bound" in definition


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fold however few there are, and not all at once."""
    monkeypatch.setattr(metrics, "FOLD_ABOVE", 0)
    monkeypatch.setattr(metrics, "FOLD_BATCH", 20)


def _fold(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        metrics.fold(session)


@pytest.mark.usefixtures("always")
def test_folding_changes_no_total_however_often_it_is_done_or_cut_short(eventful: Jobs) -> None:
    before, rows = _totals(eventful), _rows(eventful)
    with eventful.sessions() as session:
        metrics.fold(session)
        session.rollback()  # as when it is killed
    assert (_totals(eventful), _rows(eventful)) == (before, rows)
    for _ in range(3):
        _fold(eventful.sessions)
        assert _totals(eventful) == before
    assert _rows(eventful) == len(before) < rows


@pytest.mark.usefixtures("always")
def test_nobody_sees_a_total_shrink_while_several_fold_and_jobs_are_submitted(
    eventful: Jobs, both: Callable[..., list[Any]]
) -> None:
    def fold(sessions: sessionmaker[Session]) -> None:
        for _ in range(30):
            _fold(sessions)

    def submit(_: object) -> None:
        for _ in range(30):
            eventful.queued()

    def scrape(sessions: sessionmaker[Session]) -> list[tuple[int, int]]:
        seen = []
        for _ in range(60):
            found = _totals(eventful)
            seen.append((sum(total.count for total in found), sum(total.microseconds for total in found)))
        return seen

    before = _counts(eventful)
    *_, seen = both(fold, fold, submit, scrape)
    assert seen == sorted(seen)
    assert _counts(eventful) == before + Counter({("submitted",): 30})


def test_few_rows_are_left_alone(eventful: Jobs) -> None:
    rows = _rows(eventful)
    _fold(eventful.sessions)
    assert _rows(eventful) == rows
