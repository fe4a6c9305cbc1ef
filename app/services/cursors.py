"""Where a list goes on, as a text that only this service can have written, and only for this tenant."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from sqlalchemy.orm import Session

from app.core.errors import InvalidCursor
from app.db.secrets import secret

_TAG_BYTES = 16


def encode(session: Session, tenant: str, content: dict[str, Any]) -> str:
    text = json.dumps(content, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_tag(session, tenant, text) + text).decode().rstrip("=")


def decode(session: Session, tenant: str, cursor: str) -> dict[str, Any]:
    """Raises InvalidCursor."""
    try:
        signed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        signed = b""
    tag, text = signed[:_TAG_BYTES], signed[_TAG_BYTES:]
    if not hmac.compare_digest(tag, _tag(session, tenant, text)):
        raise InvalidCursor("The cursor is not one that a page of this list gave: start again without it.")
    content: dict[str, Any] = json.loads(text)
    return content


def _tag(session: Session, tenant: str, text: bytes) -> bytes:
    message = f"{tenant}\0".encode() + text
    return hmac.digest(secret(session, "cursors"), message, hashlib.sha256)[:_TAG_BYTES]
