"""When a request is worth another try, and how long to wait before it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from secateur_client.errors import ClientError, Problem, Unreachable, is_busy

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0
"""Of those that the server does not name."""


class Tries:
    """The tries of one request, which all together take no longer than `seconds`."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = clock() + seconds
        self._pause = FIRST_PAUSE_SECONDS

    def pause_after(self, error: ClientError) -> float | None:
        """Seconds until the next try; None when there should be none."""
        pause = self._named_or_own(error)
        return None if pause is None or self._clock() + pause > self._until else pause

    def _named_or_own(self, error: ClientError) -> float | None:
        match error:
            case Unreachable(hopeless=False):
                return self._own()
            case Problem() if is_busy(error.status):
                return self._own() if error.retry_after is None else error.retry_after
            case Problem(retryable=True):
                # Where the server names no time, it waits for something else to change, such as another job's end.
                return error.retry_after
        return None

    def _own(self) -> float:
        """Longer each time, and never the same for two clients: those that failed together do not come together."""
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return pause * random.uniform(0.5, 1)  # noqa: S311 - no secret


def retry_after(value: str, now: datetime | None = None) -> float | None:
    """Seconds of a `Retry-After`, which is a number of them or a date (RFC 9110, 10.2.3); None for anything else."""
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    # A date without a zone is in GMT.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
