"""The workers' signs of life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.clock import now, seconds
from app.db.models import JobRow, WorkerRow
from app.db.moves import LEASED

ALIVE_SECONDS = 30
"""A worker that has not been seen for so long is shown as not alive."""

FORGET_HOURS = 24

MEASURED_SECONDS = 600
"""A worker that went without a word is measured for so long: as a label, each that ever was would be too many."""


def seen(
    session: Session,
    *,
    worker_id: str,
    device: str,
    device_name: str,
    threads: int,
    versions: Mapping[str, str],
    job_id: str | None,
) -> None:
    row = {
        "device": device,
        "device_name": device_name,
        "threads": threads,
        "versions": dict(versions),
        "job_id": job_id,
        "last_seen_at": now(),
    }
    session.execute(
        insert(WorkerRow).values(id=worker_id, **row).on_conflict_do_update(index_elements=[WorkerRow.id], set_=row)
    )


def gone(session: Session, worker_id: str) -> None:
    session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))


def forget_old(session: Session) -> None:
    session.execute(delete(WorkerRow).where(WorkerRow.last_seen_at < now() - seconds(FORGET_HOURS * 3600)))


def all_workers(session: Session) -> Sequence[tuple[WorkerRow, bool]]:
    """Each worker, and whether it is alive."""
    return [(row, ok) for row, ok in session.execute(select(WorkerRow, _alive()).order_by(WorkerRow.id))]


def count_alive(session: Session) -> int:
    return session.scalar(select(func.count()).where(_alive())) or 0


def count_idle(session: Session, *, device: str, beside: str) -> int:
    """Workers that are alive, have this kind of device and hold no lease, beside the one that asks."""
    holds = func.starts_with(JobRow.lease_owner, WorkerRow.id + "/") & JobRow.status.in_(LEASED)
    idle = (WorkerRow.device == device, WorkerRow.id != beside, ~select(JobRow.id).where(holds).exists())
    return session.scalar(select(func.count()).select_from(WorkerRow).where(_alive(), *idle)) or 0


class Heartbeat(NamedTuple):
    worker_id: str
    age_seconds: float
    busy: bool
    alive: bool


def heartbeats(session: Session) -> list[Heartbeat]:
    """Of the workers that have been seen lately."""
    age = func.extract("epoch", now() - WorkerRow.last_seen_at)
    query = select(WorkerRow.id, age, WorkerRow.job_id.is_not(None), _alive()).where(
        WorkerRow.last_seen_at > now() - seconds(MEASURED_SECONDS)
    )
    return [Heartbeat(worker_id, float(seen), busy, alive) for worker_id, seen, busy, alive in session.execute(query)]


def _alive() -> ColumnElement[bool]:
    return WorkerRow.last_seen_at > now() - seconds(ALIVE_SECONDS)


def idle(session: Session, worker_id: str) -> None:
    session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(job_id=None))


def working_on(session: Session, worker_id: str) -> str | None:
    """The job that the worker's job process says it is at."""
    return session.scalar(select(WorkerRow.job_id).where(WorkerRow.id == worker_id))
