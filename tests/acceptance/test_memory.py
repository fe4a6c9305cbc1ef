"""A worker holds as much memory after many jobs as after few."""

from __future__ import annotations

import pytest

from benchmarks.bench import holding
from benchmarks.bench.measuring import Setting


@pytest.mark.acceptance
@pytest.mark.timeout(600)
def test_a_worker_s_memory_stays_flat_over_200_jobs() -> None:
    """On digits."""
    (_, after), text = holding.measure(Setting())
    assert after.what == "a worker's memory after 200 jobs"
    assert after.reaches(after.must), text
