"""Identifiers: sortable by time, not guessable."""

from __future__ import annotations

import secrets
import time


def new_id(prefix: str) -> str:
    """The prefix, `_` and 32 hex digits: 48 bits of milliseconds since 1970, then 80 random bits."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def new_job_id() -> str:
    return new_id("job")
