"""What became of an attempt at a delivery."""

from __future__ import annotations

from typing import NamedTuple


class Outcome(NamedTuple):
    """No `error` when it got through."""

    response_status: int | None
    error: str | None
    retry_after_seconds: int = 0
    """What the endpoint asked for."""
