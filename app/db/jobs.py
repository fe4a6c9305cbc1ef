"""Every query on jobs, and every transition as one guarded UPDATE on the database's clock.

A transition that returns None was refused by its guard: somebody else won, which is an ordinary answer. Nothing here
commits. Each transition adds one event in the same transaction; the row lock of its UPDATE keeps `seq` free of gaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    and_,
    any_,
    bindparam,
    case,
    cast,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from app.contract.failure import Failure, FailureCode
from app.contract.status import Phase, Status
from app.db.clock import now, seconds
from app.db.models import ArtifactRow, EventRow, JobRow

LEASED = [status.value for status in Status if status.is_leased]
SWEEP_BATCH = 100
PUBLISH_FIRST_SECONDS = 5
"""A submitted job's message is due again so soon, because the first sending may have failed unseen."""


class NewEvent(NamedTuple):
    type: str
    data: Mapping[str, Any] = {}
    level: str = "info"


class NewArtifact(NamedTuple):
    name: str
    role: str
    media_type: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Claim:
    """What a worker holds after it has won a job."""

    job_id: str
    attempt: int
    tenant: str
    spec: dict[str, Any]


def _log(session: Session, job: Any, events: Iterable[NewEvent]) -> None:
    """Write the events that an UPDATE just made room for: `job.events` is the last one's seq."""
    entries = list(events)
    first = job.events - len(entries) + 1
    if entries:
        session.execute(
            insert(EventRow),
            [
                {
                    "job_id": job.id,
                    "seq": seq,
                    "type": e.type,
                    "level": e.level,
                    "attempt": job.attempt,
                    "data": dict(e.data),
                }
                for seq, e in enumerate(entries, start=first)
            ],
        )


def _touch(events: int = 1) -> dict[str, Any]:
    """What every change of a job does beside its own."""
    return {"revision": JobRow.revision + 1, "events": JobRow.events + events, "updated_at": now()}


_NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_expires_at": None}
_ENDED: dict[str, Any] = _NO_LEASE | {"finished_at": now(), "phase": None}


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
    _log(session, row, [NewEvent(Status.QUEUED)])
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


def _move(
    session: Session, where: ColumnElement[bool], values: dict[str, Any], new_events: Sequence[NewEvent]
) -> list[str]:
    """Apply one transition, with its events, to the jobs that meet `where`."""
    rows = session.execute(
        update(JobRow)
        .where(where)
        .values(**values, **_touch(len(new_events)))
        .returning(JobRow.id, JobRow.events, JobRow.attempt)
    ).all()
    for row in rows:
        _log(session, row, new_events)
    return [row.id for row in rows]


# --- the life of an attempt ------------------------------------------------------------------------------------------


def _held(job_id: str, attempt: int) -> ColumnElement[bool]:
    """The guard of every write by an attempt: it is still the job's last, and the job still belongs to a worker."""
    return and_(JobRow.id == job_id, JobRow.attempt == attempt, JobRow.status.in_(LEASED))


def claim(session: Session, job_id: str, *, owner: str, lease_seconds: float) -> Claim | None:
    """queued → running, with a new attempt number and a lease. None when the job is not to be had."""
    row = session.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.status == Status.QUEUED, JobRow.queue_deadline > now())
        .values(
            status=Status.RUNNING,
            phase=Phase.PREPARING_DATA,
            attempt=JobRow.attempt + 1,
            lease_owner=owner,
            lease_expires_at=now() + seconds(lease_seconds),
            started_at=func.coalesce(JobRow.started_at, now()),
            runtime_deadline=func.coalesce(
                JobRow.runtime_deadline,
                now() + seconds(JobRow.spec["limits"]["max_runtime_seconds"].as_integer()),
            ),
            progress=None,
            **_touch(),
        )
        .returning(JobRow.id, JobRow.events, JobRow.attempt, JobRow.tenant, JobRow.spec)
    ).one_or_none()
    if row is None:
        return None
    _log(session, row, [NewEvent(Status.RUNNING, {"worker": owner})])
    return Claim(job_id=row.id, attempt=row.attempt, tenant=row.tenant, spec=row.spec)


def beat(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    lease_seconds: float,
    phase: str,
    progress: Mapping[str, Any] | None,
    new_events: Sequence[NewEvent] = (),
) -> Status | None:
    """Extend the lease, store phase, progress and events. Returns the job's status: `cancelling` asks the attempt to
    stop. None means that the attempt is fenced: it owns nothing any more."""
    seen = JobRow.phase.is_distinct_from(phase) | JobRow.progress.is_distinct_from(
        bindparam("p", progress, JobRow.progress.type)
    )
    changed = literal(True) if new_events else seen
    row = session.execute(
        update(JobRow)
        .where(_held(job_id, attempt))
        .values(
            lease_expires_at=now() + seconds(lease_seconds),
            phase=phase,
            progress=progress,
            events=JobRow.events + len(new_events),
            # A beat that tells nothing new is no change that a client should fetch.
            revision=JobRow.revision + case((changed, 1), else_=0),
            updated_at=case((changed, now()), else_=JobRow.updated_at),
        )
        .returning(JobRow.id, JobRow.events, JobRow.attempt, JobRow.status)
    ).one_or_none()
    if row is None:
        return None
    _log(session, row, new_events)
    return Status(row.status)


def succeed(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    result: dict[str, Any],
    files: Sequence[NewArtifact],
    new_events: Sequence[NewEvent] = (),
) -> Status | None:
    """running → succeeded, making the artifacts visible; or cancelling → cancelled, dropping them."""
    status = _finish(session, job_id, attempt, Status.SUCCEEDED, {"result": result}, new_events)
    if status is Status.SUCCEEDED:
        session.execute(
            insert(ArtifactRow), [{"job_id": job_id, "attempt": attempt, **file._asdict()} for file in files]
        )
    return status


def fail(
    session: Session, job_id: str, attempt: int, *, failure: Failure, new_events: Sequence[NewEvent] = ()
) -> Status | None:
    """running → failed; or cancelling → cancelled, since that is what the client asked for."""
    return _finish(session, job_id, attempt, Status.FAILED, {"error": failure.model_dump(mode="json")}, new_events)


def cancelled(session: Session, job_id: str, attempt: int, *, new_events: Sequence[NewEvent] = ()) -> Status | None:
    """cancelling → cancelled, once the attempt has stopped. None when no cancel was asked for."""
    return _finish(session, job_id, attempt, None, {}, new_events)


def _finish(
    session: Session,
    job_id: str,
    attempt: int,
    wanted: Status | None,
    outcome: dict[str, Any],
    new_events: Sequence[NewEvent],
) -> Status | None:
    for guard, status, values in (
        (Status.RUNNING, wanted, outcome),
        (Status.CANCELLING, Status.CANCELLED, {}),
    ):
        if status is None:
            continue
        row = session.execute(
            update(JobRow)
            .where(_held(job_id, attempt), JobRow.status == guard)
            .values(status=status, **values, **_ENDED, **_touch(len(new_events) + 1))
            .returning(JobRow.id, JobRow.events, JobRow.attempt)
        ).one_or_none()
        if row is not None:
            # A failure's event repeats its code and message: the log alone must tell the story.
            last = NewEvent(status, values.get("error") or {}, "error" if status is Status.FAILED else "info")
            _log(session, row, [*new_events, last])
            return status
    return None


def drain(session: Session, job_id: str, attempt: int, *, new_events: Sequence[NewEvent] = ()) -> bool:
    """running → queued: the worker is shutting down and hands the job back. Not counted as a crash."""
    rows = _move(
        session,
        and_(_held(job_id, attempt), JobRow.status == Status.RUNNING),
        _requeued(),
        [*new_events, NewEvent("requeued", {"reason": "worker_shutdown"})],
    )
    return bool(rows)


def _requeued() -> dict[str, Any]:
    return _NO_LEASE | {
        "status": Status.QUEUED,
        "phase": Phase.WAITING,
        "progress": None,
        "queued_at": now(),
        # The limit on waiting counts from here again: time spent running is not time spent waiting.
        "queue_deadline": now() + seconds(JobRow.spec["limits"]["max_queue_seconds"].as_integer()),
        "publish_at": now(),
        "publishes": 0,
    }


def request_cancel(session: Session, job_id: str, tenant: str) -> Status | None:
    """queued → cancelled, or running → cancelling. None when the job is in neither state."""
    for guard, values in (
        (Status.QUEUED, _ENDED | {"status": Status.CANCELLED}),
        (Status.RUNNING, {"status": Status.CANCELLING}),
    ):
        where = and_(JobRow.id == job_id, JobRow.tenant == tenant, JobRow.status == guard)
        if _move(session, where, values, [NewEvent(values["status"])]):
            return Status(values["status"])
    return None


# --- the sweeper's part ----------------------------------------------------------------------------------------------


def _batch(where: ColumnElement[bool]) -> ColumnElement[bool]:
    """Some of the jobs that meet `where`, the longest waiting first, passing over those that another sweeper holds."""
    chosen = select(JobRow.id).where(where).order_by(JobRow.queued_at).limit(SWEEP_BATCH)
    return JobRow.id == any_(chosen.with_for_update(skip_locked=True).scalar_subquery().self_group())


def _failed(session: Session, where: ColumnElement[bool], code: FailureCode, message: str) -> list[str]:
    failure = Failure.of(code, message, attempt=0).model_dump(mode="json")
    # The attempt's number is known to the row alone.
    error = cast(literal(failure, JSONB), JSONB).concat(func.jsonb_build_object("attempt", JobRow.attempt))
    event = NewEvent(Status.FAILED, {"code": code, "message": message}, "error")
    return _move(session, _batch(where), _ENDED | {"status": Status.FAILED, "error": error}, [event])


def sweep(session: Session, *, max_attempts: int) -> dict[str, list[str]]:
    """Give every job that is stuck its way out. Any number of sweepers may run at once. Returns the ids by action."""
    overdue = and_(JobRow.status.in_(LEASED), JobRow.lease_expires_at < now())
    running = JobRow.status == Status.RUNNING
    return {
        "cancelled": _move(
            session,
            # An attempt that beats and never looks up, as in a hung native call, is let go at the job's own limit.
            _batch(and_(JobRow.status == Status.CANCELLING, or_(overdue, JobRow.runtime_deadline < now()))),
            _ENDED | {"status": Status.CANCELLED},
            [NewEvent(Status.CANCELLED, {"reason": "attempt_not_heard_of"})],
        ),
        "runtime_timeout": _failed(
            session,
            and_(running, JobRow.runtime_deadline < now()),
            FailureCode.RUNTIME_TIMEOUT,
            "The job ran longer than limits.max_runtime_seconds: raise the limit, or ask for fewer epochs.",
        ),
        "worker_lost": _failed(
            session,
            and_(overdue, running, JobRow.crashes + 1 >= max_attempts),
            FailureCode.WORKER_LOST,
            f"The worker was lost {max_attempts} times while it ran this job: it may need more memory than there is.",
        ),
        "requeued": _move(
            session,
            _batch(and_(overdue, running)),
            _requeued() | {"crashes": JobRow.crashes + 1},
            [NewEvent("requeued", {"reason": "lease_expired"}, "warning")],
        ),
        "queue_timeout": _failed(
            session,
            and_(JobRow.status == Status.QUEUED, JobRow.queue_deadline < now()),
            FailureCode.QUEUE_TIMEOUT,
            "No worker took the job within limits.max_queue_seconds: see /v1/system for workers, then submit again.",
        ),
    }


def due_messages(session: Session) -> list[str]:
    """Queued jobs whose wake-up message is due. Each is due again after 60 s·2^k, at most an hour."""
    due = and_(JobRow.status == Status.QUEUED, JobRow.publish_at <= now())
    wait = func.least(60 * func.power(2, func.least(JobRow.publishes, 10)), 3600)
    return list(
        session.scalars(
            update(JobRow)
            .where(_batch(due))
            .values(publish_at=now() + seconds(wait), publishes=JobRow.publishes + 1)
            .returning(JobRow.id)
        )
    )


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
