"""Whether a tenant may have one more, and what it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.core.errors import QueueFull, QueueTooShort, RateLimited, StorageFull
from app.core.limits import UNLIMITED, Limits
from app.db import tenants
from app.rates import Rates
from app.services.keys import Principal, refuse_unlawful_tenant


class Room(NamedTuple):
    """Bytes that a tenant may have stored, and has."""

    limit: int
    stored: int


def whole_room(session: Session, tenant: str, defaults: Limits) -> Room:
    """As if nothing were stored."""
    return Room(tenants.account(session, tenant, defaults).limits.max_stored_bytes, 0)


def admit(session: Session, tenant: str, defaults: Limits, *, jobs: int = 1, more_bytes: int = 0) -> Room:
    """Let so many more jobs of the tenant into the queue, all or none, and with them as many bytes of an upload. Other
    jobs of the tenant are let in after this transaction. Raises QueueTooShort, QueueFull or StorageFull."""
    limits, stored = tenants.account(session, tenant, defaults)
    if limits.max_queued != UNLIMITED or (more_bytes and limits.max_stored_bytes != UNLIMITED):
        tenants.take_turns(session, tenant)
    if more_bytes:
        stored = tenants.account(session, tenant, defaults).stored_bytes  # with those of whoever's turn was before
    # What a job will publish is not known before: one that is let in below the limit may go beyond it.
    if stored >= limits.max_stored_bytes or stored + more_bytes > limits.max_stored_bytes:
        raise StorageFull(limits.max_stored_bytes, stored, more_bytes)
    if limits.max_queued != UNLIMITED:
        queued = tenants.count_queued(session, tenant)
        if jobs > limits.max_queued:
            raise QueueTooShort(limits.max_queued, queued, jobs)
        if queued + jobs > limits.max_queued:
            raise QueueFull(limits.max_queued, queued, jobs)
    return Room(limits.max_stored_bytes, stored)


def charge(rates: Rates, who: Principal, limit: int) -> None:
    """Count one request, where the tenant has a limit on them. Raises RateLimited."""
    wait = rates.hit(who.tenant, limit)
    if wait is not None:
        raise RateLimited(limit, wait)


def set_limits(session: Session, tenant: str, own: Mapping[str, int | None]) -> None:
    """Change some limits of a tenant, by the names of `Limits`; None goes back to the default. Raises ValueError."""
    refuse_unlawful_tenant(tenant)
    tenants.set_limits(session, tenant, own)


class Quotas(NamedTuple):
    limits: Limits
    use: tenants.Use
    requests: int | None
    """In the last minute; None when that is not known."""


def quotas(session: Session, rates: Rates, tenant: str, defaults: Limits) -> Quotas:
    limits, stored = tenants.account(session, tenant, defaults)
    return Quotas(limits, tenants.use(session, tenant, stored), rates.used(tenant, limits.requests_per_minute))
