"""Webhooks: whom to tell of what happens to jobs, and what has become of that."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from app.api import resources
from app.api.deps import (
    NO_BODY,
    IdempotencyKey,
    NewWebhookDep,
    PartsDep,
    ReaderDep,
    ReadSessionDep,
    SessionDep,
    WebhookPatchDep,
    WriterDep,
    make_router,
)
from app.api.openapi import WEBHOOK_BODY, WEBHOOK_PATCH_BODY, problems, with_headers
from app.api.routes.jobs import MOST, Limit, link_next
from app.api.schemas import Delivery, Page, Webhook, WebhookWithSecret
from app.services import webhooks

router = make_router(prefix="/v1/webhooks", tags=["webhooks"])


@router.post(
    "",
    status_code=201,
    operation_id="create_webhook",
    openapi_extra=WEBHOOK_BODY,
    responses=problems(400, 404, 408, 409, 413, 415, 422) | with_headers(201, "Location", "Idempotency-Replayed"),
)
def create_webhook(
    who: WriterDep,
    new: NewWebhookDep,
    session: SessionDep,
    parts: PartsDep,
    response: Response,
    key: IdempotencyKey = None,
) -> WebhookWithSecret:
    """Have an address told of what happens to your jobs. The answer has the secret that tells our deliveries from
    anybody else's; sent again with the same key, the request is answered with the webhook as it is then."""
    allow_private = parts.settings.webhook_allow_private
    row, replayed = webhooks.create_once(session, who.tenant, new, key, allow_private=allow_private)
    response.headers["Location"] = resources.webhook_url(row.id)
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return resources.webhook_with_secret(row)


@router.get("", operation_id="list_webhooks", responses=problems())
def list_webhooks(who: ReaderDep, session: ReadSessionDep) -> Page[Webhook]:
    """Your webhooks, newest first, on one page."""
    return Page(items=[resources.webhook(row) for row in webhooks.of_tenant(session, who.tenant)], next_cursor=None)


@router.get("/{webhook_id}", operation_id="get_webhook", responses=problems(404))
def get_webhook(webhook_id: str, who: ReaderDep, session: ReadSessionDep) -> Webhook:
    """A webhook, and whether it is enabled."""
    return resources.webhook(webhooks.get(session, who.tenant, webhook_id))


@router.patch(
    "/{webhook_id}",
    operation_id="update_webhook",
    openapi_extra=WEBHOOK_PATCH_BODY,
    responses=problems(400, 404, 408, 413, 415, 422),
)
def update_webhook(
    webhook_id: str, who: WriterDep, patch: WebhookPatchDep, session: SessionDep, parts: PartsDep
) -> Webhook:
    """Change a webhook, by a merge patch (RFC 7396). What waits goes to the URL that it has then; while a webhook is
    disabled nothing is sent, and nothing new is kept for it."""
    allow_private = parts.settings.webhook_allow_private
    return resources.webhook(webhooks.change(session, who.tenant, webhook_id, patch, allow_private=allow_private))


@router.delete("/{webhook_id}", status_code=204, operation_id="delete_webhook", responses=problems(404))
def delete_webhook(webhook_id: str, who: WriterDep, session: SessionDep) -> None:
    """Delete a webhook with all its deliveries, those that wait included."""
    webhooks.delete(session, who.tenant, webhook_id)


@router.post(
    "/{webhook_id}/rotate-secret",
    operation_id="rotate_webhook_secret",
    dependencies=[NO_BODY],
    responses=problems(404, 408, 413, 422),
)
def rotate_secret(webhook_id: str, who: WriterDep, session: SessionDep) -> WebhookWithSecret:
    """Get a new secret. For a day, deliveries are signed with the one before as well."""
    return resources.webhook_with_secret(webhooks.rotate(session, who.tenant, webhook_id))


@router.post(
    "/{webhook_id}/test",
    status_code=202,
    operation_id="test_webhook",
    dependencies=[NO_BODY],
    responses=problems(404, 408, 409, 413, 422),
)
def test_webhook(webhook_id: str, who: WriterDep, session: SessionDep) -> Delivery:
    """Send a `webhook.test`, once."""
    return resources.delivery(webhooks.test(session, who.tenant, webhook_id))


@router.get("/{webhook_id}/deliveries", operation_id="list_webhook_deliveries", responses=problems(400, 404, 422))
def list_deliveries(
    webhook_id: str,
    who: ReaderDep,
    session: ReadSessionDep,
    request: Request,
    response: Response,
    cursor: Annotated[str | None, Query(description="Of the page before.")] = None,
    limit: Limit = 20,
) -> Page[Delivery]:
    """What was sent to a webhook in the last 30 days, and what is to be; newest first."""
    page = webhooks.deliveries(session, who.tenant, webhook_id, cursor=cursor, limit=min(limit, MOST))
    link_next(request, response, cursor=page.next_cursor)
    return Page(items=[resources.delivery(row) for row in page.items], next_cursor=page.next_cursor)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    operation_id="redeliver_webhook_delivery",
    dependencies=[NO_BODY],
    responses=problems(404, 408, 409, 413, 422),
)
def redeliver(webhook_id: str, delivery_id: str, who: WriterDep, session: SessionDep) -> Delivery:
    """Send a delivery now, whatever has become of it, under the same `webhook-id`."""
    return resources.delivery(webhooks.redeliver(session, who.tenant, webhook_id, delivery_id))
