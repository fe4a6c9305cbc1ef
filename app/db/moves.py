"""How a job moves: one guarded UPDATE, on the database's clock, with its events in the same transaction.

A move whose guard refuses it changes nothing: somebody else won, which is an ordinary answer. The row lock of the
UPDATE keeps the log's `seq` free of gaps. Nothing here commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, insert, update
from sqlalchemy.orm import Session

from app.contract.status import Phase, Status
from app.db.clock import now, seconds
from app.db.models import EVENTS, JobRow
from app.db.outbox import tell

LEASED = [status.value for status in Status if status.is_leased]

NO_LEASE: dict[str, Any] = {"lease_owner": None, "lease_expires_at": None, "cancel_deadline": None}
ENDED: dict[str, Any] = NO_LEASE | {
    "finished_at": now(),
    "phase": None,
    "expires_at": now() + seconds(JobRow.retention_seconds),
}


NO_DATA: Mapping[str, Any] = MappingProxyType({})


class NewEvent(NamedTuple):
    type: str
    data: Mapping[str, Any] = NO_DATA
    level: str = "info"


def requeued() -> dict[str, Any]:
    """What brings a job back into the queue, its message due at once."""
    return NO_LEASE | {
        "status": Status.QUEUED,
        "phase": Phase.WAITING,
        "progress": None,
        "expires_at": None,
        "queued_at": now(),
        # The limit on waiting counts from here again: time spent running is not time spent waiting.
        "queue_deadline": now() + seconds(JobRow.spec["limits"]["max_queue_seconds"].as_integer()),
        "publish_at": now(),
        "publishes": 0,
    }


def touched(events: int = 1) -> dict[str, Any]:
    """What every change that a client can see does beside its own."""
    return {"revision": JobRow.revision + 1, "events": JobRow.events + events, "updated_at": now()}


def move(
    session: Session, where: ColumnElement[bool], values: dict[str, Any], new_events: Sequence[NewEvent]
) -> Sequence[Row[str, int, int, int, str]]:
    """Apply one move, with its events, to the jobs that meet `where`. Returns (id, events, attempt, retries, status)
    of each, as it is now."""
    rows = session.execute(
        update(JobRow)
        .where(where)
        .values(**{**touched(len(new_events)), **values})
        .returning(JobRow.id, JobRow.events, JobRow.attempt, JobRow.retries, JobRow.status)
    ).all()
    for row in rows:
        write_events(session, row, new_events)
    return rows


def write_events(session: Session, job: Any, new_events: Iterable[NewEvent]) -> None:
    """Write the events that an UPDATE just made room for: `job.events` is the last one's seq. Webhooks are told of
    those that they ask for."""
    entries = list(new_events)
    if entries:
        first = job.events - len(entries) + 1
        session.execute(insert(EVENTS), [_row(job, seq, event) for seq, event in enumerate(entries, start=first)])
        tell(session, job.id, [event.type for event in entries])


def _row(job: Any, seq: int, event: NewEvent) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "seq": seq,
        "type": event.type,
        "level": event.level,
        "attempt": job.attempt,
        "retry": job.retries,
        "data": dict(event.data),
    }
