"""A request with an `Idempotency-Key` does what it asks for once, however often it is sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import NamedTuple

from pydantic import JsonValue
from sqlalchemy.orm import Session

from app.core.errors import IdempotencyKeyReused
from app.db import idempotency


class Made(NamedTuple):
    """What a request made, by its id, and the text that answers it."""

    id: str
    answer: str
    replayed: bool = False


class KeyedRequest(NamedTuple):
    """What tells one request from another: the same key on another route, or of another tenant, is another key."""

    tenant: str
    route: str
    key: str | None
    content: JsonValue


def once(session: Session, request: KeyedRequest, make: Callable[[], Made]) -> Made:
    """What `make` makes, or made when the same request was here before: the same answer, whatever has become of what
    was made. All of it is one transaction. Raises IdempotencyKeyReused, and what `make` raises: then the key is
    free."""
    tenant, route, key, content = request
    if key is None:
        return make()
    sha256 = _digest(content)
    earlier = idempotency.reserve(session, tenant, route, key, sha256)
    if earlier is None:
        made = make()
        idempotency.answered(session, tenant, route, key, made_id=made.id, answer=made.answer)
        return made
    if earlier.content_sha256 != sha256:
        raise IdempotencyKeyReused
    assert earlier.made_id is not None
    assert earlier.answer is not None
    return Made(earlier.made_id, earlier.answer, replayed=True)


def is_known(session: Session, tenant: str, route: str, key: str | None) -> bool:
    """Whether a request with this key was here before, whatever its content."""
    return key is not None and idempotency.is_taken(session, tenant, route, key)


def _digest(content: JsonValue) -> str:
    """Of the content, not of its spelling: order of fields and white space make no difference."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
