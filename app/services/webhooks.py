"""The use cases of webhooks. Nothing here commits, and nothing sends: the loop of `app.delivery` does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from ipaddress import ip_address
from typing import NamedTuple

from pydantic_core import Url
from sqlalchemy.orm import Session

from app.contract.explain import FieldError
from app.contract.webhooks import NEW_WEBHOOK, WEBHOOK_PATCH, NewWebhook, WebhookPatch
from app.core.errors import DeliveryNotFound, InvalidWebhook, TooManyWebhooks, WebhookDisabled, WebhookNotFound
from app.core.ids import new_id
from app.core.peers import may_connect
from app.core.signing import new_secret
from app.db import outbox, webhooks
from app.db.jobs import Position
from app.db.models import DeliveryRow, WebhookRow
from app.services import cursors
from app.services.idempotency import KeyedRequest, Made, once
from app.services.parsing import parsed

MOST = 16
"""Webhooks of a tenant."""

_ID = re.compile(r"(wh|msg)_[0-9a-f]{32}\Z")


def parse(document: bytes) -> NewWebhook:
    """A webhook from a request's body. Raises Malformed, or InvalidWebhook with an entry a field."""
    return parsed(document, NEW_WEBHOOK, InvalidWebhook, "webhook")


def parse_patch(document: bytes) -> WebhookPatch:
    """What to change of a webhook, from a request's body. Raises as `parse` does."""
    return parsed(document, WEBHOOK_PATCH, InvalidWebhook, "patch")


def create(session: Session, tenant: str, new: NewWebhook, *, allow_private: bool) -> WebhookRow:
    """Raises InvalidWebhook or TooManyWebhooks."""
    refuse_hopeless(new.url, allow_private=allow_private)
    webhooks.hold(session, tenant)
    if len(webhooks.of_tenant(session, tenant)) >= MOST:
        raise TooManyWebhooks(MOST)
    values = new.model_dump(mode="json")
    return webhooks.insert_webhook(session, id=new_id("wh"), tenant=tenant, secret=new_secret(), **values)


class Created(NamedTuple):
    row: WebhookRow
    replayed: bool


def create_once(session: Session, tenant: str, new: NewWebhook, key: str | None, *, allow_private: bool) -> Created:
    """What `create` makes; or, when the same request was here before, what that one made, as it is now. Raises as
    `create` does, IdempotencyKeyReused, and WebhookNotFound when what it made has been deleted."""
    request = KeyedRequest(tenant, "create_webhook", key, new.model_dump(mode="json", exclude_unset=True))
    # No answer is kept: it would hold the secret a second time, and for longer than the webhook may last.
    made = once(session, request, lambda: Made(create(session, tenant, new, allow_private=allow_private).id, answer=""))
    return Created(get(session, tenant, made.id), made.replayed)


def refuse_hopeless(url: str, *, allow_private: bool) -> None:
    """Raises InvalidWebhook for what no delivery would ever get through to. Where a name leads is looked at when it is
    connected to, each time."""
    parts = Url(url)
    host = (parts.host or "").strip("[]").rstrip(".")
    if parts.scheme != "https" and not allow_private:
        raise _refused("url_not_https", "the URL must start with https://")
    is_local = host == "localhost" or host.endswith(".localhost")
    if (is_local and not allow_private) or (_is_address(host) and not may_connect(host, allow_private=allow_private)):
        raise _refused("url_not_public", f"{host} is no public address: nothing is sent there")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _refused(code: str, detail: str) -> InvalidWebhook:
    return InvalidWebhook(detail, [FieldError(pointer="/url", code=code, detail=detail)])


def of_tenant(session: Session, tenant: str) -> Sequence[WebhookRow]:
    """All of them, newest first."""
    return webhooks.of_tenant(session, tenant)


def get(session: Session, tenant: str, webhook_id: str, *, lock: bool = False) -> WebhookRow:
    """One that is locked is neither changed nor deleted by others until the transaction ends. Raises
    WebhookNotFound."""
    # What is no id at all never reaches the database, which would choke on some of it.
    row = webhooks.get(session, webhook_id, tenant, lock=lock) if _ID.match(webhook_id) else None
    if row is None:
        raise WebhookNotFound(webhook_id)
    return row


def change(session: Session, tenant: str, webhook_id: str, patch: WebhookPatch, *, allow_private: bool) -> WebhookRow:
    """Raises WebhookNotFound or InvalidWebhook."""
    row = get(session, tenant, webhook_id, lock=True)
    values = patch.model_dump(mode="json", exclude_unset=True)
    if "url" in values:
        refuse_hopeless(values["url"], allow_private=allow_private)
        values["failing_since"] = None  # what has failed was another endpoint
    if "enabled" in values:
        values |= webhooks.enabled() if values.pop("enabled") else webhooks.disabled(webhooks.CLIENT)
    return webhooks.change(session, row.id, values) if values else row


def delete(session: Session, tenant: str, webhook_id: str) -> None:
    """With all its deliveries, those that wait included. Raises WebhookNotFound."""
    webhooks.remove(session, get(session, tenant, webhook_id).id)


def rotate(session: Session, tenant: str, webhook_id: str) -> WebhookRow:
    """Give it a new secret. The one before goes on signing for a day; one before that, no longer. Raises
    WebhookNotFound."""
    row = get(session, tenant, webhook_id, lock=True)
    return webhooks.change(session, row.id, webhooks.rotated(new_secret()))


def test(session: Session, tenant: str, webhook_id: str) -> DeliveryRow:
    """Raises WebhookNotFound or WebhookDisabled."""
    return outbox.tell_test(session, _enabled(session, tenant, webhook_id).id)


def redeliver(session: Session, tenant: str, webhook_id: str, delivery_id: str) -> DeliveryRow:
    """Raises WebhookNotFound, WebhookDisabled or DeliveryNotFound."""
    row = _enabled(session, tenant, webhook_id)
    delivery = webhooks.redeliver(session, row.id, delivery_id) if _ID.match(delivery_id) else None
    if delivery is None:
        raise DeliveryNotFound(delivery_id)
    return delivery


def _enabled(session: Session, tenant: str, webhook_id: str) -> WebhookRow:
    row = get(session, tenant, webhook_id, lock=True)
    if row.disabled_reason is not None:
        raise WebhookDisabled(f"The webhook has been disabled ({row.disabled_reason}): enable it with PATCH first.")
    return row


class DeliveryPage(NamedTuple):
    items: Sequence[DeliveryRow]
    next_cursor: str | None


def deliveries(session: Session, tenant: str, webhook_id: str, *, cursor: str | None, limit: int) -> DeliveryPage:
    """A page of them, newest first. Raises WebhookNotFound or InvalidCursor."""
    row = get(session, tenant, webhook_id)
    of_this = f"{tenant}\0{row.id}"  # the cursor of another list, or of another webhook's, is none here
    after = None
    if cursor:
        content = cursors.decode(session, of_this, cursor)
        after = Position(datetime.fromisoformat(content["at"]), content["id"])
    rows = webhooks.deliveries(session, row.id, after=after, limit=limit + 1)
    if len(rows) <= limit:
        return DeliveryPage(rows, None)
    last = rows[limit - 1]
    content = {"at": last.created_at.isoformat(), "id": last.id}
    return DeliveryPage(rows[:limit], cursors.encode(session, of_this, content))
