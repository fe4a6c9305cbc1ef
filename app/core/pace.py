"""Spreads over time what would come all at once."""

from __future__ import annotations

import time


class Pace:
    """Turns, so many a second and evenly. Who takes one while there are few waits for none; nobody waits for longer
    than `most_seconds`, when those who do not keep to their turns have taken them all."""

    def __init__(self, per_second: float, most_seconds: float = 30.0) -> None:
        self._interval, self._most = 1 / per_second, most_seconds
        self._free_at = 0.0

    def turn(self) -> float:
        """Take the next turn. Returns the seconds until it comes."""
        moment = time.monotonic()
        comes_at = min(max(self._free_at, moment), moment + self._most)
        self._free_at = comes_at + self._interval
        return comes_at - moment
