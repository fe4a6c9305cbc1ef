"""Secrets that all processes share and nobody chose."""

from __future__ import annotations

import secrets

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.models import SecretRow


def secret(session: Session, name: str) -> bytes:
    """The secret of this name, 256 random bits; made when it is first asked for."""
    query = select(SecretRow.value).where(SecretRow.name == name)
    found = session.scalar(query)
    if found is None:
        new = {"name": name, "value": secrets.token_hex(32)}
        session.execute(insert(SecretRow).values(new).on_conflict_do_nothing())
        found = session.scalars(query).one()
    return bytes.fromhex(found)
