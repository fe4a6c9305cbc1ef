"""Every query on API keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import and_, bindparam, func, insert, or_, select, update
from sqlalchemy.orm import Session

from app.db.clock import now
from app.db.models import ApiKeyRow, TenantRow

_USABLE = and_(ApiKeyRow.revoked_at.is_(None), or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > now()))


def insert_key(
    session: Session,
    *,
    key_id: str,
    tenant: str,
    name: str,
    secret_sha256: str,
    scopes: Sequence[str],
    expires_at: datetime | None,
) -> ApiKeyRow:
    return session.execute(
        insert(ApiKeyRow)
        .values(
            id=key_id, tenant=tenant, name=name, secret_sha256=secret_sha256, scopes=list(scopes), expires_at=expires_at
        )
        .returning(ApiKeyRow)
    ).scalar_one()


def usable(session: Session, key_id: str) -> ApiKeyRow | None:
    """The key, unless it is unknown, revoked or expired."""
    return session.scalar(select(ApiKeyRow).where(ApiKeyRow.id == key_id, _USABLE))


class Known(NamedTuple):
    """What a request needs to know of its key."""

    id: str
    tenant: str
    secret_sha256: str
    scopes: Sequence[str]
    last_used_at: datetime | None
    requests_per_minute: int | None
    """The tenant's own limit, if it has one."""


# Made once: each request asks this.
_KNOWN = (
    select(
        ApiKeyRow.id,
        ApiKeyRow.tenant,
        ApiKeyRow.secret_sha256,
        ApiKeyRow.scopes,
        ApiKeyRow.last_used_at,
        TenantRow.requests_per_minute,
    )
    .outerjoin(TenantRow, TenantRow.name == ApiKeyRow.tenant)
    .where(ApiKeyRow.id == bindparam("key_id"), _USABLE)
)


def known(session: Session, key_id: str) -> Known | None:
    """The same of a key as of `usable`, with its tenant's limit."""
    row = session.execute(_KNOWN, {"key_id": key_id}).one_or_none()
    return None if row is None else Known(*row)


def touch(session: Session, key: Known) -> None:
    """Note the use, at most once a minute: a read must not become a write each time."""
    if key.last_used_at is None or datetime.now(UTC) - key.last_used_at > timedelta(minutes=1):
        # Of requests at once, one notes it: the others must not wait for the end of its transaction.
        free = select(ApiKeyRow.id).where(ApiKeyRow.id == key.id).with_for_update(skip_locked=True).scalar_subquery()
        session.execute(update(ApiKeyRow).where(ApiKeyRow.id == free).values(last_used_at=now()))


def all_keys(session: Session) -> Sequence[ApiKeyRow]:
    return session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id)).all()


def replace(session: Session, key_id: str, *, by: str, until: datetime) -> bool:
    """Let another key take the place of a usable one, which ends at that time, or earlier if it would anyway. False
    when there is no such key, or another one has taken its place before."""
    alone = and_(ApiKeyRow.id == key_id, _USABLE, ApiKeyRow.replaced_by.is_(None))
    end = func.least(ApiKeyRow.expires_at, until)  # which passes over NULL
    changed = update(ApiKeyRow).where(alone).values(expires_at=end, replaced_by=by)
    return session.scalar(changed.returning(ApiKeyRow.id)) is not None


def revoke(session: Session, key_id: str) -> bool:
    """Whether there was such a key that was not revoked yet."""
    changed = update(ApiKeyRow).where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None))
    return session.scalar(changed.values(revoked_at=now()).returning(ApiKeyRow.id)) is not None
