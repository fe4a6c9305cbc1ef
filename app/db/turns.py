"""Whose turn it is: the order in which queued jobs of all tenants are begun.

The next job is the oldest of the tenant that has the fewest running, among those below their running cap; between
equals, the older job. So the k-th job of a tenant that runs r waits on level r + k, and the order of all is that of
(level, queued_at, id). Nothing here commits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import CTE, ColumnElement, func, literal, select, text, tuple_
from sqlalchemy.orm import Session

from app.contract.status import Status
from app.db.attempts import Checkpoint, Claim, claim
from app.db.clock import now
from app.db.models import JobRow, TenantRow
from app.db.moves import LEASED
from app.db.tenants import count_running

_ONE_CLAIM_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtextextended('secateur.claim', 0))")


def claim_next(session: Session, *, owner: str, lease_seconds: float, max_running: int) -> Claim | None:
    """Claim the job whose turn it is; None when none is to be had. `max_running` is of tenants without a cap of their
    own."""
    # Claims take turns until the commit, or two could each see the last free place below a cap.
    session.execute(_ONE_CLAIM_AT_A_TIME)
    while (job_id := next_job(session, max_running=max_running)) is not None:
        claimed = claim(session, job_id, owner=owner, lease_seconds=lease_seconds)
        if claimed is not None:
            return claimed
        # It was cancelled, or its time in the queue ran out, just then: the next one is another.
    return None


def next_job(session: Session, *, max_running: int) -> str | None:
    """The queued job whose turn it is, if any may be begun."""
    oldest, running = _oldest_of_tenants(JobRow.queue_deadline > now()), _running_of_tenants()
    count = func.coalesce(running.c.count, 0)
    return session.scalar(
        select(oldest.c.id)
        .outerjoin(running, running.c.tenant == oldest.c.tenant)
        .outerjoin(TenantRow, TenantRow.name == oldest.c.tenant)
        .where(count < func.coalesce(TenantRow.max_running, max_running))
        .order_by(count, oldest.c.queued_at, oldest.c.id)
        .limit(1)
    )


class Waiting(NamedTuple):
    """A queued member of a sweep."""

    spec: dict[str, Any]
    checkpoints: tuple[Checkpoint, ...]
    """Newest first."""
    crashes: int


def claim_beside(
    session: Session,
    first: Claim,
    joins: Callable[[Waiting], bool],
    *,
    most: int,
    sharers: int,
    owner: str,
    lease_seconds: float,
    max_running: int,
) -> list[Claim]:
    """Claim further members of the sweep of `first`, in their order, in the transaction that has claimed that one:
    those that `joins` wants, at most so many, and no more than their tenant may still run. So many `sharers`, who
    hold no lease, are left as many each."""
    claimed: list[Claim] = []
    room = _cap(session, first.tenant, max_running) - count_running(session, first.tenant)
    if room < 1:
        return claimed
    queued = select(JobRow.id, JobRow.spec, JobRow.checkpoints, JobRow.crashes).where(
        JobRow.sweep_id == first.sweep_id, _IS_QUEUED, JobRow.queue_deadline > now()
    )
    # Passing over what others hold: who cancels a sweep locks its members too, in another order.
    queued = queued.order_by(JobRow.queued_at, JobRow.id).with_for_update(skip_locked=True)
    joining = (
        row.id
        for row in session.execute(queued).all()
        if joins(Waiting(row.spec, tuple(Checkpoint(**each) for each in row.checkpoints), row.crashes))
    )
    # No more than all of them, or the tenant, have room for.
    shared = list(islice(joining, min((1 + most) * (1 + sharers) - 1, room)))
    share = -(-(1 + len(shared)) // (1 + sharers)) - 1
    for job_id in shared:
        if len(claimed) == share:
            break
        other = claim(session, job_id, owner=owner, lease_seconds=lease_seconds)
        if other is not None:  # its time in the queue may have run out just then
            claimed.append(other)
    return claimed


def _cap(session: Session, tenant: str, max_running: int) -> int:
    cap = session.scalar(select(TenantRow.max_running).where(TenantRow.name == tenant))
    return max_running if cap is None else cap


COUNTED = 1_000
"""Of the jobs of its own tenant that are ahead of one, no more are counted."""


class Turn(NamedTuple):
    """Where a queued job stands."""

    position: int
    """Among the jobs of all tenants; 1 is next. At least, when not all that are ahead were counted."""
    ahead: int
    """Jobs of its own tenant that are queued and older."""
    running: int
    """Jobs of its own tenant."""
    max_running: int


def turn(session: Session, job_id: str, *, max_running: int) -> Turn | None:
    """None when the job is not queued. It looks at no more than COUNTED jobs of any tenant, however many there are."""
    query = select(JobRow.tenant, JobRow.queued_at, JobRow.id).where(JobRow.id == job_id, _IS_QUEUED)
    job = session.execute(query).one_or_none()
    if job is None:
        return None
    place = (literal(job.queued_at), literal(job.id))
    older = select(JobRow.id).where(
        JobRow.tenant == job.tenant, _IS_QUEUED, tuple_(JobRow.queued_at, JobRow.id) < tuple_(*place)
    )
    ahead = session.scalar(select(func.count()).select_from(older.limit(COUNTED).subquery())) or 0
    running = count_running(session, job.tenant)
    cap = _cap(session, job.tenant, max_running)
    position = _position(session, running + ahead + 1, *place)
    # It may have been begun since the first of these questions.
    return Turn(max(1, position), ahead, running, cap)


def _position(session: Session, level: int, *place: ColumnElement[object]) -> int:
    """How many jobs are not behind this place on this level."""
    tenants, running = _oldest_of_tenants(), _running_of_tenants()
    count = func.coalesce(running.c.count, 0)
    # Of each tenant, those on lower levels, and the one on this.
    first = (
        select(JobRow.queued_at, JobRow.id, func.row_number().over(order_by=_TURN).label("rank"))
        .where(_IS_QUEUED, JobRow.tenant.between(tenants.c.tenant, tenants.c.tenant))
        .order_by(*_TURN)
        .limit(func.greatest(level - count, 0))
        .lateral()
    )
    begun = tuple_(count + first.c.rank, first.c.queued_at, first.c.id) <= tuple_(literal(level), *place)
    query = (
        select(func.count())
        .select_from(tenants)
        .outerjoin(running, running.c.tenant == tenants.c.tenant)
        .join(first, literal(True))
    )
    return session.scalar(query.where(begun)) or 0


# All of the index on turns, and a range of tenants rather than one: nothing else has this order, so the planner cannot
# think that it would soon come upon a tenant's job by looking through those of all. The status is plain text, as in the
# condition of the index: a parameter would hide it.
_TURN = (JobRow.tenant, JobRow.queued_at, JobRow.id)
_IS_QUEUED = JobRow.status == literal(Status.QUEUED.value, literal_execute=True)


def _oldest_of_tenants(*conditions: ColumnElement[bool]) -> CTE:
    """The oldest queued job of each tenant, from one tenant to the next, however many jobs each has."""
    query = select(*_TURN).where(_IS_QUEUED, *conditions).order_by(*_TURN).limit(1)
    first = query.cte("oldest_of_tenants", recursive=True)
    later = query.where(JobRow.tenant > first.c.tenant).correlate(first).lateral()
    return first.union_all(select(later).select_from(first).join(later, literal(True)))


def _running_of_tenants() -> CTE:
    query = select(JobRow.tenant, func.count().label("count")).where(JobRow.status.in_(LEASED))
    return query.group_by(JobRow.tenant).cte("running_of_tenants")
