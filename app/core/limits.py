"""What a tenant may have of the service at once."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, Field

UNLIMITED = 2**63 - 1
"""No limit. It compares as any limit does, here and in the database."""

NONE = "none"
"""How people write it; 0 is a limit like any other, under which nothing is had."""


def _number(value: object) -> object:
    if value == NONE:
        return UNLIMITED
    if isinstance(value, str) and not value.isdecimal():
        raise ValueError(f"it is a whole number, or `{NONE}` for no limit")
    return value


Limit = Annotated[int, BeforeValidator(_number), Field(ge=0, le=UNLIMITED)]
"""A count, or the word `none`."""


class Limits(NamedTuple):
    max_queued: int
    max_running: int
    max_stored_bytes: int
    requests_per_minute: int


def spelt(limit: int) -> str:
    """A limit as people write it."""
    return NONE if limit == UNLIMITED else str(limit)
