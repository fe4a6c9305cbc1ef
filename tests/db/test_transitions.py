"""Every move in every state: it applies where the table has it, and is refused without trace elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from app.contract.status import Phase, Status
from app.db import attempts, jobs
from app.db.attempts import Checkpoint
from app.db.models import EventRow
from app.db.moves import NewEvent
from tests.db.conftest import FAILURE, FILE, LEASE, Jobs

Move = Callable[[Session, str], Any]
Both = Callable[..., list[Any]]


def _beat(session: Session, job_id: str, attempt: int = 1, **told: Any) -> Status | None:
    return attempts.beat(
        session, job_id, attempt, lease_seconds=LEASE, **{"phase": Phase.TRAINING, "progress": None, **told}
    )


def _succeed(session: Session, job_id: str, attempt: int = 1) -> Status | None:
    return attempts.succeed(session, job_id, attempt, result={"kind": "train"}, files=[FILE])


MOVES: dict[str, tuple[Move, dict[Status, Status]]] = {
    "claim": (
        lambda session, job_id: attempts.claim(session, job_id, owner="other", lease_seconds=LEASE),
        {Status.QUEUED: Status.RUNNING},
    ),
    "beat": (_beat, {Status.RUNNING: Status.RUNNING, Status.CANCELLING: Status.CANCELLING}),
    "succeed": (_succeed, {Status.RUNNING: Status.SUCCEEDED, Status.CANCELLING: Status.CANCELLED}),
    "fail": (
        lambda session, job_id: attempts.fail(session, job_id, 1, failure=FAILURE),
        {Status.RUNNING: Status.FAILED, Status.CANCELLING: Status.CANCELLED},
    ),
    "cancelled": (
        lambda session, job_id: attempts.cancelled(session, job_id, 1),
        {Status.CANCELLING: Status.CANCELLED},
    ),
    "drain": (
        lambda session, job_id: attempts.drain(session, job_id, 1),
        {Status.RUNNING: Status.QUEUED, Status.CANCELLING: Status.CANCELLED},
    ),
    "retry": (lambda session, job_id: jobs.retry(session, job_id, "default"), {Status.FAILED: Status.QUEUED}),
    "request_cancel": (
        lambda session, job_id: jobs.request_cancel(session, job_id, "default"),
        {Status.WAITING: Status.CANCELLED, Status.QUEUED: Status.CANCELLED, Status.RUNNING: Status.CANCELLING},
    ),
}
AN_ATTEMPTS_OWN = ("beat", "succeed", "fail", "cancelled", "drain")


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("name", MOVES)
def test_a_move_applies_where_it_may_and_leaves_no_trace_elsewhere(made: Jobs, name: str, status: Status) -> None:
    move, lawful = MOVES[name]
    job_id = made.in_state(status)
    before, events = made.row(job_id), made.events(job_id)

    with made.sessions.begin() as session:
        answer = move(session, job_id)

    after = made.row(job_id)
    if status not in lawful:
        assert not answer
        assert (after.status, after.revision, after.updated_at) == (status, before.revision, before.updated_at)
        assert made.events(job_id) == events
        return
    assert answer
    assert after.status == lawful[status]
    assert after.status == status or status.may_become(lawful[status])
    assert after.revision == before.revision + 1
    assert after.events == len(made.events(job_id))


@pytest.mark.parametrize("name", AN_ATTEMPTS_OWN)
def test_an_attempt_that_was_replaced_can_do_nothing(made: Jobs, name: str) -> None:
    job_id = made.running()
    with made.sessions.begin() as session:
        attempts.drain(session, job_id, 1)
    made.running(job_id)
    second = made.row(job_id)

    with made.sessions.begin() as session:
        assert not MOVES[name][0](session, job_id)

    row = made.row(job_id)
    assert (row.status, row.attempt) == (Status.RUNNING, 2)
    assert (row.revision, row.lease_expires_at) == (second.revision, second.lease_expires_at)


def test_a_claim_counts_the_attempt_and_starts_both_clocks(made: Jobs) -> None:
    job_id = made.queued(limits={"max_runtime_seconds": 100})
    with made.sessions.begin() as session:
        claim = attempts.claim(session, job_id, owner="w", lease_seconds=7)

    row = made.row(job_id)
    assert claim is not None
    assert (claim.attempt, claim.tenant, claim.spec) == (1, "default", row.spec)
    assert (row.phase, row.lease_owner) == (Phase.PREPARING_DATA, "w")
    assert row.started_at
    assert row.lease_expires_at
    assert row.runtime_deadline
    assert (row.lease_expires_at - row.started_at).total_seconds() == pytest.approx(7, abs=0.5)
    assert (row.runtime_deadline - row.started_at).total_seconds() == pytest.approx(100, abs=0.5)


def test_a_job_is_not_to_be_had_after_its_time_in_the_queue(made: Jobs) -> None:
    job_id = made.queued()
    made.past(job_id, "queue_deadline")
    with made.sessions.begin() as session:
        assert attempts.claim(session, job_id, owner="w", lease_seconds=LEASE) is None


def test_a_job_handed_back_keeps_its_first_start_and_what_is_left_of_its_limit_and_counts_no_crash(made: Jobs) -> None:
    job_id = made.running()
    first = made.row(job_id)
    with made.sessions.begin() as session:
        attempts.drain(session, job_id, 1)

    row = made.row(job_id)
    assert (row.crashes, row.phase, row.lease_owner, row.publishes) == (0, Phase.WAITING, None, 0)
    assert row.queued_at > first.queued_at
    with made.sessions.begin() as session:  # an hour goes by without a worker
        session.execute(text("UPDATE jobs SET queued_at = queued_at - interval '1 hour'"))
    made.running(job_id)
    again = made.row(job_id)
    assert (again.attempt, again.started_at) == (2, first.started_at)
    assert again.runtime_deadline is not None
    assert first.runtime_deadline is not None
    waited = (again.runtime_deadline - first.runtime_deadline).total_seconds()
    assert 3_600 < waited < 3_660


def test_a_beat_tells_news_and_only_news_raises_the_revision(made: Jobs) -> None:
    job_id = made.running()
    progress = {"completed": 1, "total": 5, "unit": "epochs"}
    revisions = []
    for told in ({"progress": progress}, {"progress": progress}, {"progress": None}, {"phase": Phase.PRUNING}):
        made.past(job_id, "lease_expires_at")
        with made.sessions.begin() as session:
            assert _beat(session, job_id, **told) is Status.RUNNING
        row = made.row(job_id)
        revisions.append(row.revision)
        assert row.lease_expires_at
        assert row.lease_expires_at > row.updated_at
    first = revisions[0]
    assert revisions == [first, first, first + 1, first + 2]


def test_a_later_attempt_learns_of_the_checkpoints_that_are_left(made: Jobs) -> None:
    first, second = Checkpoint("1-1.pt", "a" * 64), Checkpoint("1-2.pt", "b" * 64)
    job_id = made.running()
    with made.sessions.begin() as session:
        _beat(session, job_id, checkpoints=[first])
        _beat(session, job_id)
        attempts.drain(session, job_id, 1, checkpoints=[second, first])
        claim = attempts.claim(session, job_id, owner="w", lease_seconds=LEASE)
    assert claim is not None
    assert claim.checkpoints == (second, first)
    with made.sessions.begin() as session:
        _succeed(session, job_id, 2)
    assert made.row(job_id).checkpoints == []


def test_a_retry_counts_everything_anew_and_keeps_the_place(made: Jobs) -> None:
    job_id = made.running()
    kept = Checkpoint("1-1.pt", "a" * 64)
    with made.sessions.begin() as session:
        _beat(session, job_id, checkpoints=[kept])
        attempts.fail(session, job_id, 1, failure=FAILURE)
        assert not jobs.retry(session, job_id, "somebody else")
        assert jobs.retry(session, job_id, "default")
    row = made.row(job_id)
    assert (row.status, row.error, row.finished_at, row.crashes, row.retries) == (Status.QUEUED, None, None, 0, 1)
    assert (row.runtime_deadline, row.publishes) == (None, 0)
    with made.sessions.begin() as session:
        claim = attempts.claim(session, job_id, owner="w", lease_seconds=LEASE)
    assert claim is not None
    assert (claim.attempt, claim.checkpoints) == (2, (kept,))
    assert made.events(job_id) == ["queued", "running", "failed", "requeued", "running"]


def test_artifacts_are_there_when_the_job_has_succeeded_and_never_otherwise(made: Jobs) -> None:
    done, stopped = made.running(), made.in_state(Status.CANCELLING)
    with made.sessions.begin() as session:
        assert _succeed(session, done) is Status.SUCCEEDED
        assert _succeed(session, stopped) is Status.CANCELLED
    with made.sessions() as session:
        assert [row.name for row in jobs.artifacts(session, done)] == ["report.json"]
        assert jobs.artifacts(session, stopped) == []
    assert made.row(stopped).result is None


def test_a_failure_is_told_by_row_and_log_alike(made: Jobs) -> None:
    job_id = made.in_state(Status.FAILED)
    with made.sessions() as session:
        last = jobs.events(session, job_id, after=0, limit=10)[-1]
    assert made.row(job_id).error == last.data == FAILURE.model_dump(mode="json")
    assert last.level == "error"


def test_another_tenant_cannot_cancel(made: Jobs) -> None:
    job_id = made.queued(tenant="a")
    with made.sessions.begin() as session:
        assert jobs.request_cancel(session, job_id, "b") is None
        assert jobs.get(session, job_id, "b") is None
    assert made.row(job_id).status == Status.QUEUED


# --- who wins --------------------------------------------------------------------------------------------------------


def test_of_workers_that_claim_at_once_one_wins_each_job(made: Jobs, both: Both) -> None:
    ids = [made.queued() for _ in range(30)]

    def claim_all(sessions: sessionmaker[Session]) -> list[str]:
        won = []
        for job_id in ids:
            with sessions.begin() as session:
                if attempts.claim(session, job_id, owner="w", lease_seconds=LEASE):
                    won.append(job_id)
        return won

    won = both(claim_all, claim_all, claim_all)

    assert Counter(job_id for each in won for job_id in each) == Counter(ids)
    assert all(made.events(job_id) == ["queued", "running"] for job_id in ids)


def test_a_cancel_and_an_end_at_once_leave_one_end(made: Jobs, both: Both) -> None:
    ids = [made.running() for _ in range(30)]

    def each(move: Move) -> Callable[[sessionmaker[Session]], dict[str, Any]]:
        def run(sessions: sessionmaker[Session]) -> dict[str, Any]:
            answers = {}
            for job_id in ids:
                with sessions.begin() as session:
                    answers[job_id] = move(session, job_id)
            return answers

        return run

    asked, ended = both(each(MOVES["request_cancel"][0]), each(_succeed))

    for job_id in ids:
        # A cancel that was accepted is kept, and one that came too late was told so.
        expected = Status.CANCELLED if asked[job_id] else Status.SUCCEEDED
        assert ended[job_id] is expected
        assert made.row(job_id).status == expected
        assert sum(Status(event).is_terminal for event in made.events(job_id)) == 1


def test_a_cancel_meets_a_job_that_is_handed_back_and_claimed_all_the_while(made: Jobs, both: Both) -> None:
    ids = [made.running() for _ in range(30)]

    def hand_on(sessions: sessionmaker[Session]) -> None:
        for job_id in ids:
            for attempt in (1, 2, 3):
                with sessions.begin() as session:
                    attempts.drain(session, job_id, attempt)
                with sessions.begin() as session:
                    attempts.claim(session, job_id, owner="w", lease_seconds=LEASE)

    def cancel(sessions: sessionmaker[Session]) -> list[Status | None]:
        answers = []
        for job_id in ids:
            with sessions.begin() as session:
                answers.append(jobs.request_cancel(session, job_id, "default"))
        return answers

    _, answers = both(hand_on, cancel)

    assert None not in answers
    assert {made.row(job_id).status for job_id in ids} <= {Status.CANCELLED, Status.CANCELLING}


def test_events_of_two_writers_are_numbered_without_gaps(made: Jobs, both: Both) -> None:
    job_id = made.running()

    def write(name: str) -> Callable[[sessionmaker[Session]], None]:
        def run(sessions: sessionmaker[Session]) -> None:
            for number in range(25):
                with sessions.begin() as session:
                    _beat(session, job_id, new_events=[NewEvent(name, {"n": number}), NewEvent(name, {"n": number})])

        return run

    both(write("a"), write("b"))

    with made.sessions() as session:
        events = jobs.events(session, job_id, after=0, limit=1_000)
        ahead: EventRow = jobs.events(session, job_id, after=50, limit=1)[0]
    assert [event.seq for event in events] == list(range(1, 103))
    assert Counter(event.type for event in events) == {"queued": 1, "running": 1, "a": 50, "b": 50}
    assert ahead.seq == 51
