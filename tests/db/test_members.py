"""Sweeps and their members: what each end, cancel and retry of the one does to the other, and who may race."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from app.contract.failure import Failure, FailureCode
from app.contract.status import Status
from app.core.limits import UNLIMITED
from app.db import attempts, jobs, members, metrics, sweep, turns
from app.db.models import EventRow
from app.services import jobs as service
from tests.db.conftest import FAILURE, LEASE, TERMS, Jobs

Both = Callable[..., list[Any]]
LOST = Failure.of(FailureCode.NON_FINITE_LOSS, "It went to infinity.", attempt=1)


def _settle(made: Jobs, sweep_id: str) -> bool:
    with made.sessions.begin() as session:
        return members.settle(session, sweep_id)


def _log(made: Jobs, job_id: str) -> Sequence[EventRow]:
    with made.sessions() as session:
        return jobs.events(session, job_id, after=0, limit=1_000)


def _end(made: Jobs, job_id: str, status: Status = Status.SUCCEEDED) -> None:
    made.running(job_id)
    made.end(job_id, status)


def _progress(made: Jobs, job_id: str) -> tuple[int, int]:
    progress = made.row(job_id).progress
    assert progress is not None
    return progress["completed"], progress["total"]


def test_a_sweep_waits_while_its_members_have_their_turns_in_the_grids_order(made: Jobs) -> None:
    sweep_id, ids = made.sweep([0.1, 0.2, 0.3])
    row = made.row(sweep_id)
    assert (row.status, row.kind, row.phase, row.sources) == ("waiting", "sweep", "waiting", ids)
    assert _progress(made, sweep_id) == (0, 3)
    assert [made.row(job_id).sweep_id for job_id in ids] == [sweep_id] * 3
    assert [made.row(job_id).spec["pruning"]["threshold"] for job_id in ids] == [0.1, 0.2, 0.3]
    with made.sessions.begin() as session:
        claims = [turns.claim_next(session, owner="w", lease_seconds=LEASE, max_running=9) for _ in range(4)]
    assert [claim and claim.job_id for claim in claims] == [*ids, None]
    assert all(claim.sweep_id == sweep_id for claim in claims if claim)


def test_a_waiting_sweep_is_in_no_queue(made: Jobs) -> None:
    sweep_id, ids = made.sweep()
    with made.sessions.begin() as session:
        assert turns.turn(session, sweep_id, max_running=9) is None
        assert attempts.claim(session, sweep_id, owner="w", lease_seconds=LEASE) is None
        assert jobs.depth(session).queued == len(ids)
        assert metrics.active(session) == {"waiting": 1, "queued": 2, "running": 0, "cancelling": 0}
        sweep.make_all_due(session)
        assert set(sweep.due_messages(session)) == set(ids)


def test_its_log_tells_of_each_end_and_the_last_one_brings_it_into_the_queue(made: Jobs) -> None:
    sweep_id, (first, second) = made.sweep()
    _end(made, second)
    assert not _settle(made, sweep_id)
    assert _progress(made, sweep_id) == (1, 2)
    assert made.row(sweep_id).status == Status.WAITING
    _end(made, first, Status.FAILED)
    assert _settle(made, sweep_id)

    row = made.row(sweep_id)
    assert (row.status, row.publishes) == (Status.QUEUED, 0)
    assert [(event.type, event.level) for event in _log(made, sweep_id)] == [
        ("waiting", "info"),
        ("member", "info"),
        ("member", "warning"),
        ("queued", "info"),
    ]
    assert [event.data for event in _log(made, sweep_id)[1:3]] == [
        {"member": 1, "job_id": second, "status": "succeeded", "retry": 0},
        {"member": 0, "job_id": first, "status": "failed", "retry": 0, "error_code": "internal_error"},
    ]
    made.running(sweep_id)


def test_nothing_new_is_no_change(made: Jobs) -> None:
    sweep_id, (first, _) = made.sweep()
    _end(made, first)
    _settle(made, sweep_id)
    before = made.row(sweep_id)
    assert not _settle(made, sweep_id)
    assert (made.row(sweep_id).revision, made.row(sweep_id).updated_at) == (before.revision, before.updated_at)


def test_who_died_before_telling_a_sweep_is_stood_in_for(made: Jobs) -> None:
    told, untold, waits = made.sweep(), made.sweep(), made.sweep()
    for each in (told, untold):
        _end(made, each.members[0])
    _settle(made, told.id)
    with made.sessions() as session:
        assert members.unsettled(session) == [untold.id]
    _settle(made, untold.id)
    with made.sessions() as session:
        assert members.unsettled(session) == []
    assert _progress(made, waits.id) == (0, 2)


@pytest.mark.parametrize("times", range(5))
def test_the_last_two_members_that_end_at_once_bring_it_into_the_queue_once(made: Jobs, both: Both, times: int) -> None:
    sweep_id, ids = made.sweep([0.1, 0.2, 0.3, 0.4])
    for job_id in ids:
        made.running(job_id)

    def ending(*job_ids: str) -> Callable[[sessionmaker[Session]], list[bool]]:
        def run(sessions: sessionmaker[Session]) -> list[bool]:
            came = []
            for job_id in job_ids:
                with sessions.begin() as session:
                    attempts.fail(session, job_id, 1, failure=FAILURE)
                with sessions.begin() as session:
                    came.append(members.settle(session, sweep_id))
            return came

        return run

    came = [each for found in both(*(ending(job_id) for job_id in ids)) for each in found]

    assert sum(came) == 1
    assert made.row(sweep_id).status == Status.QUEUED
    assert sorted(event.data["member"] for event in _log(made, sweep_id) if event.type == "member") == [0, 1, 2, 3]
    assert made.events(sweep_id)[-1] == "queued"


def test_a_cancel_ends_what_has_not_ended_and_nothing_else(made: Jobs) -> None:
    sweep_id, (done, runs, queued) = made.sweep([0.1, 0.2, 0.3])
    _end(made, done)
    made.running(runs)
    with made.sessions.begin() as session:
        row, changed = service.cancel(session, "default", sweep_id)
    assert changed
    assert row.status == Status.CANCELLED
    assert [made.row(job_id).status for job_id in (done, runs, queued)] == ["succeeded", "cancelling", "cancelled"]
    assert _log(made, queued)[-1].data == {"reason": "sweep_cancelled"}
    made_end = made.row(sweep_id).revision
    assert not _settle(made, sweep_id)
    assert made.row(sweep_id).revision == made_end


@pytest.mark.parametrize("times", range(5))
def test_a_cancel_and_the_last_end_at_once_leave_one_end(made: Jobs, both: Both, times: int) -> None:
    sweeps = [made.sweep() for _ in range(6)]
    for each in sweeps:
        _end(made, each.members[0])
        made.running(each.members[1])

    def end(sessions: sessionmaker[Session]) -> None:
        for each in sweeps:
            with sessions.begin() as session:
                attempts.fail(session, each.members[1], 1, failure=FAILURE)
            with sessions.begin() as session:
                members.settle(session, each.id)

    def cancel(sessions: sessionmaker[Session]) -> None:
        for each in reversed(sweeps):
            with sessions.begin() as session:
                service.cancel(session, "default", each.id)

    both(end, cancel)

    for each in sweeps:
        assert made.row(each.id).status == Status.CANCELLED
        assert made.row(each.members[1]).status in (Status.CANCELLED, Status.FAILED)
        assert sum(event == "cancelled" for event in made.events(each.id)) == 1
        assert [event.seq for event in _log(made, each.id)] == list(range(1, made.row(each.id).events + 1))


def test_cancels_of_members_and_of_their_sweep_at_once_wait_for_each_other_in_one_order(made: Jobs, both: Both) -> None:
    sweeps = [made.sweep([0.1, 0.2, 0.3, 0.4]) for _ in range(5)]

    def cancel_members(sessions: sessionmaker[Session]) -> None:
        for each in sweeps:
            for job_id in each.members:
                with sessions.begin() as session:
                    service.cancel(session, "default", job_id)

    def cancel_sweeps(sessions: sessionmaker[Session]) -> None:
        for each in sweeps:
            with sessions.begin() as session:
                service.cancel(session, "default", each.id)

    both(cancel_members, cancel_sweeps, cancel_members)

    assert {made.row(job_id).status for each in sweeps for job_id in (each.id, *each.members)} == {"cancelled"}


def test_a_member_that_is_cancelled_by_itself_is_told_at_once(made: Jobs) -> None:
    sweep_id, (first, second) = made.sweep()
    for job_id in (first, second):
        with made.sessions.begin() as session:
            service.cancel(session, "default", job_id)
    assert made.row(sweep_id).status == Status.QUEUED
    assert made.events(sweep_id) == ["waiting", "member", "member", "queued"]


def test_a_retried_member_is_waited_for_again(made: Jobs) -> None:
    sweep_id, (first, second) = made.sweep()
    _end(made, first, Status.FAILED)
    _settle(made, sweep_id)
    with made.sessions.begin() as session:
        service.retry(session, "default", first, TERMS.limits)
    assert _progress(made, sweep_id) == (0, 2)
    _end(made, second)
    assert not _settle(made, sweep_id)
    with made.sessions.begin() as session:
        assert attempts.claim(session, first, owner="w", lease_seconds=LEASE)
        attempts.fail(session, first, 2, failure=FAILURE)
    assert _settle(made, sweep_id)
    assert [event.data["retry"] for event in _log(made, sweep_id) if event.type == "member"] == [0, 0, 1]


def test_a_sweep_that_has_waited_too_long_cancels_the_rest_and_goes_on_with_what_there_is(made: Jobs) -> None:
    sweep_id, (first, second) = made.sweep()
    _end(made, first)
    made.running(second)
    in_time = made.sweep()
    made.past(sweep_id, "queue_deadline")

    with made.sessions.begin() as session:
        assert members.cancel_overdue(session) == sweep_id
    with made.sessions.begin() as session:
        assert members.cancel_overdue(session) is None

    assert made.row(second).status == Status.CANCELLING
    assert made.row(sweep_id).status == Status.WAITING
    with made.sessions.begin() as session:
        attempts.cancelled(session, second, 1)
    assert _settle(made, sweep_id)
    assert made.events(sweep_id) == ["waiting", "members_timeout", "member", "member", "queued"]
    row = made.row(sweep_id)
    assert (row.queue_deadline - row.queued_at).total_seconds() == pytest.approx(86_400, abs=1)
    assert made.row(in_time.members[0]).status == Status.QUEUED


def test_the_sweeper_fails_no_sweep_for_waiting(made: Jobs) -> None:
    sweep_id, _ = made.sweep()
    made.past(sweep_id, "queue_deadline", "publish_at")
    with made.sessions.begin() as session:
        found = sweep.sweep(session, max_attempts=3)
    assert not any(found.values())


def test_members_are_kept_until_their_sweep_has_read_them(made: Jobs) -> None:
    sweep_id, (first, _) = made.sweep()
    _end(made, first)
    made.past(first, "expires_at")
    with made.sessions.begin() as session:
        assert sweep.expire(session) == []
        assert jobs.user_of(session, first) == sweep_id
    with made.sessions.begin() as session:
        service.cancel(session, "default", sweep_id)
    with made.sessions.begin() as session:
        assert sweep.expire(session) == [first]


def test_a_failed_sweep_is_retried_with_those_members_that_may_do_better(made: Jobs) -> None:
    sweep_id, (again, never, kept) = made.sweep([0.1, 0.2, 0.3])
    for job_id, failure in ((again, FAILURE), (never, LOST)):
        made.running(job_id)
        with made.sessions.begin() as session:
            attempts.fail(session, job_id, 1, failure=failure)
    _end(made, kept)
    _settle(made, sweep_id)
    made.running(sweep_id)
    made.end(sweep_id, Status.FAILED)

    with made.sessions.begin() as session:
        row = service.retry(session, "default", sweep_id, TERMS.limits)

    assert (row.status, row.retries, row.error) == (Status.WAITING, 1, None)
    assert [made.row(job_id).status for job_id in (again, never, kept)] == ["queued", "failed", "succeeded"]
    assert _progress(made, sweep_id) == (2, 3)
    assert made.events(sweep_id)[-2:] == ["failed", "requeued"]


def test_a_failed_sweep_of_which_no_member_may_do_better_is_queued_again(made: Jobs) -> None:
    sweep_id, ids = made.sweep()
    for job_id in ids:
        _end(made, job_id)
    _settle(made, sweep_id)
    made.running(sweep_id)
    made.end(sweep_id, Status.FAILED)
    with made.sessions.begin() as session:
        assert service.retry(session, "default", sweep_id, TERMS.limits).status == Status.QUEUED


def test_what_waits_is_counted_as_neither_requeued_nor_run(made: Jobs) -> None:
    sweep_id, ids = made.sweep()
    for job_id in ids:
        _end(made, job_id)
    _settle(made, sweep_id)
    cancelled = made.sweep()
    with made.sessions.begin() as session:
        service.cancel(session, "default", cancelled.id)
    with made.sessions() as session:
        found = [total for total in metrics.totals(session) if total.kind == "sweep"]
    assert {(total.metric, total.status, total.count) for total in found} == {
        ("submitted", "", 2),
        ("finished", "cancelled", 1),
    }


def test_the_database_lets_nothing_else_wait(made: Jobs) -> None:
    job_id = made.in_state(Status.FAILED)
    changes = "status = 'waiting', error = NULL, finished_at = NULL, expires_at = NULL"
    with pytest.raises(IntegrityError, match="sweeps_wait"), made.sessions.begin() as session:
        session.execute(text(f"UPDATE jobs SET {changes} WHERE id = :id"), {"id": job_id})
    sweep_id, _ = made.sweep()
    with pytest.raises(IntegrityError, match="no_sweeps_of_sweeps"), made.sessions.begin() as session:
        session.execute(text("UPDATE jobs SET sweep_id = 'job_0' WHERE id = :id"), {"id": sweep_id})


def test_another_tenant_can_neither_cancel_nor_retry_a_sweep(made: Jobs) -> None:
    sweep_id, ids = made.sweep()
    with made.sessions.begin() as session:
        assert jobs.request_cancel(session, sweep_id, "stranger") is None
        assert not members.retry_sweep(session, sweep_id, "stranger")
    assert {made.row(job_id).status for job_id in ids} == {"queued"}


def test_claims_of_many_workers_start_each_member_once(made: Jobs, both: Both) -> None:
    sweep_id, ids = made.sweep([number / 100 for number in range(24)])

    def work(sessions: sessionmaker[Session]) -> list[str]:
        done: list[str] = []
        while True:
            with sessions.begin() as session:
                claim = turns.claim_next(session, owner="w", lease_seconds=LEASE, max_running=UNLIMITED)
            if claim is None or claim.sweep_id is None:
                return done
            with sessions.begin() as session:
                attempts.fail(session, claim.job_id, 1, failure=FAILURE)
            with sessions.begin() as session:
                members.settle(session, sweep_id)
            done.append(claim.job_id)

    done = [job_id for each in both(work, work, work, work) for job_id in each]

    assert sorted(done) == sorted(ids)
    assert made.row(sweep_id).status in (Status.QUEUED, Status.RUNNING)
