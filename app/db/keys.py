"""Every query on API keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import and_, func, insert, or_, select, update
from sqlalchemy.orm import Session

from app.db.clock import now
from app.db.models import ApiKeyRow

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


def touch(session: Session, row: ApiKeyRow) -> None:
    """Note the use, at most once a minute: a read must not become a write each time."""
    if row.last_used_at is None or datetime.now(UTC) - row.last_used_at > timedelta(minutes=1):
        # Of requests at once, one notes it: the others must not wait for the end of its transaction.
        free = select(ApiKeyRow.id).where(ApiKeyRow.id == row.id).with_for_update(skip_locked=True).scalar_subquery()
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
