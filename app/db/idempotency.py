"""Every query on idempotency keys. Nothing here commits."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.models import IdempotencyRow


def reserve(session: Session, tenant: str, route: str, key: str, content_sha256: str) -> IdempotencyRow | None:
    """Take the key for this transaction. None when it is ours; else the row of whoever had it first, after waiting for
    the end of that one's transaction."""
    values = {"tenant": tenant, "route": route, "key": key, "content_sha256": content_sha256}
    taken = insert(IdempotencyRow).values(values).on_conflict_do_nothing().returning(IdempotencyRow.key)
    while session.scalar(taken) is None:
        # What the winner has committed, the next statement sees; unless it was old, and has just been forgotten.
        found = session.scalars(select(IdempotencyRow).where(_is(tenant, route, key))).one_or_none()
        if found is not None:
            return found
    return None


def is_taken(session: Session, tenant: str, route: str, key: str) -> bool:
    return session.scalar(select(IdempotencyRow.key).where(_is(tenant, route, key))) is not None


def answered(session: Session, tenant: str, route: str, key: str, *, made_id: str, answer: str) -> None:
    """Keep what the request that took the key made, and what it was told."""
    session.execute(update(IdempotencyRow).where(_is(tenant, route, key)).values(made_id=made_id, answer=answer))


def _is(tenant: str, route: str, key: str) -> ColumnElement[bool]:
    return and_(IdempotencyRow.tenant == tenant, IdempotencyRow.route == route, IdempotencyRow.key == key)
