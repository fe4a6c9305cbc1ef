"""What gives every stuck job its way out. Any number of sweepers may run at once: each job is moved by one of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, any_, cast, delete, func, insert, literal, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB, array
from sqlalchemy.orm import Session, aliased

from app.contract.failure import Failure, FailureCode
from app.contract.status import Status
from app.db.clock import asked_at, now, seconds
from app.db.models import TERMINAL_STATES, IdempotencyRow, JobRow, PurgedRow
from app.db.moves import ENDED, LEASED, NewEvent, move, requeued

SWEEP_BATCH = 100
TIDY_BATCH = 20
"""Their rows are locked for as long as it takes to remove files."""

PURGE_GRACE_SECONDS = 30
"""From a job's purge to the removal of its bytes: who was just then allowed to read them has them open by then."""

KEY_KEPT_SECONDS = 2 * 86_400
"""An idempotency key; a day is promised."""

_ANY_ORDER = func.random()
"""What cannot be removed is met again each time: in an order, a batch of such would keep all others from their turn."""

MARK_KEPT_SECONDS = 365 * 86_400
"""Of a purged job: 410 that long, then 404."""


def _batch(where: ColumnElement[bool]) -> ColumnElement[bool]:
    """Some of the jobs that meet `where`, the longest waiting first, passing over those that another sweeper holds."""
    chosen = select(JobRow.id).where(where).order_by(JobRow.queued_at).limit(SWEEP_BATCH)
    return JobRow.id == any_(chosen.with_for_update(skip_locked=True).scalar_subquery().self_group())


def _moved(session: Session, where: ColumnElement[bool], values: dict[str, Any], event: NewEvent) -> list[str]:
    return [row.id for row in move(session, _batch(where), values, [event])]


def _failed(session: Session, where: ColumnElement[bool], code: FailureCode, message: str) -> list[str]:
    failure = Failure.of(code, message, attempt=0).model_dump(mode="json")
    # Attempt and phase are known to the row alone.
    known = func.jsonb_build_object(
        "attempt", JobRow.attempt, "details", func.jsonb_build_object("phase", JobRow.phase)
    )
    error = cast(literal(failure, JSONB), JSONB).concat(known)
    event = NewEvent(Status.FAILED, {"code": code, "message": message}, "error")
    return _moved(session, where, ENDED | {"status": Status.FAILED, "error": error}, event)


def sweep(session: Session, *, max_attempts: int) -> dict[str, list[str]]:
    """Give every job that is stuck its way out. Returns the ids by action."""
    overdue = and_(JobRow.status.in_(LEASED), JobRow.lease_expires_at <= asked_at())
    # Asked again by each statement: a lease may run out between two of them.
    may_go_on = JobRow.crashes + 1 < max_attempts
    running = JobRow.status == Status.RUNNING
    late = or_(overdue, JobRow.cancel_deadline < asked_at(), JobRow.runtime_deadline < asked_at())
    return {
        "cancelled": _moved(
            session,
            # An attempt that beats and never looks up, as in a hung native call, is let go at the limit.
            and_(JobRow.status == Status.CANCELLING, late),
            ENDED | {"status": Status.CANCELLED, "checkpoints": []},
            NewEvent(Status.CANCELLED, {"reason": "attempt_not_heard_of"}),
        ),
        "runtime_timeout": _failed(
            session,
            and_(running, JobRow.runtime_deadline < asked_at()),
            FailureCode.RUNTIME_TIMEOUT,
            "The job ran longer than limits.max_runtime_seconds: raise the limit, or ask for fewer epochs.",
        ),
        "worker_lost": _failed(
            session,
            and_(overdue, running, ~may_go_on),
            FailureCode.WORKER_LOST,
            f"The worker was lost {max_attempts} times while it ran this job: it may need more memory than there is, "
            "or a GPU may be at fault, which the workers' logs tell.",
        ),
        "requeued": _moved(
            session,
            and_(overdue, running, may_go_on),
            requeued() | {"crashes": JobRow.crashes + 1},
            NewEvent("requeued", {"reason": "lease_expired"}, "warning"),
        ),
        "queue_timeout": _failed(
            session,
            and_(JobRow.status == Status.QUEUED, JobRow.queue_deadline < asked_at()),
            FailureCode.QUEUE_TIMEOUT,
            "No worker took the job within limits.max_queue_seconds: see /v1/system for workers, then submit again.",
        ),
    }


def due_messages(session: Session, *, waiting: int = 0) -> list[str]:
    """Queued jobs whose wake-up message is due. Each is due again after 60 s·2^k, at most an hour. None is while as
    many messages wait as jobs, or as are sent at once: whichever job one is about, it leads to the next, so that
    further ones would only pile up where no worker takes them."""
    beyond = select(JobRow.id).where(JobRow.status == Status.QUEUED).offset(waiting).limit(1)
    if waiting >= SWEEP_BATCH or session.scalar(beyond) is None:
        return []
    due = and_(JobRow.status == Status.QUEUED, JobRow.publish_at <= asked_at())
    wait = func.least(60 * func.power(2, func.least(JobRow.publishes, 10)), 3600)
    return list(
        session.scalars(
            update(JobRow)
            .where(_batch(due))
            .values(publish_at=now() + seconds(wait), publishes=JobRow.publishes + 1)
            .returning(JobRow.id)
        )
    )


def make_due(session: Session, job_ids: Sequence[str]) -> None:
    """Their messages could not be sent after all."""
    unsent = and_(JobRow.id.in_(job_ids), JobRow.status == Status.QUEUED)
    session.execute(update(JobRow).where(unsent).values(publish_at=now(), publishes=JobRow.publishes - 1))


def make_all_due(session: Session) -> int:
    """Every queued job's message is due now, because the broker has lost what it was given. Returns how many."""
    later = and_(JobRow.status == Status.QUEUED, JobRow.publish_at > asked_at())
    chosen = select(JobRow.id).where(later).with_for_update(skip_locked=True)
    statement = update(JobRow).where(JobRow.id.in_(chosen)).values(publish_at=now(), publishes=0)
    return len(session.scalars(statement.returning(JobRow.id)).all())


def expire(session: Session) -> list[str]:
    """Purge some jobs whose time is over, but none that another one still reads. Returns their ids."""
    reader = aliased(JobRow)
    read = select(reader.id).where(reader.sources.contains(array([JobRow.id])), reader.status.not_in(TERMINAL_STATES))
    over = and_(JobRow.expires_at <= asked_at(), JobRow.purged_at.is_(None), ~read.exists())
    query = select(JobRow.id).where(over).order_by(JobRow.expires_at).limit(SWEEP_BATCH)
    chosen = session.scalars(query.with_for_update(skip_locked=True)).all()
    if not chosen:
        return []
    # Asked again, now that they are locked: a job may have been submitted upon one of them meanwhile.
    users = and_(JobRow.sources.overlap(chosen), JobRow.status.not_in(TERMINAL_STATES))
    used = set(session.scalars(select(func.unnest(JobRow.sources)).where(users)))
    free = and_(JobRow.id.in_(set(chosen) - used))
    return [row.id for row in move(session, free, {"purged_at": now()}, [])]


def doomed(session: Session) -> Sequence[str]:
    """Some purged jobs whose bytes are to go, their rows locked until the transaction ends. Then they are `buried`."""
    over = JobRow.purged_at <= asked_at() - seconds(PURGE_GRACE_SECONDS)
    query = select(JobRow.id).where(over).order_by(_ANY_ORDER).limit(TIDY_BATCH)
    return session.scalars(query.with_for_update(skip_locked=True)).all()


def buried(session: Session, job_ids: Sequence[str]) -> None:
    """Their bytes are gone: so are their rows, log and list of artifacts, but for the mark that they were there."""
    gone = select(JobRow.id, JobRow.tenant, JobRow.purged_at).where(JobRow.id.in_(job_ids))
    session.execute(insert(PurgedRow).from_select(["id", "tenant", "purged_at"], gone))
    session.execute(delete(JobRow).where(JobRow.id.in_(job_ids)))


def forget(session: Session) -> None:
    """What nobody can ask for any more: old idempotency keys, and marks of jobs that were purged long ago."""
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < asked_at() - seconds(KEY_KEPT_SECONDS)))
    session.execute(delete(PurgedRow).where(PurgedRow.purged_at < asked_at() - seconds(MARK_KEPT_SECONDS)))


class Ended(NamedTuple):
    """A job that has ended, whose files are still to be put in order."""

    job_id: str
    attempt: int | None
    """Of the artifacts, when it succeeded."""
    checkpoints: frozenset[str]
    """Those that a retry may go on from."""
    last: int
    """The last attempt that there has been: what is of a later one is not to be touched."""


def untidied(session: Session) -> list[Ended]:
    """Some jobs that ended and still may have files of losing attempts. They are locked until the transaction ends, so
    that a retry waits; who submits upon one does not. `tidied` marks those that are in order."""
    untidied = and_(JobRow.status.in_(TERMINAL_STATES), JobRow.tidied_at.is_(None))
    query = select(JobRow).where(untidied).order_by(_ANY_ORDER)
    rows = session.scalars(query.limit(TIDY_BATCH).with_for_update(skip_locked=True, key_share=True))
    return [
        Ended(
            row.id,
            row.attempt if row.status == Status.SUCCEEDED else None,
            frozenset(checkpoint["name"] for checkpoint in row.checkpoints),
            row.attempt,
        )
        for row in rows
    ]


def uploads_needed(session: Session, job_ids: Collection[str]) -> dict[str, bool]:
    """Of those that are jobs: whether an attempt may still read the job's upload. A failed job that may go well when it
    is tried again keeps its own, as a failed training keeps its checkpoints."""
    may_be_retried = JobRow.error["retryable"].as_boolean()
    needed = or_(JobRow.status.not_in(TERMINAL_STATES), and_(JobRow.status == Status.FAILED, may_be_retried))
    rows = session.execute(select(JobRow.id, needed).where(JobRow.id.in_(job_ids)))
    return {job_id: bool(wanted) for job_id, wanted in rows}


def tidied(session: Session, job_ids: Sequence[str]) -> None:
    session.execute(update(JobRow).where(JobRow.id.in_(job_ids)).values(tidied_at=now()))
