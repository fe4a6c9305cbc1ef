"""What is to be measured about jobs, out of the database: the same from each process, and over restarts of all of them.

A trigger writes a row of `job_tallies` in the transaction in which something happens to a job, whoever makes it happen.
Rows are only added, so that nobody waits for another one's; sweepers fold many into few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import BigInteger, cast, delete, func, insert, select
from sqlalchemy.orm import Session

from app.contract.status import Status
from app.db.clock import now
from app.db.models import JobRow, TallyRow
from app.db.moves import LEASED

BOUNDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 10800, 43200, 86400)
"""Upper bounds of the buckets of durations, seconds. The trigger has a copy: another one needs another migration."""

FOLD_ABOVE = 1_000
"""Rows. Folded, they are about two hundred: one for each kind and outcome, and for each kind and bucket."""

FOLD_BATCH = 10_000

_LABELS = (TallyRow.metric, TallyRow.kind, TallyRow.status, TallyRow.reason, TallyRow.le)
_SUMS = (cast(func.sum(TallyRow.count), BigInteger), cast(func.sum(TallyRow.microseconds), BigInteger))


@dataclass(frozen=True)
class Total:
    """How often something has happened to jobs, and how long it took together."""

    metric: str
    """`submitted`, `finished`, `requeued`, `purged`; of durations `queue_wait` and `run`."""
    kind: str
    status: str
    reason: str
    """Of a failure its code, of a return to the queue why."""
    le: float | None
    """The bucket of a duration."""
    count: int
    microseconds: int


def totals(session: Session) -> list[Total]:
    """Over all time. One statement and so one snapshot: a fold is seen whole or not at all."""
    return [Total(*row) for row in session.execute(select(*_LABELS, *_SUMS).group_by(*_LABELS))]


def fold(session: Session) -> None:
    """Make few rows of many, when there are many. Any number may fold at once: each takes rows that no other holds, and
    puts the sum in their place by the same statement."""
    if (session.scalar(select(func.count()).select_from(TallyRow)) or 0) <= FOLD_ABOVE:
        return
    chosen = select(TallyRow.id).order_by(TallyRow.id).limit(FOLD_BATCH).with_for_update(skip_locked=True).cte("chosen")
    taken = delete(TallyRow).where(TallyRow.id == chosen.c.id).returning(TallyRow).cte("taken")
    labels = [taken.c[column.key] for column in _LABELS]
    sums = select(*labels, func.sum(taken.c["count"]), func.sum(taken.c.microseconds)).group_by(*labels)
    columns = [*(column.key for column in _LABELS), "count", "microseconds"]
    session.execute(insert(TallyRow).from_select(columns, sums))


def active(session: Session) -> Mapping[str, int]:
    """How many jobs are in each state that is not an end, by indexes that hold no others."""
    leased = select(JobRow.status, func.count()).where(JobRow.status.in_(LEASED)).group_by(JobRow.status)
    found = {row[0]: row[1] for row in session.execute(leased)}
    for status in (Status.WAITING, Status.QUEUED):
        found[status] = session.scalar(select(func.count()).where(JobRow.status == status)) or 0
    return {**dict.fromkeys(LEASED, 0), **found}


def oldest_queued_seconds(session: Session) -> float:
    """0 when nothing waits."""
    age = func.extract("epoch", now() - func.min(JobRow.queued_at))
    return float(session.scalar(select(age).where(JobRow.status == Status.QUEUED)) or 0)
