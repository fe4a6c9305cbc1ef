"""The database that a command goes to straight."""

from __future__ import annotations

import os
from pathlib import Path


def database_of(state_dir: Path) -> str:
    """`SECATEUR_DATABASE_URL`, or the embedded stack's."""
    from pydantic import SecretStr

    from app.core.settings import Settings

    url = os.environ.get("SECATEUR_DATABASE_URL")
    if url is None:
        from app import local

        url = local.database_url(state_dir)
    # Nothing that goes there needs Redis, so it must not fail for want of its address.
    return Settings(database_url=SecretStr(url), redis_url=SecretStr("redis://localhost")).sqlalchemy_url
