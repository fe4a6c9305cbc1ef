"""The workers' signs of life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.clock import now, seconds
from app.db.models import WorkerRow

ALIVE_SECONDS = 30
"""A worker that has not been seen for so long is shown as not alive."""

FORGET_HOURS = 24


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


def _alive() -> ColumnElement[bool]:
    return WorkerRow.last_seen_at > now() - seconds(ALIVE_SECONDS)


def idle(session: Session, worker_id: str) -> None:
    session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(job_id=None))


def working_on(session: Session, worker_id: str) -> str | None:
    """The job that the worker's job process says it is at."""
    return session.scalar(select(WorkerRow.job_id).where(WorkerRow.id == worker_id))
