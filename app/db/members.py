"""A sweep and its members: made together, ended together, and how the one learns of the others. Nothing here commits.

A sweep waits, without a lease, until all its members have ended, and is then queued as any job. Members know nothing of
that: what moves one moves its row alone. Whoever has moved one `settles` its sweep afterwards, and sweepers do so for
those who could not. Who locks the rows of both locks the sweep's first, so that no two wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, insert, literal, select
from sqlalchemy.orm import Session, aliased

from app.contract.status import Status
from app.db.clock import asked_at, now, seconds
from app.db.jobs import MAY_BE_RETRIED, NewJob, cancel, first_event, insert_row, retried
from app.db.models import TERMINAL_STATES, EventRow, JobRow
from app.db.moves import NewEvent, move, requeued, write_events

SETTLED_AT_ONCE = 100
"""Sweeps, by one round of a sweeper."""

ENDED = "member"
"""The event of a sweep's log that tells of a member's end."""

# Plain text, as in the condition of the index on those that wait: a parameter would hide it.
_WAITS = JobRow.status == literal(Status.WAITING.value, literal_execute=True)


def insert_sweep(session: Session, sweep: NewJob, members: Sequence[NewJob]) -> JobRow:
    """Insert a sweep that waits, and its queued members, of which `sweep.sources` has the ids."""
    values = sweep.values() | {
        "status": Status.WAITING,
        "queue_deadline": now() + seconds(sweep.spec["limits"]["max_members_seconds"]),
        "progress": _progress(0, len(members), moment := _moment(session), moment),
    }
    row = insert_row(session, values)
    write_events(session, row, [NewEvent(Status.WAITING, {"members": len(members)})])
    session.execute(insert(JobRow).values([each.values() | {"sweep_id": row.id} for each in members]))
    session.execute(insert(EventRow), [first_event(each.job_id) for each in members])
    return row


def _moment(session: Session) -> datetime:
    moment: datetime = session.scalars(select(now())).one()
    return moment


def _progress(ended: int, members: int, began: datetime, moment: datetime) -> dict[str, Any]:
    """As if the rest took as long as those before."""
    finish = moment + (moment - began) / ended * (members - ended) if ended else None
    return {
        "phase": "waiting",
        "completed": ended,
        "total": members,
        "unit": "members",
        "fraction": round(ended / members, 4),
        "updated_at": moment.isoformat(),
        "estimated_finish_at": finish and finish.isoformat(),
    }


def hold(session: Session, sweep_id: str) -> None:
    """Lock a sweep's row, before one of its members is moved by a transaction that `settles` it too."""
    session.execute(select(JobRow.id).where(JobRow.id == sweep_id).with_for_update())


def settle(session: Session, sweep_id: str) -> bool:
    """Tell a sweep that waits which of its members have ended since it was told last; when none is left, bring it into
    the queue. True when it has come there. Those who do this at once take turns by the lock of its row."""
    waiting = select(JobRow.sources, JobRow.progress, JobRow.queued_at).where(JobRow.id == sweep_id, _WAITS)
    sweep = session.execute(waiting.with_for_update()).one_or_none()
    if sweep is None:
        return False
    query = select(JobRow.id, JobRow.status, JobRow.retries, JobRow.error["code"].as_string().label("error_code"))
    members = session.execute(query.where(JobRow.sweep_id == sweep_id)).all()
    ended = [member for member in members if Status(member.status).is_terminal]
    count, total = len(sweep.sources) - (len(members) - len(ended)), len(sweep.sources)
    news = _untold(session, sweep_id, sweep.sources, ended)
    if not news and count == sweep.progress["completed"]:
        return False
    values: dict[str, Any] = {"progress": _progress(count, total, sweep.queued_at, _moment(session))}
    if done := count == total:
        values = requeued() | values
        news.append(NewEvent(Status.QUEUED))
    move(session, JobRow.id == sweep_id, values, news)
    return done


def _untold(session: Session, sweep_id: str, numbers: Sequence[str], ended: Sequence[Row[Any]]) -> list[NewEvent]:
    """An event for each end that the sweep's log does not have; one that is retried ends again."""
    told = select(EventRow.data["job_id"].as_string(), EventRow.data["retry"].as_integer())
    known = {tuple(row) for row in session.execute(told.where(EventRow.job_id == sweep_id, EventRow.type == ENDED))}
    news = sorted((numbers.index(each.id), each) for each in ended if (each.id, each.retries) not in known)
    return [NewEvent(ENDED, _told(number, each), _level(each.status)) for number, each in news]


def _told(number: int, member: Row[Any]) -> dict[str, Any]:
    end = {"member": number, "job_id": member.id, "status": member.status, "retry": member.retries}
    return end | ({"error_code": member.error_code} if member.error_code else {})


def _level(status: str) -> str:
    return "info" if status == Status.SUCCEEDED else "warning"


def unsettled(session: Session) -> Sequence[str]:
    """Some sweeps that wait and were not told of a member's end."""
    member = aliased(JobRow)
    left = select(func.count()).where(member.sweep_id == JobRow.id, member.status.not_in(TERMINAL_STATES))
    ended = func.cardinality(JobRow.sources) - left.correlate(JobRow).scalar_subquery()
    query = select(JobRow.id).where(_WAITS, ended != JobRow.progress["completed"].as_integer())
    return session.scalars(query.order_by(JobRow.queue_deadline).limit(SETTLED_AT_ONCE)).all()


def cancel_overdue(session: Session) -> str | None:
    """Cancel what has not ended of the members of a sweep that has waited for too long, if there is one. Returns its
    id."""
    member = aliased(JobRow)
    left = select(member.id).where(member.sweep_id == JobRow.id, member.status.in_([Status.QUEUED, Status.RUNNING]))
    late = and_(_WAITS, JobRow.queue_deadline < asked_at(), left.exists())
    query = select(JobRow.id).where(late).order_by(JobRow.queue_deadline).limit(1)
    sweep_id = session.scalar(query.with_for_update(skip_locked=True))
    if sweep_id is not None:
        cancelled = cancel_members(session, sweep_id, "sweep_timeout")
        move(session, JobRow.id == sweep_id, {}, [NewEvent("members_timeout", {"cancelled": cancelled}, "warning")])
    return sweep_id


def cancel_members(session: Session, sweep_id: str, reason: str) -> int:
    """Cancel those that have not ended, of a sweep whose row is locked. Returns how many that were."""
    return len(cancel(session, JobRow.sweep_id == sweep_id, {"reason": reason}))


def _to_be_retried(sweep_id: str) -> ColumnElement[bool]:
    return and_(JobRow.sweep_id == sweep_id, MAY_BE_RETRIED, JobRow.error["retryable"].as_boolean())


def count_to_be_retried(session: Session, sweep_id: str) -> int:
    return session.scalar(select(func.count()).where(_to_be_retried(sweep_id))) or 0


def retry_sweep(session: Session, sweep_id: str, tenant: str) -> bool:
    """failed → waiting, with those of its members that failed in a way that trying again may mend: they are queued."""
    failed = and_(JobRow.id == sweep_id, JobRow.tenant == tenant, MAY_BE_RETRIED)
    total = session.scalar(select(func.cardinality(JobRow.sources)).where(failed).with_for_update())
    if total is None:
        return False
    again = NewEvent("requeued", {"reason": "retry"})
    values = retried() | {
        "status": Status.WAITING,
        # The limit on waiting counts from here again, too.
        "queue_deadline": now() + seconds(JobRow.spec["limits"]["max_members_seconds"].as_integer()),
        "progress": _progress(0, total, moment := _moment(session), moment),
    }
    move(session, failed, values, [again])
    move(session, _to_be_retried(sweep_id), retried(), [again])
    settle(session, sweep_id)
    return True
