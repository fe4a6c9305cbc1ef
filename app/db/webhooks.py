"""Webhooks, and the life of a delivery: claimed, sent by whoever claimed it, settled. Nothing here commits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, func, insert, literal, select, true, tuple_, update
from sqlalchemy.orm import Session

from app.contract.webhooks import TEST
from app.db.clock import now, seconds
from app.db.jobs import Position
from app.db.models import DeliveryRow, WebhookRow

PENDING, SUCCEEDED, FAILED = "pending", "succeeded", "failed"

CLIENT, GONE, FAILING = "client", "gone", "failing"
"""Why a webhook is disabled: its client said so, its endpoint answered 410, or nothing got through for days."""

LEASE_SECONDS = 60
"""Longer than any attempt takes: whoever made one that is not settled by then is gone, and it is made again."""

OVERLAP_SECONDS = 86_400
"""So long a rotated secret goes on signing."""

FAILING_SECONDS = 5 * 86_400
"""A webhook that nothing got through to for so long is disabled when a delivery is given up."""

KEPT_SECONDS = 30 * 86_400
"""A delivery, whatever became of it."""


def hold(session: Session, tenant: str) -> None:
    """Nobody else adds a webhook of this tenant until the transaction ends."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"webhooks of {tenant}", 0))))


def insert_webhook(session: Session, **values: Any) -> WebhookRow:
    return session.scalars(insert(WebhookRow).values(**values).returning(WebhookRow)).one()


def of_tenant(session: Session, tenant: str) -> Sequence[WebhookRow]:
    """All of them, newest first."""
    query = select(WebhookRow).where(WebhookRow.tenant == tenant)
    return session.scalars(query.order_by(WebhookRow.created_at.desc(), WebhookRow.id.desc())).all()


def get(session: Session, webhook_id: str, tenant: str, *, lock: bool = False) -> WebhookRow | None:
    query = select(WebhookRow).where(WebhookRow.id == webhook_id, WebhookRow.tenant == tenant)
    return session.scalar(query.with_for_update(key_share=True) if lock else query)


def change(session: Session, webhook_id: str, values: dict[str, Any]) -> WebhookRow:
    changed = update(WebhookRow).where(WebhookRow.id == webhook_id).values(**values, updated_at=now())
    return session.scalars(changed.returning(WebhookRow).execution_options(populate_existing=True)).one()


def rotated(secret: str) -> dict[str, Any]:
    """What changes of a webhook that gets this secret."""
    expiry = now() + seconds(OVERLAP_SECONDS)
    return {"secret": secret, "previous_secret": WebhookRow.secret, "previous_secret_expires_at": expiry}


def enabled() -> dict[str, Any]:
    return {"disabled_reason": None, "disabled_at": None, "failing_since": None}


def disabled(reason: str) -> dict[str, Any]:
    """The first reason stays."""
    return {
        "disabled_reason": func.coalesce(WebhookRow.disabled_reason, reason),
        "disabled_at": func.coalesce(WebhookRow.disabled_at, now()),
    }


def remove(session: Session, webhook_id: str) -> None:
    """With all its deliveries."""
    session.execute(delete(WebhookRow).where(WebhookRow.id == webhook_id))


def deliveries(session: Session, webhook_id: str, *, after: Position | None, limit: int) -> Sequence[DeliveryRow]:
    """Newest first."""
    query = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id)
    if after:
        last = tuple_(literal(after.created_at), literal(after.id))
        query = query.where(tuple_(DeliveryRow.created_at, DeliveryRow.id) < last)
    return session.scalars(query.order_by(DeliveryRow.created_at.desc(), DeliveryRow.id.desc()).limit(limit)).all()


def redeliver(session: Session, webhook_id: str, delivery_id: str) -> DeliveryRow | None:
    """Send it now and, should that fail, as often as a new one; under the id that it has. None when there is none."""
    again = {"status": PENDING, "failures": 0, "next_attempt_at": now()}
    this = and_(DeliveryRow.id == delivery_id, DeliveryRow.webhook_id == webhook_id)
    return session.scalar(update(DeliveryRow).where(this).values(**again).returning(DeliveryRow))


@dataclass(frozen=True)
class Claim:
    """A delivery that nobody else sends until `leased_until`."""

    delivery_id: str
    webhook_id: str
    event: str
    failures: int
    leased_until: datetime
    """The fencing token: what is settled under an old one changes nothing."""
    url: str
    payload: bytes
    secrets: Sequence[str] = field(repr=False)


def claim(session: Session, *, room: int, full: Collection[str] = ()) -> list[Claim]:
    """Lease the longest due delivery of each webhook, but none of those that are `full`; at most `room`.

    One a webhook, so that a webhook with ten thousand due holds up no other; claim again for more.
    """
    # Due by the transaction's clock, which the index takes as a bound; this is its first statement.
    due_by_now = and_(DeliveryRow.status == PENDING, DeliveryRow.next_attempt_at <= func.now())
    waiting = _waiting()
    due = (
        select(DeliveryRow.id, DeliveryRow.next_attempt_at)
        .where(DeliveryRow.webhook_id == waiting.c.webhook_id, due_by_now)
        .order_by(DeliveryRow.next_attempt_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .lateral("due")
    )
    able = and_(WebhookRow.disabled_reason.is_(None), WebhookRow.id.not_in(full))
    chosen = (
        select(due.c.id)
        .select_from(waiting.join(WebhookRow, WebhookRow.id == waiting.c.webhook_id).join(due, true()))
        .where(able)
        .order_by(due.c.next_attempt_at)
        .limit(room)
        .cte("chosen")
    )
    leased = {
        "next_attempt_at": now() + seconds(LEASE_SECONDS),
        "attempts": DeliveryRow.attempts + 1,
        "last_attempt_at": now(),
    }
    overlapping = case((WebhookRow.previous_secret_expires_at > now(), WebhookRow.previous_secret))
    rows = session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.id.in_(select(chosen.c.id)), WebhookRow.id == DeliveryRow.webhook_id)
        .values(**leased)
        .returning(DeliveryRow, WebhookRow.url, WebhookRow.secret, overlapping)
    )
    return [
        Claim(
            delivery_id=row.id,
            webhook_id=row.webhook_id,
            event=row.event,
            failures=row.failures,
            leased_until=row.next_attempt_at,
            url=url,
            payload=row.payload.encode(),
            secrets=[secret] if previous is None else [secret, previous],
        )
        for row, url, secret, previous in rows
    ]


def _waiting() -> Any:
    """The webhooks with pending deliveries: a step along the index for each, however many deliveries it has."""
    pending = DeliveryRow.status == PENDING
    waiting = select(func.min(DeliveryRow.webhook_id).label("webhook_id")).where(pending).cte("waiting", recursive=True)
    following = select(func.min(DeliveryRow.webhook_id)).where(pending, DeliveryRow.webhook_id > waiting.c.webhook_id)
    return waiting.union_all(select(following.scalar_subquery()).where(waiting.c.webhook_id.is_not(None)))


def succeed(session: Session, claim: Claim, *, response_status: int | None) -> bool:
    """It got through. False when the attempt was fenced, and its end changes nothing."""
    _lock(session, claim.webhook_id)
    settled = _settle(
        session, claim, status=SUCCEEDED, next_attempt_at=None, response_status=response_status, error=None
    )
    if settled:
        _change_if(session, claim, WebhookRow.failing_since.is_not(None), {"failing_since": None})
    return settled


def fail(
    session: Session, claim: Claim, *, error: str, response_status: int | None, again_seconds: float | None, gone: bool
) -> bool:
    """It did not get through, and is tried again after so many seconds, or given up. A `gone` endpoint, and one that
    nothing has got through to for days, is left alone. False when the attempt was fenced."""
    _lock(session, claim.webhook_id)
    given_up = again_seconds is None
    settled = _settle(
        session,
        claim,
        status=FAILED if given_up else PENDING,
        failures=DeliveryRow.failures + 1,
        next_attempt_at=None if again_seconds is None else now() + seconds(again_seconds),
        response_status=response_status,
        error=error,
    )
    if settled and gone:
        _change_if(session, claim, WebhookRow.disabled_reason.is_(None), disabled(GONE))
    elif settled and claim.event != TEST:
        _change_if(session, claim, WebhookRow.failing_since.is_(None), {"failing_since": now()})
        if given_up:
            long_since = WebhookRow.failing_since <= now() - seconds(FAILING_SECONDS)
            _change_if(session, claim, long_since, disabled(FAILING))
    return settled


def _lock(session: Session, webhook_id: str) -> None:
    """Ahead of its delivery, as a deletion does: the other way round, the two could wait for each other."""
    session.execute(select(WebhookRow.id).where(WebhookRow.id == webhook_id).with_for_update(key_share=True))


def _settle(session: Session, claim: Claim, **values: Any) -> bool:
    held = and_(DeliveryRow.id == claim.delivery_id, DeliveryRow.next_attempt_at == claim.leased_until)
    settled = update(DeliveryRow).where(held).values(**values)
    return session.scalar(settled.returning(DeliveryRow.id)) is not None


def _change_if(session: Session, claim: Claim, condition: ColumnElement[bool], values: dict[str, Any]) -> None:
    session.execute(update(WebhookRow).where(WebhookRow.id == claim.webhook_id, condition).values(**values))


def forget(session: Session) -> None:
    """Rotated secrets that sign no longer, and old deliveries."""
    expired = {"previous_secret": None, "previous_secret_expires_at": None}
    session.execute(update(WebhookRow).where(WebhookRow.previous_secret_expires_at < func.now()).values(**expired))
    old = select(DeliveryRow.id).where(DeliveryRow.created_at < func.now() - seconds(KEPT_SECONDS))
    chosen = old.order_by(DeliveryRow.created_at).limit(10_000).with_for_update(skip_locked=True)
    session.execute(delete(DeliveryRow).where(DeliveryRow.id.in_(chosen)))
