from __future__ import annotations

import time

import pytest

from app.core.pace import Pace


def test_turns_are_even_and_the_first_comes_at_once() -> None:
    pace, began = Pace(per_second=100), time.monotonic()
    turns = [pace.turn() + time.monotonic() - began for _ in range(50)]
    assert turns[0] == pytest.approx(0, abs=0.005)
    assert turns[-1] - turns[0] == pytest.approx(0.49, abs=0.005)


def test_who_comes_when_all_turns_are_over_waits_for_none() -> None:
    pace = Pace(per_second=100)
    until = time.monotonic() + pace.turn() + 0.011
    while time.monotonic() < until:
        pass
    assert pace.turn() == 0


def test_nobody_waits_longer_than_the_most() -> None:
    pace = Pace(per_second=10, most_seconds=2)
    assert max(pace.turn() for _ in range(10_000)) == pytest.approx(2)
