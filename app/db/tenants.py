"""Every query on tenants: their limits, and what they have in use. Nothing here commits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from sqlalchemy import bindparam, func, select, text, union
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.contract.status import Status
from app.core.limits import Limits
from app.db.models import ApiKeyRow, JobRow, TenantRow
from app.db.moves import LEASED

_LIMITS = tuple(getattr(TenantRow, name) for name in Limits._fields)
_ONE_OF_A_TENANT_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtextextended('secateur.queue.' || :tenant, 0))")


class Account(NamedTuple):
    limits: Limits
    """The tenant's own, and the defaults where it has none."""
    stored_bytes: int


_ACCOUNT = select(TenantRow.stored_bytes, *_LIMITS).where(TenantRow.name == bindparam("tenant"))


def account(session: Session, tenant: str, defaults: Limits) -> Account:
    row = session.execute(_ACCOUNT, {"tenant": tenant}).one_or_none()
    if row is None:
        return Account(defaults, 0)
    stored, *own = row
    limits = (default if limit is None else limit for limit, default in zip(own, defaults, strict=True))
    return Account(Limits(*limits), stored)


def requests_per_minute(session: Session, tenant: str) -> int | None:
    """The tenant's own limit, if it has one."""
    return session.scalar(select(TenantRow.requests_per_minute).where(TenantRow.name == tenant))


def take_turns(session: Session, tenant: str) -> None:
    """From here to the end of the transaction, nobody else who asks for this is at it for the same tenant."""
    session.execute(_ONE_OF_A_TENANT_AT_A_TIME, {"tenant": tenant})


def count_queued(session: Session, tenant: str) -> int:
    return session.scalar(select(func.count()).where(JobRow.tenant == tenant, JobRow.status == Status.QUEUED)) or 0


def count_running(session: Session, tenant: str) -> int:
    return session.scalar(select(func.count()).where(JobRow.tenant == tenant, JobRow.status.in_(LEASED))) or 0


class Use(NamedTuple):
    """What a tenant has at this moment."""

    queued: int
    running: int
    stored_bytes: int


def use(session: Session, tenant: str, stored_bytes: int) -> Use:
    return Use(count_queued(session, tenant), count_running(session, tenant), stored_bytes)


def lock_in_order(session: Session, job_ids: Collection[str]) -> None:
    """The last question of a transaction that moves jobs of several tenants, whose accounts a trigger changes at the
    commit: in any other order, two of them could wait for each other."""
    if not job_ids:
        return
    named = TenantRow.name.in_(select(JobRow.tenant).where(JobRow.id.in_(job_ids)))
    session.execute(select(TenantRow.name).where(named).order_by(TenantRow.name).with_for_update(key_share=True))


def set_limits(session: Session, tenant: str, own: Mapping[str, int | None]) -> None:
    """Change some of the tenant's own limits, by the names of `Limits`; None goes back to the default."""
    row = insert(TenantRow).values(name=tenant, **own)
    session.execute(row.on_conflict_do_update(index_elements=[TenantRow.name], set_=dict(own)))


class Tenant(NamedTuple):
    name: str
    own: Mapping[str, int | None]
    """Its own limits, by the names of `Limits`; None where the default holds."""
    use: Use


def all_tenants(session: Session) -> list[Tenant]:
    """Those that have keys, jobs, or limits of their own."""
    names = union(select(ApiKeyRow.tenant), select(JobRow.tenant), select(TenantRow.name))
    rows = session.execute(select(TenantRow.name, TenantRow.stored_bytes, *_LIMITS))
    known = {name: (limits, stored) for name, stored, *limits in rows}
    nothing: tuple[list[int | None], int] = ([None] * len(_LIMITS), 0)
    return [
        Tenant(name, dict(zip(Limits._fields, limits, strict=True)), use(session, name, stored))
        for name in sorted(session.scalars(names))
        for limits, stored in [known.get(name, nothing)]
    ]
