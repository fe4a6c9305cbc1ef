"""Two hundred cancels at random times."""

from __future__ import annotations

import logging
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.cluster import Cluster
from tests.specs import ended, submit, train_spec
from tests.waiting import wait_until

logger = logging.getLogger(__name__)

CANCELS = 200
MEDIAN_SECONDS = 1.5

# Two seconds of work or so, that a cancel may meet anywhere: in the queue, at the start, in a step, at the end.
SPEC = train_spec(training={"epochs": 8})


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_cancels_at_random_times_end_each_job_once_and_soon(cluster: Cluster) -> None:
    chance = random.Random(5)
    with ThreadPoolExecutor(2) as pool:
        took = list(
            pool.map(lambda after: _cancelled(cluster, after), [chance.uniform(0, 2.5) for _ in range(CANCELS)])
        )
    seconds = [each for each in took if each is not None]
    logger.info(
        "%d cancels took %.2f s, the median, and at most %.2f s", len(seconds), statistics.median(seconds), max(seconds)
    )
    assert len(seconds) > CANCELS / 2
    assert statistics.median(seconds) <= MEDIAN_SECONDS


def _cancelled(cluster: Cluster, after: float) -> float | None:
    """Submit a job and cancel it. Returns the seconds from the request to the end; None when it came too late."""
    job_id = submit(cluster.http, SPEC)["id"]
    moment = time.monotonic() + after
    wait_until(lambda: time.monotonic() >= moment, timeout=10, what="the moment has come")
    began = time.monotonic()
    answer = cluster.http.post(f"/v1/jobs/{job_id}/cancel")
    job = ended(cluster.http, job_id, timeout=30)
    took = time.monotonic() - began
    assert (answer.status_code, job["status"]) in ((202, "cancelled"), (409, "succeeded"))
    events = cluster.events(job_id)
    assert [e["type"] for e in events if e["type"] in ("succeeded", "failed", "cancelled")] == [job["status"]]
    if job["status"] == "cancelled":
        assert cluster.http.get(job["links"]["artifacts"]).json()["items"] == []
    cluster.wait_until_tidy(job)
    return took if job["status"] == "cancelled" else None
