"""How many requests a tenant makes in a minute, counted in the broker for all API processes together.

The window slides: what the minute before counted weighs less and less, so that a burst at the turn of two minutes is
not let through twice.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from app.core.limits import UNLIMITED

if TYPE_CHECKING:
    from limits.strategies import SlidingWindowCounterRateLimiter
    from redis import BlockingConnectionPool

PREFIX = "secateur.rate"

TIMEOUT_SECONDS = 0.25
"""Longer, the broker is taken to be away."""

AWAY_SECONDS = 10.0
"""So long, a broker that was away is not asked again: a request must not wait for it each time."""

MOST_CONNECTIONS = 20

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Rates:
    """Counts requests. When the broker is away, all are let through: it is there for the workers' sake, and a service
    that serves too much is better than one that serves nothing."""

    def __init__(self, redis_url: str) -> None:
        self._url = redis_url.replace("redis+socket:", "unix:", 1)  # Celery's spelling
        self._opening = threading.Lock()
        self._opened: _Counting | None = None
        self._asked_again_at = -math.inf

    @property
    def _counting(self) -> _Counting:
        with self._opening:
            if self._opened is None:
                self._opened = _open(self._url)
            return self._opened

    def hit(self, tenant: str, limit: int) -> float | None:
        """Count a request. None lets it through; else the seconds until the next one may be."""
        if limit == UNLIMITED:
            return None
        return self._ask(lambda: self._wait(tenant, limit))

    def _wait(self, tenant: str, limit: int) -> float | None:
        from limits import RateLimitItemPerMinute

        item = RateLimitItemPerMinute(limit)
        limiter = self._counting.limiter
        if limiter.hit(item, tenant):
            return None
        return max(0.0, limiter.get_window_stats(item, tenant).reset_time - time.time())

    def used(self, tenant: str, limit: int) -> int | None:
        """Requests that count at this moment. None when the broker is away, or there is no limit and so no count."""
        from limits import RateLimitItemPerMinute

        if limit == UNLIMITED:
            return None
        item = RateLimitItemPerMinute(limit)
        return self._ask(lambda: limit - self._counting.limiter.get_window_stats(item, tenant).remaining)

    def _ask(self, question: Callable[[], T]) -> T | None:
        from redis.exceptions import RedisError

        if time.monotonic() < self._asked_again_at:
            return None
        try:
            return question()
        except (RedisError, OSError) as error:
            logger.warning("requests are not counted: the broker is away", extra={"error": str(error)})
            self._asked_again_at = time.monotonic() + AWAY_SECONDS
            return None

    def close(self) -> None:
        if self._opened is not None:
            self._opened.pool.disconnect()


class _Counting(NamedTuple):
    pool: BlockingConnectionPool
    limiter: SlidingWindowCounterRateLimiter


def _open(url: str) -> _Counting:
    """Imports what only those need who count, and not before they do: a process that starts need not wait for it."""
    from limits.storage import RedisStorage
    from limits.strategies import SlidingWindowCounterRateLimiter
    from redis import BlockingConnectionPool
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MOST_CONNECTIONS,
        timeout=TIMEOUT_SECONDS,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    storage = RedisStorage("redis://", connection_pool=pool, key_prefix=PREFIX)
    return _Counting(pool, SlidingWindowCounterRateLimiter(storage))
