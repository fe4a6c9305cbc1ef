from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from app.contract.status import Phase
from app.db import attempts, jobs
from app.db.attempts import Claim
from app.db.moves import NewEvent
from tests.specs import train_spec
from tests.waiting import wait_until
from tests.worker.conftest import Read, Submit
from worker.heart import CancelRequested, Fenced, Heart, OutOfTouch


@pytest.fixture
def claim(sessions: sessionmaker[Session], submit: Submit) -> Claim:
    with sessions.begin() as session:
        claimed = attempts.claim(session, submit(train_spec()), owner="me", lease_seconds=30)
    assert claimed is not None
    return claimed


@pytest.fixture
def heart(sessions: sessionmaker[Session], claim: Claim, tmp_path: Path) -> Iterator[Heart]:
    beating = Heart(sessions, claim, tmp_path, [], beat_seconds=0.02, lease_seconds=30)
    beating.start()
    yield beating
    beating.stop()


def _stopped_by(heart: Heart, reason: type[Exception]) -> bool:
    try:
        heart.check()
    except reason:
        return True
    return False


def test_a_beat_stores_phase_progress_and_events(heart: Heart, claim: Claim, read: Read) -> None:
    heart.enter(Phase.TRAINING)
    heart.progress({"completed": 3, "total": 10})
    heart.event(NewEvent("epoch", {"epoch": 1}))

    wait_until(lambda: read(claim.job_id).progress, timeout=10, what="progress is stored")
    wait_until(lambda: read(claim.job_id).events == 4, timeout=10, what="events are stored")

    row = read(claim.job_id)
    assert (row.phase, row.progress) == ("training", {"phase": "training", "completed": 3, "total": 10})


def test_every_event_is_stored_once_and_in_order(heart: Heart, claim: Claim, sessions: sessionmaker[Session]) -> None:
    for number in range(200):
        heart.event(NewEvent("epoch", {"epoch": number}))
    left = heart.stop().events

    with sessions.begin() as session:
        stored = [row.data["epoch"] for row in jobs.events(session, claim.job_id, after=2, limit=500)]
    assert stored + [event.data["epoch"] for event in left] == list(range(200))


def test_a_beat_renews_the_lease(heart: Heart, claim: Claim, read: Read) -> None:
    first = read(claim.job_id).lease_expires_at
    assert first is not None

    wait_until(lambda: (read(claim.job_id).lease_expires_at or first) > first, timeout=10, what="the lease grows")
    heart.check()


def test_a_beat_without_news_is_no_change_for_clients(heart: Heart, claim: Claim, read: Read) -> None:
    leases = {wait_until(lambda: read(claim.job_id).lease_expires_at, timeout=10, what="a lease")}
    revisions = set()

    def five_beats() -> bool:
        row = read(claim.job_id)
        leases.add(row.lease_expires_at)  # type: ignore[arg-type]
        revisions.add(row.revision)
        return len(leases) > 5

    wait_until(five_beats, timeout=10, what="five beats")
    heart.check()
    assert len(revisions) == 1


def test_a_cancel_reaches_the_run(heart: Heart, claim: Claim, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        jobs.request_cancel(session, claim.job_id, "t")

    wait_until(lambda: _stopped_by(heart, CancelRequested), timeout=10, what="the cancel is seen")


def test_a_lost_lease_stops_the_run(heart: Heart, claim: Claim, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET attempt = attempt + 1 WHERE id = :id"), {"id": claim.job_id})

    wait_until(lambda: _stopped_by(heart, Fenced), timeout=10, what="the fence is seen")


def test_a_run_that_cannot_beat_stops_before_its_lease_ends(
    sessions: sessionmaker[Session], claim: Claim, tmp_path: Path
) -> None:
    unbeaten = Heart(sessions, claim, tmp_path, [], beat_seconds=0.02, lease_seconds=0.5)

    wait_until(lambda: _stopped_by(unbeaten, OutOfTouch), timeout=10, what="the run gives up")


def test_stopping_ends_the_thread(heart: Heart, claim: Claim) -> None:
    heart.stop()

    assert f"heart of {claim.job_id}" not in [thread.name for thread in threading.enumerate()]
