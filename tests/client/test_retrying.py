"""How long to wait before another try, and when there is none."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from secateur_client import Busy, ClientError, Conflict, NotSecateur, Problem, Unreachable
from secateur_client.retrying import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Tries, retry_after

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        ("Thu, 26 Nov 2026 12:01:30 GMT", 90),
        ("Thu, 26 Nov 2026 12:01:30 -0000", 90),
        ("Thu, 26 Nov 2026 11:00:00 GMT", 0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        ("Thu, 99 Nov 2026 11:00:00 GMT", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (Unreachable("cut"), True),
        (Unreachable("nobody there", hopeless=True), False),
        (Busy(429, {}), True),
        (Problem(500, {"retryable": True}, retry_after=1), True),
        (Problem(500, {}, retry_after=1), False),
        (Conflict(409, {"retryable": True}), False),
        (NotSecateur("<html>"), False),
    ],
)
def test_what_is_tried_again(error: ClientError, again: bool) -> None:
    assert (Tries(30).pause_after(error) is not None) is again


def test_own_pauses_grow_to_a_bound_and_all_of_them_to_the_time_given() -> None:
    now = 0.0
    tries, pauses = Tries(60, clock=lambda: now), []
    while (pause := tries.pause_after(Unreachable("cut"))) is not None:
        pauses.append(pause)
        now += pause

    assert FIRST_PAUSE_SECONDS / 2 <= pauses[0] <= FIRST_PAUSE_SECONDS
    assert max(pauses) <= LONGEST_PAUSE_SECONDS
    assert sum(pauses) == now <= 60
    assert 12 < len(pauses) < 40
    assert len(set(pauses)) > 1
