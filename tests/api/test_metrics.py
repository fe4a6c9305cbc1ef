from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from app.contract.failure import Failure, FailureCode
from app.db import attempts
from app.db.session import session_scope
from app.local import Stack
from tests.api.conftest import restart_api, sqlalchemy_url
from tests.specs import submit, train_spec

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def _scrape(http: httpx.Client) -> Samples:
    """Every sample, as Prometheus' own parser reads it."""
    answer = httpx.get(f"{http.base_url}/metrics", trust_env=False, timeout=30)  # without a key
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def _value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.fixture
def grown(newcomer: httpx.Client) -> Iterator[dict[str, float]]:
    """Filled at the test's end by `how much more` of each sample of jobs there is than before."""
    yield {}


def _more(before: Samples, after: Samples) -> dict[str, float]:
    """What the counters and gauges of jobs have grown by, but for durations."""
    found = {}
    for (name, labels), value in after.items():
        if name.startswith("jobs_") and value != before[name, labels]:
            found[f"{name} {' '.join(sorted(dict(labels).values()))}".strip()] = value - before[name, labels]
    return found


def test_jobs_are_counted_from_their_submission_to_their_purge_and_over_a_restart(
    idle_service: Stack, newcomer: httpx.Client
) -> None:
    start = _scrape(newcomer)
    failed, cancelled = (submit(newcomer, train_spec())["id"] for _ in range(2))
    newcomer.post(f"/v1/jobs/{cancelled}/cancel")
    failure = Failure.of(FailureCode.OUT_OF_MEMORY, "No room.", attempt=1)
    with session_scope(sqlalchemy_url(idle_service)) as session:
        claim = attempts.claim(session, failed, owner="w", lease_seconds=60)
        assert claim is not None
        attempts.fail(session, failed, 1, failure=failure)
    ended = _scrape(newcomer)

    assert _more(start, ended) == {
        "jobs_submitted_total train": 2,
        "jobs_finished_total cancelled train": 1,
        "jobs_finished_total failed out_of_memory train": 1,
        "jobs_in_status cancelled": 1,
        "jobs_in_status failed": 1,
    }
    assert (
        _value(ended, "job_queue_wait_seconds_count", kind="train")
        - _value(start, "job_queue_wait_seconds_count", kind="train")
        == 1
    )

    newcomer.post(f"/v1/jobs/{failed}/retry").raise_for_status()
    newcomer.delete(f"/v1/jobs/{cancelled}").raise_for_status()
    restart_api(idle_service, newcomer)
    assert _more(ended, _scrape(newcomer)) == {
        "jobs_requeued_total retry train": 1,
        "jobs_in_status cancelled": -1,
        "jobs_in_status failed": -1,
        "jobs_in_status queued": 1,
    }
    assert _value(_scrape(newcomer), "oldest_queued_seconds") > 0
