from __future__ import annotations

import logging
import time
from pathlib import Path

import psutil
import pytest

from app.core.limits import UNLIMITED
from app.local import start_broker
from app.rates import Rates


def test_all_processes_count_together_and_each_tenant_by_itself(broker_url: str) -> None:
    one, other = Rates(broker_url), Rates(broker_url)

    assert [rates.hit("together", 3) for rates in (one, other, one)] == [None] * 3
    assert (one.used("together", 3), one.used("apart", 3)) == (3, 0)
    for rates in (one, other):
        wait = rates.hit("together", 3)
        assert wait is not None
        assert 0 <= wait <= 60
    assert one.hit("apart", 3) is None
    assert one.hit("paused", 0) is not None
    assert [one.hit("together", UNLIMITED) for _ in range(5)] == [None] * 5
    for rates in (one, other):
        rates.close()


def test_a_broker_that_is_away_or_frozen_lets_all_through_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start_broker(tmp_path / "state") as broker:
        frozen = Rates(broker.url)
        assert frozen.hit("t", 1) is None
        psutil.Process(broker.child.pid).suspend()
        start = time.monotonic()
        with caplog.at_level(logging.WARNING, logger="app.rates"):
            assert [frozen.hit("t", 1) for _ in range(50)] == [None] * 50
        psutil.Process(broker.child.pid).resume()
    away = Rates(broker.url)
    with caplog.at_level(logging.WARNING, logger="app.rates"):
        assert [away.hit("t", 1) for _ in range(50)] == [None] * 50
    assert away.used("t", 1) is None
    assert time.monotonic() - start < 3
    assert len(caplog.records) == 2
    for rates in (frozen, away):
        rates.close()
