"""The ways out of every state that nobody attends to any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session, sessionmaker

from app.contract.failure import Failure, FailureCode
from app.contract.status import Status
from app.db import attempts, jobs, sweep
from tests.db.conftest import Jobs

NOTHING: dict[str, list[str]] = {
    "cancelled": [],
    "runtime_timeout": [],
    "worker_lost": [],
    "requeued": [],
    "queue_timeout": [],
}


def _sweep(made: Jobs, max_attempts: int = 3) -> dict[str, list[str]]:
    with made.sessions.begin() as session:
        return sweep.sweep(session, max_attempts=max_attempts)


@pytest.mark.parametrize("status", Status)
def test_a_job_in_good_order_is_left_alone(made: Jobs, status: Status) -> None:
    job_id = made.in_state(status)
    before = made.row(job_id).revision
    assert _sweep(made) == NOTHING
    assert made.row(job_id).revision == before


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED, Status.CANCELLED])
def test_a_job_that_has_ended_stays_ended_whatever_the_time(made: Jobs, status: Status) -> None:
    job_id = made.in_state(status)
    made.past(job_id, "queue_deadline", "runtime_deadline", "publish_at")
    assert _sweep(made) == NOTHING
    with made.sessions.begin() as session:
        assert sweep.due_messages(session) == []


@pytest.mark.parametrize(
    ("status", "late", "action", "becomes", "code"),
    [
        (Status.QUEUED, "queue_deadline", "queue_timeout", Status.FAILED, FailureCode.QUEUE_TIMEOUT),
        (Status.RUNNING, "runtime_deadline", "runtime_timeout", Status.FAILED, FailureCode.RUNTIME_TIMEOUT),
        (Status.RUNNING, "lease_expires_at", "requeued", Status.QUEUED, None),
        (Status.CANCELLING, "lease_expires_at", "cancelled", Status.CANCELLED, None),
        (Status.CANCELLING, "runtime_deadline", "cancelled", Status.CANCELLED, None),
        (Status.CANCELLING, "cancel_deadline", "cancelled", Status.CANCELLED, None),
    ],
)
def test_a_stuck_job_gets_its_way_out(
    made: Jobs, status: Status, late: str, action: str, becomes: Status, code: FailureCode | None
) -> None:
    job_id = made.in_state(status)
    made.past(job_id, late)

    assert _sweep(made) == {**NOTHING, action: [job_id]}

    row = made.row(job_id)
    assert row.status == becomes
    assert status.may_become(becomes)
    assert made.events(job_id)[-1] == (action if action == "requeued" else becomes)
    assert (row.error or {}).get("code") == code
    if code:
        assert row.error is not None
        assert row.error["attempt"] == row.attempt
        assert row.error["retryable"] is code.retryable
        assert row.error["details"] == {"phase": "waiting" if status is Status.QUEUED else "preparing_data"}
    assert _sweep(made) == NOTHING


def test_a_job_that_loses_its_worker_again_and_again_fails_at_the_cap(made: Jobs) -> None:
    job_id = made.queued()
    for attempt in range(1, 4):
        made.running(job_id)
        made.past(job_id, "lease_expires_at")
        assert _sweep(made) == {**NOTHING, "requeued" if attempt < 3 else "worker_lost": [job_id]}

    row = made.row(job_id)
    assert row.error is not None
    assert (row.status, row.error["code"], row.error["attempt"]) == (Status.FAILED, "worker_lost", 3)
    assert row.crashes == 2
    assert Counter(made.events(job_id)) == {"queued": 1, "running": 3, "requeued": 2, "failed": 1}


def test_a_job_handed_back_any_number_of_times_is_no_crash(made: Jobs) -> None:
    job_id = made.queued()
    for attempt in range(1, 6):
        made.running(job_id)
        with made.sessions.begin() as session:
            assert attempts.drain(session, job_id, attempt)
    made.running(job_id)
    made.past(job_id, "lease_expires_at")
    assert _sweep(made)["requeued"] == [job_id]


def test_a_requeued_job_waits_by_a_clock_of_its_own(made: Jobs) -> None:
    job_id = made.running()
    made.past(job_id, "lease_expires_at", "queue_deadline")  # it waited long before it ran
    assert _sweep(made) == {**NOTHING, "requeued": [job_id]}
    assert _sweep(made) == NOTHING
    with made.sessions.begin() as session:
        assert sweep.due_messages(session) == [job_id]


def test_any_number_of_sweepers_move_each_job_once(made: Jobs, both: Callable[..., list[Any]]) -> None:
    ids = [made.running() for _ in range(30)]
    for job_id in ids:
        made.past(job_id, "lease_expires_at")

    def sweep_requeued(sessions: sessionmaker[Session]) -> list[str]:
        with sessions.begin() as session:
            return sweep.sweep(session, max_attempts=3)["requeued"]

    swept = both(sweep_requeued, sweep_requeued, sweep_requeued)

    assert Counter(job_id for each in swept for job_id in each) == Counter(ids)
    assert {made.row(job_id).crashes for job_id in ids} == {1}


def test_a_lease_that_runs_out_amid_a_sweep_does_not_give_a_job_one_more_attempt(
    made: Jobs, sessions: sessionmaker[Session]
) -> None:
    job_id = made.running()
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET crashes = 2"))
    engine = sessions.kw["bind"]
    expired = list[str]()

    def expire(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "crashes" in statement and not expired:  # those that have had all their attempts were just looked for
            expired.append(statement)
            made.past(job_id, "lease_expires_at")

    event.listen(engine, "after_cursor_execute", expire)
    first = _sweep(made)
    event.remove(engine, "after_cursor_execute", expire)

    assert expired
    assert (first, _sweep(made)) == (NOTHING, NOTHING | {"worker_lost": [job_id]})


def test_a_sweep_takes_a_bounded_number_the_longest_waiting_first(made: Jobs) -> None:
    ids = [made.queued() for _ in range(sweep.SWEEP_BATCH + 1)]
    with made.sessions.begin() as session:
        session.execute(text("UPDATE jobs SET queue_deadline = clock_timestamp() - interval '1 second'"))
    rounds = [_sweep(made)["queue_timeout"] for _ in range(3)]
    assert [sorted(each) for each in rounds] == [sorted(ids[:-1]), ids[-1:], []]


def test_a_message_is_due_soon_then_ever_more_seldom_and_at_least_once_an_hour(made: Jobs) -> None:
    job_id = made.queued()
    waits = [_wait(made, job_id)]
    for _ in range(9):
        made.past(job_id, "publish_at")
        with made.sessions.begin() as session:
            assert sweep.due_messages(session) == [job_id]
            assert sweep.due_messages(session) == []
        waits.append(_wait(made, job_id))

    expected = [5, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600, 3_600]
    assert waits == pytest.approx(expected, abs=2)


def test_messages_are_due_while_fewer_wait_than_jobs_and_than_are_sent_at_once(made: Jobs) -> None:
    ids = {made.queued() for _ in range(3)}
    made.running()
    with made.sessions.begin() as session:
        sweep.make_all_due(session)
        assert [sweep.due_messages(session, waiting=waiting) for waiting in (3, 4, sweep.SWEEP_BATCH)] == [[], [], []]
        assert set(sweep.due_messages(session, waiting=2)) == ids


def test_no_message_is_due_for_a_job_that_runs(made: Jobs) -> None:
    job_id = made.running()
    made.past(job_id, "publish_at")
    with made.sessions.begin() as session:
        assert sweep.due_messages(session) == []


def test_the_depth_tells_what_waits_and_for_how_long(made: Jobs) -> None:
    with made.sessions() as session:
        assert jobs.depth(session) == (0, 0, None)
    first = made.queued()
    for status in Status:
        made.in_state(status)
    made.past(first, "queued_at")

    with made.sessions() as session:
        depth = jobs.depth(session)
    assert (depth.queued, depth.running) == (4, 2)  # of the sweep that waits, its members alone
    assert depth.oldest_queued_seconds == pytest.approx(1, abs=10)


def test_a_new_broker_is_given_all_that_is_queued(made: Jobs) -> None:
    ids = {made.queued() for _ in range(3)}
    made.running()
    with made.sessions.begin() as session:
        sweep.make_all_due(session)
        assert set(sweep.due_messages(session)) == ids
        assert sweep.due_messages(session) == []
        assert sweep.make_all_due(session) == 3
        assert set(sweep.due_messages(session)) == ids


def test_of_sweepers_that_meet_a_new_broker_each_leaves_what_another_is_at(made: Jobs) -> None:
    """And what is due already: a hundred thousand rows take seconds, for which others would wait one by one."""
    first, second, due = made.queued(), made.queued(), made.queued()
    made.past(due, "publish_at")
    with made.sessions.begin() as session:
        session.execute(text("UPDATE jobs SET publish_at = now() + interval '1 hour' WHERE id <> :id"), {"id": due})
    with made.sessions.begin() as session, made.sessions.begin() as other:
        session.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": first})
        other.execute(text("SET LOCAL lock_timeout = '1s'"))
        assert sweep.make_all_due(other) == 1
    assert made.row(second).publish_at < made.row(first).publish_at


def test_the_leases_of_a_process_that_is_gone_are_over_and_no_others(made: Jobs) -> None:
    ids = {}
    for owner in ("host:1:a/10", "host:1:a/101", "host:1:ab/10", "host_1:a/10"):
        ids[owner] = made.queued()
        with made.sessions.begin() as session:
            assert attempts.claim(session, ids[owner], owner=owner, lease_seconds=60)
    with made.sessions.begin() as session:
        assert {lease.owner for lease in attempts.leases(session, "host:1:a")} == {"host:1:a/10", "host:1:a/101"}
        assert attempts.expire_leases(session, "host:1:a/10") == [ids["host:1:a/10"]]
    assert _sweep(made)["requeued"] == [ids["host:1:a/10"]]
    with made.sessions.begin() as session:
        assert set(attempts.expire_leases(session)) == {ids[owner] for owner in ids if owner != "host:1:a/10"}


@pytest.mark.parametrize(
    ("status", "attempt", "keeps"),
    [(Status.SUCCEEDED, 1, []), (Status.FAILED, None, ["1-1.pt"]), (Status.CANCELLED, None, [])],
)
def test_an_ended_job_is_tidied_once_and_again_after_a_retry(
    made: Jobs, status: Status, attempt: int | None, keeps: list[str]
) -> None:
    made.running()
    job_id = made.running()
    with made.sessions.begin() as session:
        checkpoints = [attempts.Checkpoint("1-1.pt", "0" * 64)]
        attempts.beat(session, job_id, 1, lease_seconds=60, phase="training", progress=None, checkpoints=checkpoints)
    made.end(job_id, status)
    untidied = sweep.Ended(job_id, attempt, frozenset(keeps), 1)
    for _ in range(2):  # until it is told that they are in order
        with made.sessions.begin() as session:
            assert sweep.untidied(session) == [untidied]
    with made.sessions.begin() as session:
        sweep.tidied(session, [job_id])
    with made.sessions.begin() as session:
        assert sweep.untidied(session) == []
        attempts.look_again(session, job_id)
        assert sweep.untidied(session) == [untidied]
        again = jobs.retry(session, job_id, "default")
        attempts.look_again(session, job_id)
        assert sweep.untidied(session) == ([] if again else [untidied])
    assert again == (status is Status.FAILED)
    if again:
        with made.sessions.begin() as session:
            assert jobs.request_cancel(session, job_id, "default") is Status.CANCELLED
            assert sweep.untidied(session) == [sweep.Ended(job_id, None, frozenset(), 1)]


def test_who_submits_upon_a_job_does_not_wait_for_its_files_to_be_tidied(made: Jobs) -> None:
    job_id = made.in_state(Status.SUCCEEDED)
    with made.sessions.begin() as sweeper, made.sessions.begin() as client:
        assert [ended.job_id for ended in sweep.untidied(sweeper)] == [job_id]
        client.execute(text("SET LOCAL lock_timeout = '1s'"))
        assert jobs.get(client, job_id, "default", lock="keep") is not None


def test_of_sweepers_at_once_one_tidies_each_job(made: Jobs, both: Callable[..., list[Any]]) -> None:
    ids = [made.in_state(Status.SUCCEEDED) for _ in range(20)]

    def tidy(sessions: sessionmaker[Session]) -> list[str]:
        found: list[str] = []
        while True:
            with sessions.begin() as session:
                batch = [ended.job_id for ended in sweep.untidied(session)]
                sweep.tidied(session, batch)
            if not batch:
                return found
            found += batch

    assert sorted(job_id for each in both(tidy, tidy, tidy) for job_id in each) == sorted(ids)


def test_a_message_that_could_not_be_sent_is_due_as_before(made: Jobs) -> None:
    job_id, taken = made.queued(), made.queued()
    made.past(job_id, "publish_at")
    made.past(taken, "publish_at")
    with made.sessions.begin() as session:
        assert set(sweep.due_messages(session)) == {job_id, taken}
    made.running(taken)
    with made.sessions.begin() as session:
        sweep.make_due(session, [job_id, taken])
        assert sweep.due_messages(session) == [job_id]
    assert made.row(job_id).publishes == 1


def _wait(made: Jobs, job_id: str) -> float:
    with made.sessions() as session:
        query = text("SELECT extract(epoch FROM publish_at - clock_timestamp()) FROM jobs WHERE id = :id")
        return float(session.execute(query, {"id": job_id}).scalar_one())


def test_an_upload_is_needed_until_no_attempt_can_read_it_any_more(made: Jobs) -> None:
    ids = {status: made.in_state(status) for status in Status}
    hopeless = made.running()
    failure = Failure.of(FailureCode.INVALID_CHECKPOINT, "It is none.", attempt=1)
    with made.sessions.begin() as session:
        attempts.fail(session, hopeless, 1, failure=failure)
        needed = sweep.uploads_needed(session, [*ids.values(), hopeless, "job_" + "0" * 32])

    assert needed == {
        ids[Status.WAITING]: True,
        ids[Status.QUEUED]: True,
        ids[Status.RUNNING]: True,
        ids[Status.CANCELLING]: True,
        ids[Status.SUCCEEDED]: False,
        ids[Status.FAILED]: True,  # a retry may go well
        ids[Status.CANCELLED]: False,
        hopeless: False,
    }
