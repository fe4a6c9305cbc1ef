"""Whether what arrives at a webhook comes from the service: Standard Webhooks 1.0.0 (https://www.standardwebhooks.com)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping

import httpx
from pydantic import ValidationError

from secateur_client.errors import BadSignature
from secateur_client.resources import WebhookEvent

TOLERANCE_SECONDS = 300.0
"""Between the sender's clock and ours, and on the way; whoever has caught a delivery can send it again for so long."""


def verify_webhook(
    secret: str, headers: Mapping[str, str], body: bytes, *, tolerance: float = TOLERANCE_SECONDS
) -> WebhookEvent:
    """The event in a request that a webhook has got, if `secret` (`whsec_…`) has signed it within `tolerance` seconds.
    `body` are the very bytes that came. Raises BadSignature, and ValueError for what is no secret.

    An event may come twice: the header `webhook-id` is the same each time.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    try:
        given = httpx.Headers(headers)
        message_id, sent, signatures = (given[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
        age = time.time() - int(sent)
    except (KeyError, ValueError) as error:
        raise BadSignature("The headers webhook-id, -timestamp and -signature are not all there and lawful.") from error
    if abs(age) > tolerance:
        raise BadSignature(f"It was signed {age:.0f} s ago by this clock; {tolerance:g} s are tolerated.")
    signed = f"{message_id}.{sent}.".encode() + body
    right = b"v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256))
    # Two secrets sign for a while after a rotation.
    if not any(hmac.compare_digest(right, each.encode()) for each in signatures.split()):
        raise BadSignature("No signature is this secret's.")
    try:
        return WebhookEvent.model_validate_json(body)
    except ValidationError as error:
        raise BadSignature("The body is signed, and is no event.") from error
