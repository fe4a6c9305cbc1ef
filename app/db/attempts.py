"""The life of an attempt: claim, beat, and one end. Its number is the fencing token of each of its writes.

A write that returns None was fenced: the attempt is no longer the job's last, or the job has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, and_, bindparam, case, func, insert, literal, select, update
from sqlalchemy.orm import Session

from app.contract.failure import Failure
from app.contract.status import Phase, Status
from app.db.clock import now, seconds
from app.db.models import ArtifactRow, JobRow
from app.db.moves import ENDED, LEASED, NewEvent, move, requeued, touched, write_events

HandBackReason = Literal["worker_shutdown", "out_of_touch"]
"""Why a worker hands a job back: it shuts down, or the database was away for it."""


class NewArtifact(NamedTuple):
    name: str
    role: str
    media_type: str
    size: int
    sha256: str


class Checkpoint(NamedTuple):
    """A training checkpoint that a later attempt may go on from."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Claim:
    """What a worker holds after it has won a job."""

    job_id: str
    attempt: int
    tenant: str
    sweep_id: str | None
    """Of a member."""
    sources: tuple[str, ...]
    """The jobs whose files it reads; of a sweep its members, in their order."""
    spec: dict[str, Any]
    checkpoints: tuple[Checkpoint, ...]
    """Newest first."""
    crashes: int
    """Attempts that were lost with their workers."""
    traceparent: str | None
    """Of the request that submitted the job."""


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
                # Time spent waiting since then is not time spent running.
                JobRow.runtime_deadline + (now() - JobRow.queued_at),
                now() + seconds(JobRow.spec["limits"]["max_runtime_seconds"].as_integer()),
            ),
            progress=None,
            **touched(),
        )
        .returning(JobRow)
    ).scalar_one_or_none()
    if row is None:
        return None
    write_events(session, row, [NewEvent(Status.RUNNING, {"worker": owner})])
    return Claim(
        job_id=row.id,
        attempt=row.attempt,
        tenant=row.tenant,
        sweep_id=row.sweep_id,
        sources=tuple(row.sources),
        spec=row.spec,
        checkpoints=tuple(Checkpoint(**each) for each in row.checkpoints),
        crashes=row.crashes,
        traceparent=row.traceparent,
    )


def beat(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    lease_seconds: float,
    phase: str,
    progress: Mapping[str, Any] | None,
    checkpoints: Sequence[Checkpoint] | None = None,
    new_events: Sequence[NewEvent] = (),
) -> Status | None:
    """Extend the lease, store phase, progress, events and, when given, which checkpoints there are. Returns the job's
    status: `cancelling` asks the attempt to stop."""
    seen = JobRow.phase.is_distinct_from(phase) | JobRow.progress.is_distinct_from(
        bindparam("p", progress, JobRow.progress.type)
    )
    changed = literal(True) if new_events else seen
    values = {
        **_referenced(checkpoints),
        "lease_expires_at": now() + seconds(lease_seconds),
        "phase": phase,
        "progress": progress,
        # A beat that tells nothing new is no change that a client should fetch.
        "revision": JobRow.revision + case((changed, 1), else_=0),
        "updated_at": case((changed, now()), else_=JobRow.updated_at),
    }
    rows = move(session, _held(job_id, attempt), values, new_events)
    return Status(rows[0].status) if rows else None


def _referenced(checkpoints: Sequence[Checkpoint] | None) -> dict[str, Any]:
    return {} if checkpoints is None else {"checkpoints": [each._asdict() for each in checkpoints]}


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
    # A data set stays until it is deleted.
    kept = JobRow.kind == "dataset"
    values = {
        "status": Status.SUCCEEDED,
        "result": result,
        "checkpoints": [],
        "expires_at": case((kept, None), else_=now() + seconds(JobRow.retention_seconds)),
        "artifact_bytes": sum(file.size for file in files),
    }
    if not _from_running(session, job_id, attempt, values, [*new_events, NewEvent(Status.SUCCEEDED)]):
        return cancelled(session, job_id, attempt, new_events=new_events)
    rows = [{"job_id": job_id, "attempt": attempt, **file._asdict()} for file in files]
    session.execute(insert(ArtifactRow), rows)
    return Status.SUCCEEDED


def fail(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    failure: Failure,
    checkpoints: Sequence[Checkpoint] | None = None,
    new_events: Sequence[NewEvent] = (),
) -> Status | None:
    """running → failed, its checkpoints kept for a retry; or cancelling → cancelled, as the client asked."""
    error = failure.model_dump(mode="json")
    values = {"status": Status.FAILED, "error": error, **_referenced(checkpoints)}
    # A failure's event repeats its code and message: the log alone must tell the story.
    last = NewEvent(Status.FAILED, error, "error")
    if _from_running(session, job_id, attempt, values, [*new_events, last]):
        return Status.FAILED
    return cancelled(session, job_id, attempt, new_events=new_events)


def _from_running(
    session: Session, job_id: str, attempt: int, values: dict[str, Any], new_events: Sequence[NewEvent]
) -> bool:
    guard = and_(_held(job_id, attempt), JobRow.status == Status.RUNNING)
    return bool(move(session, guard, ENDED | values, new_events))


def cancelled(session: Session, job_id: str, attempt: int, *, new_events: Sequence[NewEvent] = ()) -> Status | None:
    """cancelling → cancelled, once the attempt has stopped. None also when no cancel was asked for."""
    guard = and_(_held(job_id, attempt), JobRow.status == Status.CANCELLING)
    values = ENDED | {"status": Status.CANCELLED, "checkpoints": []}
    return Status.CANCELLED if move(session, guard, values, [*new_events, NewEvent(Status.CANCELLED)]) else None


def drain(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    checkpoints: Sequence[Checkpoint] | None = None,
    new_events: Sequence[NewEvent] = (),
    reason: HandBackReason = "worker_shutdown",
) -> Status | None:
    """running → queued: the worker hands the job back, which is no crash; or cancelling → cancelled."""
    guard = and_(_held(job_id, attempt), JobRow.status == Status.RUNNING)
    last = NewEvent("requeued", {"reason": reason})
    if move(session, guard, requeued() | _referenced(checkpoints), [*new_events, last]):
        return Status.QUEUED
    return cancelled(session, job_id, attempt, new_events=new_events)


def give_back(session: Session, owner: str) -> None:
    """What a process holds by a claim that was committed and never acknowledged, and so does not know of."""
    held = select(JobRow.id, JobRow.attempt).where(JobRow.lease_owner == owner, JobRow.status.in_(LEASED))
    for job_id, attempt in session.execute(held).all():
        drain(session, job_id, attempt, reason="out_of_touch")


def look_again(session: Session, job_id: str) -> None:
    """A fenced attempt has gone, and may have left files after those of its ended job were put in order."""
    ended = and_(JobRow.id == job_id, JobRow.status.not_in([*LEASED, Status.QUEUED]))
    session.execute(update(JobRow).where(ended).values(tidied_at=None))


def has_won(session: Session, job_id: str, attempt: int) -> bool:
    """Whether the job has succeeded with this attempt: its `succeed` may have been committed and never acknowledged."""
    won = and_(JobRow.id == job_id, JobRow.attempt == attempt, JobRow.status == Status.SUCCEEDED)
    return session.scalar(select(JobRow.id).where(won)) is not None


class Lease(NamedTuple):
    job_id: str
    owner: str
    status: str


def leases(session: Session, worker: str) -> list[Lease]:
    """Those of all job processes, past and present, of a worker."""
    owned = JobRow.lease_owner.startswith(f"{worker}/", autoescape=True)
    rows = session.execute(select(JobRow.id, JobRow.lease_owner, JobRow.status).where(JobRow.status.in_(LEASED), owned))
    return [Lease(row.id, row.lease_owner, row.status) for row in rows if row.lease_owner]


def expire_leases(session: Session, owner: str | None = None) -> list[str]:
    """Let the leases of an owner, or all, run out now, because who held them is known to be gone; the sweeper does the
    rest. Returns the jobs' ids."""
    owned = JobRow.lease_owner.is_not(None) if owner is None else JobRow.lease_owner == owner
    statement = update(JobRow).where(owned, JobRow.status.in_(LEASED), JobRow.lease_expires_at > now())
    return list(session.scalars(statement.values(lease_expires_at=now()).returning(JobRow.id)))
