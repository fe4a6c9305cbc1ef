"""Waiting for what other processes do: for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# A look is a request more often than not, and whoever is waited for shares the processor with those who answer it.
SHORTEST_REST, LONGEST_REST = 0.02, 0.2
RESTS = 10


def wait_until(look: Callable[[], T | None], *, timeout: float, what: str) -> T:
    """The first truthy answer of `look`. Raise AssertionError, naming `what` and the last answer, after `timeout` s.

    Between two looks lies a tenth of the wait so far, within bounds.
    """
    began = time.monotonic()
    while True:
        answer = look()
        if answer:
            return answer
        waited = time.monotonic() - began
        if waited > timeout:
            raise AssertionError(f"{what}: not within {timeout:g} s; last seen: {answer!r}")
        time.sleep(min(max(waited / RESTS, SHORTEST_REST), LONGEST_REST))
