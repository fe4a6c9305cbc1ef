"""Jobs as clients see them: insert, read, list, and the moves that a client asks for. Nothing here commits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, Literal, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Row,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import ExecutableReturnsRows

from app.contract.status import Phase, Status
from app.db.clock import now, seconds
from app.db.models import EVENTS, JOBS, TERMINAL_STATES, ArtifactRow, EventRow, JobRow, PurgedRow
from app.db.moves import LEASED, NO_DATA, NewEvent, move, requeued, touched, write_events

PUBLISH_FIRST_SECONDS = 5
"""A submitted job's message is due again so soon, because the first sending may have failed unseen."""

RUNS_MEASURED = 50
"""How many of the last runs tell how long the next will take."""

CANCEL_SECONDS = 30
"""A cancelled attempt that has not stopped by then is given up: a live worker ends it long before."""


def insert_job(
    session: Session,
    *,
    job_id: str,
    tenant: str,
    spec: dict[str, Any],
    spec_version: int,
    sources: Sequence[str] = (),
    parent_job_id: str | None = None,
    retention_days: int,
    traceparent: str | None = None,
) -> JobRow:
    """Insert a queued job and its first event. The message to a worker comes after the commit."""
    new = NewJob(job_id, tenant, spec, spec_version, sources, parent_job_id, retention_days, traceparent)
    plain = new.plain_values()
    parameters = {_parameter(column): value for column, value in plain.items()} | {_QUEUE_SECONDS: new.queue_seconds}
    row: JobRow = session.scalars(_insertion(tuple(plain)), parameters).one()
    return row


@cache
def _insertion(columns: tuple[str, ...]) -> ExecutableReturnsRows:
    """Of a job and its first event, in one question: the event's foreign key is held against what is there at its end.
    Made once, for making it takes as long as asking it."""
    event = insert(EVENTS).values(first_event(bindparam(_parameter("id")))).cte("first_event")
    values: dict[str, Any] = {column: bindparam(_parameter(column)) for column in columns}
    job = insert(JOBS).values(values | _times(bindparam(_QUEUE_SECONDS))).returning(JOBS)
    return select(JobRow).from_statement(job.add_cte(event))


_QUEUE_SECONDS = "queue_seconds"


def _parameter(column: str) -> str:
    return f"new_{column}"  # SQLAlchemy keeps a column's own name for itself


def insert_row(session: Session, values: Mapping[str, Any]) -> JobRow:
    inserted = insert(JOBS).values(**values).returning(JOBS)
    row: JobRow = session.scalars(select(JobRow).from_statement(inserted)).one()
    return row


def first_event(job_id: str | BindParameter[str]) -> dict[str, Any]:
    """A queued job's, as a row of the log."""
    return {"job_id": job_id, "seq": 1, "type": Status.QUEUED, "level": "info", "attempt": 0, "retry": 0, "data": {}}


class NewJob(NamedTuple):
    job_id: str
    tenant: str
    spec: dict[str, Any]
    spec_version: int
    sources: Sequence[str]
    parent_job_id: str | None
    retention_days: int
    traceparent: str | None

    @property
    def queue_seconds(self) -> float:
        limit: float = self.spec["limits"]["max_queue_seconds"]
        return limit

    def values(self) -> dict[str, Any]:
        """Of a queued job's row, whose first event is still to be written."""
        return self.plain_values() | _times(self.queue_seconds)

    def plain_values(self) -> dict[str, Any]:
        """Those that the database need not work out."""
        return {
            "id": self.job_id,
            "tenant": self.tenant,
            "kind": self.spec["kind"],
            "status": Status.QUEUED,
            "phase": Phase.WAITING,
            "display_name": self.spec["display_name"],
            "labels": self.spec["labels"],
            "spec": self.spec,
            "spec_version": self.spec_version,
            "sources": list(self.sources),
            "parent_job_id": self.parent_job_id,
            "retention_seconds": self.retention_days * 86_400,
            "events": 1,
            "traceparent": self.traceparent,
        }


def _times(queue_seconds: float | BindParameter[float]) -> dict[str, ColumnElement[Any]]:
    return {
        "queue_deadline": now() + seconds(queue_seconds),
        "publish_at": now() + seconds(PUBLISH_FIRST_SECONDS),
    }


# Made once: what most requests ask.
_OF_TENANT = (JobRow.id == bindparam("job_id"), JobRow.tenant == bindparam("tenant"))
_JOB = select(JobRow).where(_OF_TENANT[0])
_JOB_OF_TENANT = select(JobRow).where(*_OF_TENANT)


def get(
    session: Session, job_id: str, tenant: str | None = None, *, lock: Literal["keep", "purge"] | None = None
) -> JobRow | None:
    """A job by its id; with a tenant, only when it is that tenant's. Also one that is purged, whose row may be there
    for a while. Until the transaction ends, nobody purges what one locks to `keep`, or keeps what one locks to
    `purge`."""
    query = _JOB if tenant is None else _JOB_OF_TENANT
    if lock is not None:
        keeps = lock == "keep"
        query = query.with_for_update(read=keeps, key_share=keeps).execution_options(populate_existing=True)
    return session.scalar(query, {"job_id": job_id} if tenant is None else {"job_id": job_id, "tenant": tenant})


class Standing(NamedTuple):
    """The little of a job that tells whether it is there, and goes on."""

    status: str
    purged_at: datetime | None


_STANDING = select(*(getattr(JobRow, name) for name in Standing._fields)).where(*_OF_TENANT)


def standing(session: Session, job_id: str, tenant: str) -> Standing | None:
    row = session.execute(_STANDING, {"job_id": job_id, "tenant": tenant}).one_or_none()
    return None if row is None else Standing(*row)


def purged_at(session: Session, job_id: str, tenant: str) -> datetime | None:
    """When a job of this tenant was purged whose row is gone."""
    return session.scalar(select(PurgedRow.purged_at).where(PurgedRow.id == job_id, PurgedRow.tenant == tenant))


class Position(NamedTuple):
    """The last entry of a page: the next one starts behind it."""

    created_at: datetime
    id: str


@dataclass(frozen=True)
class Filter:
    """What a list is narrowed to: one of the statuses, one of the kinds, and all else."""

    statuses: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None
    parent: str | None = None
    sweep: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    dataset_sha256: str | None = None


EVERYTHING = Filter()


def page(
    session: Session, tenant: str, wanted: Filter = EVERYTHING, *, after: Position | None = None, limit: int
) -> Sequence[JobRow]:
    """Jobs of a tenant, newest first."""
    query = select(JobRow).where(JobRow.tenant == tenant, JobRow.purged_at.is_(None))
    if wanted.statuses:
        query = query.where(JobRow.status.in_(wanted.statuses))
    if wanted.kinds:
        query = query.where(JobRow.kind.in_(wanted.kinds))
    if wanted.created_after:
        query = query.where(JobRow.created_at > wanted.created_after)
    if wanted.created_before:
        query = query.where(JobRow.created_at < wanted.created_before)
    if wanted.parent:
        query = query.where(JobRow.parent_job_id == wanted.parent)
    if wanted.sweep:
        query = query.where(JobRow.sweep_id == wanted.sweep)
    if wanted.labels:
        query = query.where(JobRow.labels.contains(dict(wanted.labels)))
    if wanted.dataset_sha256:
        query = query.where(JobRow.result["dataset_sha256"].astext == wanted.dataset_sha256)
    if after:
        query = query.where(tuple_(JobRow.created_at, JobRow.id) < tuple_(literal(after.created_at), literal(after.id)))
    return session.scalars(query.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)).all()


def events(session: Session, job_id: str, *, after: int, limit: int) -> Sequence[EventRow]:
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.seq > after)
    return session.scalars(query.order_by(EventRow.seq).limit(limit)).all()


def artifacts(session: Session, job_id: str) -> Sequence[ArtifactRow]:
    return session.scalars(select(ArtifactRow).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.name)).all()


def by_ids(session: Session, job_ids: Collection[str], tenant: str) -> Sequence[JobRow]:
    return session.scalars(select(JobRow).where(JobRow.id.in_(job_ids), JobRow.tenant == tenant)).all()


def built_upon(session: Session, job_id: str, tenant: str, *, limit: int) -> Sequence[JobRow]:
    """Jobs that read this one's files, and its reruns; the oldest first."""
    upon = or_(JobRow.sources.contains([job_id]), JobRow.parent_job_id == job_id)
    query = select(JobRow).where(JobRow.tenant == tenant, JobRow.purged_at.is_(None), upon)
    return session.scalars(query.order_by(JobRow.created_at, JobRow.id).limit(limit)).all()


def digests(session: Session, job_ids: Collection[str]) -> Mapping[tuple[str, str], str]:
    """The sha256 of each artifact of these jobs, by job and name."""
    query = select(ArtifactRow.job_id, ArtifactRow.name, ArtifactRow.sha256)
    rows = session.execute(query.where(ArtifactRow.job_id.in_(job_ids)))
    return {(row.job_id, row.name): row.sha256 for row in rows}


def request_cancel(session: Session, job_id: str, tenant: str) -> Status | None:
    """queued or waiting → cancelled, or running → cancelling. None when the job is in none of these states."""
    rows = cancel(session, and_(JobRow.id == job_id, JobRow.tenant == tenant))
    return Status(rows[0].status) if rows else None


def cancel(
    session: Session, where: ColumnElement[bool], data: Mapping[str, Any] = NO_DATA
) -> Sequence[Row[str, int, int, int, str]]:
    """The same for all that meet `where`; `data` is of their events. Returns what `move` does."""
    # One statement for all: a job that is just now handed back to the queue must be met in either state.
    waits = JobRow.status.in_([Status.QUEUED, Status.WAITING])
    rows = session.execute(
        update(JobRow)
        .where(where, JobRow.status.in_([Status.QUEUED, Status.WAITING, Status.RUNNING]))
        .values(
            status=case((waits, Status.CANCELLED), else_=Status.CANCELLING),
            phase=case((waits, None), else_=JobRow.phase),
            finished_at=case((waits, now())),
            expires_at=case((waits, now() + seconds(JobRow.retention_seconds))),
            checkpoints=case((waits, literal([], JobRow.checkpoints.type)), else_=JobRow.checkpoints),
            cancel_deadline=case((~waits, now() + seconds(CANCEL_SECONDS))),
            **touched(),
        )
        .returning(JobRow.id, JobRow.events, JobRow.attempt, JobRow.retries, JobRow.status)
    ).all()
    for row in rows:
        write_events(session, row, [NewEvent(row.status, data)])
    return rows


def retry(session: Session, job_id: str, tenant: str) -> bool:
    """failed → queued: the next attempt goes on from the last one's checkpoint, with all limits counted anew."""
    where = and_(JobRow.id == job_id, JobRow.tenant == tenant)
    return bool(move(session, and_(where, MAY_BE_RETRIED), retried(), [NewEvent("requeued", {"reason": "retry"})]))


MAY_BE_RETRIED = and_(JobRow.status == Status.FAILED, JobRow.purged_at.is_(None))


def retried() -> dict[str, Any]:
    """What brings a failed job back into the queue."""
    return requeued() | {
        "error": None,
        "finished_at": None,
        "runtime_deadline": None,
        "crashes": 0,
        "retries": JobRow.retries + 1,
        "tidied_at": None,
    }


def relabel(session: Session, job_id: str, *, display_name: str | None, labels: Mapping[str, str]) -> None:
    move(session, JobRow.id == job_id, {"display_name": display_name, "labels": dict(labels)}, [])


def purge(session: Session, job_id: str) -> bool:
    """Take an ended job from its client: from the commit on it is gone; its bytes and rows go soon after. False when
    it has not ended, or is purged already."""
    done = and_(JobRow.id == job_id, JobRow.status.in_(TERMINAL_STATES), JobRow.purged_at.is_(None))
    return bool(move(session, done, {"purged_at": now()}, []))


def user_of(session: Session, job_id: str) -> str | None:
    """A job that has not ended and reads this one's files."""
    reads = and_(JobRow.sources.contains([job_id]), JobRow.status.not_in(TERMINAL_STATES))
    return session.scalar(select(JobRow.id).where(reads).limit(1))


def mean_run_seconds(session: Session) -> float | None:
    """Of the jobs that succeeded last."""
    last = select(JobRow.started_at, JobRow.finished_at).where(JobRow.status == Status.SUCCEEDED)
    runs = last.order_by(JobRow.finished_at.desc()).limit(RUNS_MEASURED).subquery()
    mean = session.scalar(select(func.avg(func.extract("epoch", runs.c.finished_at - runs.c.started_at))))
    return None if mean is None else float(mean)


def count_running(session: Session) -> int:
    return session.scalar(select(func.count()).where(JobRow.status.in_(LEASED))) or 0


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
