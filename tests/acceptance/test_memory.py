"""A worker holds no more memory than it is said to, and as much after many jobs as after few."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bench import holding
from benchmarks.bench.measuring import Setting


@pytest.mark.acceptance
@pytest.mark.mnist
@pytest.mark.timeout(600)
def test_a_worker_s_memory_stays_small_and_is_flat_over_200_jobs(mnist_dir: Path | None) -> None:
    (peak, after), text = holding.measure(Setting(mnist_dir))
    assert peak.reaches(peak.must), text
    assert after.what == "a worker's memory in the last 20 of 200 jobs"
    assert after.reaches(after.must), text
