from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from app.api.main import create_app
from app.api.metrics import Look, Metrics
from app.contract.failure import Failure, FailureCode
from app.core.settings import Settings
from app.db import attempts
from app.db.session import session_scope
from app.local import Stack
from tests.api.conftest import restart_api, sqlalchemy_url
from tests.specs import submit, train_spec

HISTOGRAM = "http_request_duration_seconds"

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def _scrape(http: httpx.Client) -> Samples:
    """Every sample, as Prometheus' own parser reads it."""
    return _samples(httpx.get(f"{http.base_url}/metrics", trust_env=False, verify=False, timeout=30))  # without a key


def _samples(answer: httpx.Response) -> Samples:
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def _value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def _more(before: Samples, after: Samples) -> dict[str, float]:
    """What the counters and gauges of jobs have grown by, but for durations."""
    found = {}
    for (name, labels), value in after.items():
        if name.startswith("jobs_") and value != before[name, labels]:
            found[" ".join([name, *filter(None, sorted(dict(labels).values()))])] = value - before[name, labels]
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
    waits = [_value(samples, "job_queue_wait_seconds_count", kind="train") for samples in (start, ended)]
    assert waits[1] - waits[0] == 1

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


def test_a_request_is_measured_under_its_template_and_a_client_makes_up_no_label(newcomer: httpx.Client) -> None:
    job_id = submit(newcomer, train_spec())["id"]
    newcomer.get(f"/v1/jobs/{job_id}").raise_for_status()
    newcomer.get(f"/v1/jobs/{job_id}/nothing")
    newcomer.request("BREW", "/v1/jobs")
    samples = _scrape(newcomer)

    count = f"{HISTOGRAM}_count"
    assert _value(samples, count, method="GET", route="/v1/jobs/{job_id}", status="200") >= 1
    assert _value(samples, count, method="GET", route="other", status="404") >= 1
    assert _value(samples, count, method="other", route="/v1/jobs", status="405") >= 1
    assert not [value for _, labels in samples for _, value in labels if "job_" in value and "{job_id}" not in value]


def test_how_long_requests_took_is_a_histogram() -> None:
    requests = Metrics()
    for seconds in (0.001, 0.005, 0.3, 0.4, 99):
        requests.observe(method="GET", route="/v1/jobs", status=200, seconds=seconds)
    text, _ = requests.exposition(None, broker_is_up=False, accept="")
    [family] = [each for each in text_string_to_metric_families(text.decode()) if each.name == HISTOGRAM]
    assert family.type == "histogram"
    buckets = {each.labels["le"]: each.value for each in family.samples if each.name == f"{HISTOGRAM}_bucket"}
    counts = [2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 4, 5]
    bounds = "0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 2.5 5.0 10.0 30.0 60.0 +Inf"
    assert buckets == dict(zip(bounds.split(), counts, strict=True))
    rest = {each.name: each.value for each in family.samples if "le" not in each.labels}
    assert rest == {f"{HISTOGRAM}_count": 5, f"{HISTOGRAM}_sum": pytest.approx(99.706)}


def test_prometheus_may_have_openmetrics(idle_http: httpx.Client) -> None:
    answer = idle_http.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = openmetrics.text_string_to_metric_families(answer.text)  # type: ignore[no-untyped-call]
    assert {"jobs_submitted", "job_run_seconds", HISTOGRAM} <= {family.name for family in families}


def test_it_is_neither_described_nor_asked_for_a_key(idle_http: httpx.Client) -> None:
    assert "/metrics" not in idle_http.get("/openapi.json").json()["paths"]


async def _scrape_of_a_service_without_servers() -> httpx.Response:
    app = create_app(Settings(database_url="postgresql://127.0.0.1:1/x", redis_url="redis://127.0.0.1:1/0"))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        return await client.get("/metrics")


def test_while_all_is_away_a_scrape_tells_that_and_what_the_process_knows() -> None:
    samples = _samples(asyncio.run(_scrape_of_a_service_without_servers()))
    assert (_value(samples, "database_up"), _value(samples, "broker_up")) == (0, 0)
    assert _value(samples, "process_start_time_seconds") > 0
    assert "jobs_submitted_total" not in {name for name, _ in samples}


def test_what_hangs_is_not_waited_for_and_not_asked_again_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.metrics.PATIENCE_SECONDS", 0.05)
    asked, answering = [], threading.Event()

    def question() -> str:
        asked.append("once")
        answering.wait(30)
        return "answer"

    async def ask() -> list[str | None]:
        look = Look(question)
        in_vain = await asyncio.gather(look.answer(), look.answer())
        again = await look.answer()
        answering.set()
        return [*in_vain, again, await look.answer()]

    assert asyncio.run(ask()) == [None, None, None, "answer"]
    assert asked == ["once"]
