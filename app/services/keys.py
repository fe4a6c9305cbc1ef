"""API keys: made once, shown once, stored as a hash, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from sqlalchemy.orm import Session

from app.core.errors import Unauthenticated
from app.db import keys, tenants
from app.db.models import ApiKeyRow
from app.db.session import session_scope


class Scope(StrEnum):
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    ARTIFACTS_READ = "artifacts:read"
    ADMIN = "admin"


DEFAULT_TENANT = "default"
CLIENT_SCOPES = (Scope.JOBS_READ, Scope.JOBS_WRITE, Scope.ARTIFACTS_READ)

_TOKEN = re.compile(r"sk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_TENANT = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")


@dataclass(frozen=True)
class Principal:
    """Who asks, and what the key allows."""

    tenant: str
    scopes: frozenset[str]
    key_id: str | None
    requests_per_minute: int | None = None
    """The tenant's own limit, if it has one."""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


def anybody(session: Session) -> Principal:
    """Every caller, when authentication is switched off."""
    own = tenants.requests_per_minute(session, DEFAULT_TENANT)
    return Principal(DEFAULT_TENANT, frozenset(CLIENT_SCOPES), key_id=None, requests_per_minute=own)


def _digest(secret: str) -> str:
    # A plain hash will do: the secret is 256 random bits, which no dictionary holds.
    return hashlib.sha256(secret.encode()).hexdigest()


def refuse_unlawful_tenant(name: str) -> None:
    """Raises ValueError."""
    if not _TENANT.fullmatch(name):
        raise ValueError(f"tenant {name!r} must be 1 to 64 lower-case letters, digits and inner hyphens")


def create_key(
    session: Session,
    *,
    tenant: str = DEFAULT_TENANT,
    name: str,
    scopes: Sequence[str] = CLIENT_SCOPES,
    expires_at: datetime | None = None,
) -> tuple[ApiKeyRow, str]:
    """Make a key. Returns its record and the token, which exists nowhere else. Raises ValueError."""
    refuse_unlawful_tenant(tenant)
    unknown = set(scopes) - set(Scope)
    if unknown or not scopes:
        raise ValueError(
            f"scopes must be some of {', '.join(Scope)}; unknown: {', '.join(sorted(unknown)) or 'none given'}"
        )
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    row = keys.insert_key(
        session,
        key_id=key_id,
        tenant=tenant,
        name=name,
        secret_sha256=_digest(secret),
        scopes=scopes,
        expires_at=expires_at,
    )
    return row, f"sk_{key_id}_{secret}"


def authenticate(session: Session, token: str) -> Principal:
    """The principal of a token. Raises Unauthenticated, the same for every reason."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise Unauthenticated
    key = keys.known(session, match[1])
    # An unknown id costs the same comparison as a wrong secret.
    digest = key.secret_sha256 if key else _digest("")
    if not hmac.compare_digest(digest, _digest(match[2])) or key is None:
        raise Unauthenticated
    keys.touch(session, key)
    return Principal(key.tenant, frozenset(key.scopes), key.id, key.requests_per_minute)


def list_keys(session: Session) -> Sequence[ApiKeyRow]:
    return keys.all_keys(session)


def rotate_key(session: Session, key_id: str, *, overlap: timedelta) -> tuple[ApiKeyRow, str]:
    """Make another key of the same tenant, name and scopes, beside which the old one is good for the overlap and no
    longer. The new one's term is as long as the old one's was, counted from now. Raises ValueError."""
    before, moment = keys.usable(session, key_id), datetime.now(UTC)
    if before is None:
        raise ValueError(f"no key {key_id} that is still good")
    expires_at = before.expires_at and moment + (before.expires_at - before.created_at)
    made = create_key(session, tenant=before.tenant, name=before.name, scopes=before.scopes, expires_at=expires_at)
    if not keys.replace(session, key_id, by=made[0].id, until=moment + overlap):
        raise ValueError(f"key {key_id} was rotated before: rotate the one that took its place")
    return made


def revoke_key(session: Session, key_id: str) -> bool:
    """Whether there was such a key that was not revoked yet."""
    return keys.revoke(session, key_id)


def ensure_first_key(sqlalchemy_url: str, path: Path) -> None:
    """Leave a working key in `path` (0600): the one that is there, or a new one when that no longer works."""
    with session_scope(sqlalchemy_url) as session:
        if path.exists():
            try:
                authenticate(session, path.read_text().strip())
            except Unauthenticated:
                path.unlink()
            else:
                return
        _, token = create_key(session, name="first key")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
