"""What a tenant may have: refused beyond it, told with it, and nobody else's."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app.db.session import session_scope
from app.local import Stack
from app.services import quotas
from tests.api.conftest import sqlalchemy_url
from tests.api.test_uploads import SAFETENSORS, ZIP
from tests.specs import Document, submit, sweep_spec, train_spec
from tests.waiting import wait_until

Limit = Callable[..., None]


@pytest.fixture
def limit(idle_service: Stack, newcomer: httpx.Client) -> Limit:
    """Gives the newcomer limits of its own."""
    tenant = newcomer.get("/v1/quotas").json()["tenant"]

    def limit(**own: int | None) -> None:
        with session_scope(sqlalchemy_url(idle_service)) as session:
            quotas.set_limits(session, tenant, own)

    return limit


def _refused(answer: httpx.Response, code: str = "quota_exceeded") -> Document:
    problem: Document = answer.json()
    assert (answer.status_code, problem["code"]) == (429, code), answer.text
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.headers["content-type"] == "application/problem+json"
    return problem


def test_of_fifty_submissions_at_once_the_cap_lets_ten_in(newcomer: httpx.Client, limit: Limit) -> None:
    limit(max_queued=10)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: newcomer.post("/v1/jobs", json=train_spec()), range(50)))

    assert Counter(answer.status_code for answer in answers) == {202: 10, 429: 40}
    for answer in answers:
        if answer.status_code == 429:
            problem = _refused(answer)
            assert (problem["quota"], problem["limit"], problem["in_use"]) == ("queued_jobs", 10, 10)
            assert problem["retryable"]
    assert newcomer.get("/v1/quotas").json()["queued_jobs"] == {"limit": 10, "in_use": 10}


@pytest.mark.parametrize(
    ("most", "spec", "detail"),
    [
        (0, train_spec(), "This is a job, and 0 of the tenant may wait: have the limit raised."),
        (
            2,
            sweep_spec(grid={"thresholds": [0.01, 0.02, 0.05]}),
            "These are 3 jobs, and 2 of the tenant may wait: submit fewer at once, or have the limit raised.",
        ),
    ],
)
def test_what_never_fits_is_not_to_be_sent_again(
    most: int, spec: Document, detail: str, newcomer: httpx.Client, limit: Limit
) -> None:
    limit(max_queued=most)

    problem = _refused(newcomer.post("/v1/jobs", json=spec))

    assert (problem["quota"], problem["limit"], problem["in_use"]) == ("queued_jobs", most, 0)
    assert problem["detail"] == detail
    assert not problem["retryable"]


def test_at_the_cap_every_way_in_is_shut_but_for_what_was_let_in_before(
    newcomer: httpx.Client, stranger: httpx.Client, limit: Limit
) -> None:
    limit(max_queued=1)
    keyed: dict[str, Any] = {"json": train_spec(), "headers": {"Idempotency-Key": "first"}}
    upload: dict[str, Any] = {"content": SAFETENSORS, "headers": {"Content-Type": "application/octet-stream"}}
    job = newcomer.post("/v1/jobs", **keyed).json()

    _refused(newcomer.post("/v1/jobs", json=train_spec(), headers={"Idempotency-Key": "second"}))
    _refused(newcomer.post(f"{job['links']['self']}/rerun"))
    _refused(newcomer.post("/v1/checkpoints", **upload))
    again = newcomer.post("/v1/jobs", **keyed)
    assert (again.status_code, again.json()["id"]) == (202, job["id"])
    assert newcomer.post("/v1/jobs", params={"validate_only": True}, json=train_spec()).status_code == 200
    assert newcomer.post(job["links"]["retry"]).status_code == 409
    submit(stranger, train_spec())

    newcomer.post(job["links"]["cancel"])
    upload["headers"]["Idempotency-Key"] = "upload"
    imported = newcomer.post("/v1/checkpoints", **upload)
    assert imported.status_code == 202
    assert newcomer.post("/v1/checkpoints", **upload).content == imported.content


def test_beyond_the_stored_bytes_nothing_is_let_in(newcomer: httpx.Client, idle_service: Stack, limit: Limit) -> None:
    upload: dict[str, Any] = {"content": SAFETENSORS, "headers": {"Content-Type": "application/octet-stream"}}
    size = len(SAFETENSORS)
    limit(max_stored_bytes=2 * size - 1)
    job = newcomer.post("/v1/checkpoints", **upload).json()
    kept = sorted((idle_service.state_dir / "artifacts" / ".uploads").iterdir())

    # Announced, and found out when it has come.
    for content in (SAFETENSORS, iter([SAFETENSORS])):
        problem = _refused(newcomer.post("/v1/checkpoints", **upload | {"content": content}))
        assert (problem["quota"], problem["limit"], problem["in_use"]) == ("stored_bytes", 2 * size - 1, size)
        assert f"{size} more" in problem["detail"]
        assert not problem["retryable"]
    assert sorted((idle_service.state_dir / "artifacts" / ".uploads").iterdir()) == kept
    submit(newcomer, train_spec())
    limit(max_stored_bytes=size)
    _refused(newcomer.post("/v1/jobs", json=train_spec()))

    newcomer.post(job["links"]["cancel"])
    assert newcomer.get("/v1/quotas").json()["stored_bytes"] == {"limit": size, "in_use": 0}
    submit(newcomer, train_spec())


def test_uploads_on_their_way_at_once_have_no_more_than_there_is_room_for(
    newcomer: httpx.Client, idle_service: Stack, limit: Limit
) -> None:
    """None of them announces its size; each alone would fit."""
    upload = ZIP + bytes(1 << 20)
    limit(max_stored_bytes=3 * len(upload) // 2)
    headers, folder = {"Content-Type": "application/octet-stream"}, idle_service.state_dir / "artifacts" / ".uploads"
    there, refused = set(folder.iterdir()), threading.Event()

    def halting() -> Iterator[bytes]:
        yield upload[:-1]
        assert refused.wait(60)
        yield upload[-1:]

    def arriving() -> bool:
        return any(path.stat().st_size > len(upload) // 2 for path in set(folder.iterdir()) - there)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(newcomer.post, "/v1/checkpoints", content=halting(), headers=headers)
        wait_until(arriving, timeout=30, what="half of the first upload arrives")
        problem = _refused(newcomer.post("/v1/checkpoints", content=iter([upload]), headers=headers))
        refused.set()
        assert first.result().status_code == 202

    assert (problem["quota"], problem["in_use"]) == ("stored_bytes", 0)
    assert problem["detail"].startswith("The files of your jobs take 0 of")


def test_beyond_the_rate_a_tenant_is_refused_and_nobody_else(
    newcomer: httpx.Client, stranger: httpx.Client, limit: Limit
) -> None:
    limit(requests_per_minute=5)

    answers = [newcomer.get("/v1/jobs") for _ in range(6)]

    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    problem = _refused(answers[-1], "rate_limited")
    assert (problem["quota"], problem["limit"], problem["in_use"]) == ("requests_per_minute", 5, 5)
    assert int(answers[-1].headers["Retry-After"]) <= 60
    assert stranger.get("/v1/jobs").status_code == 200
    for path in ("/livez", "/readyz", "/openapi.json"):
        assert newcomer.get(path).status_code == 200
    limit(requests_per_minute=None)
    told = newcomer.get("/v1/quotas").json()
    assert told["requests_per_minute"] == {"limit": 60_000, "in_use": 2}
    assert told["running_jobs"] == {"limit": None, "in_use": 0}
