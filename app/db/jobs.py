"""Jobs as clients see them: insert, read, list, and the moves that a client asks for. Nothing here commits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import and_, case, func, insert, literal, or_, select, tuple_, update
from sqlalchemy.orm import Session

from app.contract.status import Phase, Status
from app.db.clock import now, seconds
from app.db.models import ArtifactRow, EventRow, JobRow
from app.db.moves import LEASED, NewEvent, move, requeued, touched, write_events

PUBLISH_FIRST_SECONDS = 5
"""A submitted job's message is due again so soon, because the first sending may have failed unseen."""

CANCEL_SECONDS = 30
"""A cancelled attempt that has not stopped by then is given up: a live worker ends it long before."""


def insert_job(
    session: Session, *, job_id: str, tenant: str, spec: dict[str, Any], spec_version: int, retention_days: int
) -> JobRow:
    """Insert a queued job and its first event. The message to a worker comes after the commit."""
    row = session.execute(
        insert(JobRow)
        .values(
            id=job_id,
            tenant=tenant,
            kind=spec["kind"],
            status=Status.QUEUED,
            phase=Phase.WAITING,
            display_name=spec["display_name"],
            labels=spec["labels"],
            spec=spec,
            spec_version=spec_version,
            events=1,
            queue_deadline=now() + seconds(spec["limits"]["max_queue_seconds"]),
            publish_at=now() + seconds(PUBLISH_FIRST_SECONDS),
            expires_at=now() + seconds(retention_days * 86_400),
        )
        .returning(JobRow)
    ).scalar_one()
    write_events(session, row, [NewEvent(Status.QUEUED)])
    return row


def get(session: Session, job_id: str, tenant: str | None = None) -> JobRow | None:
    """A job by its id; with a tenant, only when it is that tenant's."""
    query = select(JobRow).where(JobRow.id == job_id)
    return session.scalar(query if tenant is None else query.where(JobRow.tenant == tenant))


class Position(NamedTuple):
    """The last entry of a page: the next one starts behind it."""

    created_at: datetime
    id: str


def page(
    session: Session,
    tenant: str,
    *,
    statuses: Sequence[str] = (),
    kinds: Sequence[str] = (),
    after: Position | None = None,
    limit: int,
) -> Sequence[JobRow]:
    """Jobs of a tenant, newest first."""
    query = select(JobRow).where(JobRow.tenant == tenant)
    if statuses:
        query = query.where(JobRow.status.in_(statuses))
    if kinds:
        query = query.where(JobRow.kind.in_(kinds))
    if after:
        query = query.where(tuple_(JobRow.created_at, JobRow.id) < tuple_(literal(after.created_at), literal(after.id)))
    return session.scalars(query.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)).all()


def events(session: Session, job_id: str, *, after: int, limit: int) -> Sequence[EventRow]:
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.seq > after)
    return session.scalars(query.order_by(EventRow.seq).limit(limit)).all()


def artifacts(session: Session, job_id: str) -> Sequence[ArtifactRow]:
    return session.scalars(select(ArtifactRow).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.name)).all()


def request_cancel(session: Session, job_id: str, tenant: str) -> Status | None:
    """queued → cancelled, or running → cancelling. None when the job is in neither state."""
    # One statement for both: a job that is just now handed back to the queue must be met in either state.
    waits = JobRow.status == Status.QUEUED
    row = session.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.tenant == tenant, JobRow.status.in_([Status.QUEUED, Status.RUNNING]))
        .values(
            status=case((waits, Status.CANCELLED), else_=Status.CANCELLING),
            phase=case((waits, None), else_=JobRow.phase),
            finished_at=case((waits, now())),
            checkpoints=case((waits, literal([], JobRow.checkpoints.type)), else_=JobRow.checkpoints),
            cancel_deadline=case((~waits, now() + seconds(CANCEL_SECONDS))),
            **touched(),
        )
        .returning(JobRow.id, JobRow.events, JobRow.attempt, JobRow.retries, JobRow.status)
    ).one_or_none()
    if row is None:
        return None
    write_events(session, row, [NewEvent(row.status)])
    return Status(row.status)


def retry(session: Session, job_id: str, tenant: str) -> bool:
    """failed → queued: the next attempt goes on from the last one's checkpoint, with all limits counted anew."""
    again: dict[str, Any] = requeued() | {
        "error": None,
        "finished_at": None,
        "runtime_deadline": None,
        "crashes": 0,
        "retries": JobRow.retries + 1,
        "tidied_at": None,
    }
    where = and_(JobRow.id == job_id, JobRow.tenant == tenant, JobRow.status == Status.FAILED)
    return bool(move(session, where, again, [NewEvent("requeued", {"reason": "retry"})]))


class Depth(NamedTuple):
    queued: int
    running: int
    oldest_queued_seconds: float | None


def depth(session: Session) -> Depth:
    """How much waits and how much runs, over all tenants."""
    queued = JobRow.status == Status.QUEUED
    age = func.extract("epoch", now() - func.min(JobRow.queued_at).filter(queued))
    row = session.execute(
        select(func.count().filter(queued), func.count().filter(~queued), age).where(
            or_(queued, JobRow.status.in_(LEASED))
        )
    ).one()
    return Depth(row[0], row[1], None if row[2] is None else float(row[2]))
