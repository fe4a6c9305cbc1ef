from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import pytest

from app.local import Stack
from tests.api.conftest import restart_api
from tests.specs import Document, train_spec


def _post(http: httpx.Client, key: str, spec: object, url: str = "/v1/jobs") -> httpx.Response:
    return http.post(url, json=spec, headers={"Idempotency-Key": key})


def _jobs(http: httpx.Client) -> list[str]:
    return [job["id"] for job in http.get("/v1/jobs").json()["items"]]


def test_fifty_equal_submissions_at_once_make_one_job_and_fifty_equal_answers(newcomer: httpx.Client) -> None:
    key = uuid4().hex
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: _post(newcomer, key, train_spec()), range(50)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["Location"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    assert _jobs(newcomer) == [answers[0].json()["id"]]


def test_the_first_answer_comes_again_whatever_has_become_of_the_job(http: httpx.Client) -> None:
    key = uuid4().hex
    first = _post(http, key, train_spec())
    job_id = first.json()["id"]
    http.post(f"/v1/jobs/{job_id}/cancel")

    again = _post(http, key, train_spec())

    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Location"] == f"/v1/jobs/{job_id}"


def test_the_same_content_may_be_spelt_otherwise(newcomer: httpx.Client) -> None:
    key, spec = uuid4().hex, train_spec()
    first = _post(newcomer, key, spec)

    again = _post(newcomer, key, dict(reversed(spec.items())))

    assert again.json() == first.json()


def test_another_content_with_the_same_key_is_refused_and_makes_nothing(newcomer: httpx.Client) -> None:
    key = uuid4().hex
    first = _post(newcomer, key, train_spec())

    other = _post(newcomer, key, train_spec(training={"epochs": 2}))

    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert _jobs(newcomer) == [first.json()["id"]]


def test_a_refused_request_leaves_the_key_free(newcomer: httpx.Client) -> None:
    key = uuid4().hex
    assert _post(newcomer, key, train_spec(training={"epochs": -1})).status_code == 422
    missing = {"job_id": f"job_{uuid4().hex}"}
    assert _post(newcomer, key, train_spec(initial=missing)).json()["errors"][0]["code"] == "source_not_found"

    assert _post(newcomer, key, train_spec()).status_code == 202


def test_a_key_is_its_tenants_own_and_its_routes(newcomer: httpx.Client, idle_http: httpx.Client) -> None:
    key = uuid4().hex
    mine, theirs = _post(newcomer, key, train_spec()), _post(idle_http, key, train_spec())
    assert mine.json()["id"] != theirs.json()["id"]

    rerun = _post(newcomer, key, None, f"{mine.headers['Location']}/rerun")
    again = _post(newcomer, key, None, f"{mine.headers['Location']}/rerun")

    assert rerun.json()["parent_job_id"] == mine.json()["id"]
    assert again.content == rerun.content


def test_validating_alone_neither_takes_nor_asks_for_a_key(newcomer: httpx.Client) -> None:
    key = uuid4().hex
    assert _post(newcomer, key, train_spec(), "/v1/jobs?validate_only=true").status_code == 200
    assert "Idempotency-Replayed" not in _post(newcomer, key, train_spec()).headers
    assert _post(newcomer, key, train_spec(), "/v1/jobs?validate_only=true").status_code == 200


@pytest.mark.parametrize("key", ["", "a" * 256, "two words", "tab\there"])
def test_a_key_is_short_and_printable(newcomer: httpx.Client, key: str) -> None:
    answer = _post(newcomer, key, train_spec())
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    assert answer.json()["errors"][0]["pointer"] == "/header/Idempotency-Key"
    assert _jobs(newcomer) == []


def test_a_repeated_upload_is_one_job_and_leaves_one_file(
    http: httpx.Client, service: Stack, trained: Document
) -> None:
    content = http.get(f"/v1/jobs/{trained['id']}/artifacts/model.safetensors").content
    uploads = service.state_dir / "artifacts" / ".uploads"
    of_others = {path.name for path in uploads.glob("*")}
    key = uuid4().hex
    headers = {"Idempotency-Key": key, "Content-Type": "application/octet-stream"}
    first = http.post("/v1/checkpoints", content=content, headers=headers)
    again = http.post("/v1/checkpoints", content=content, headers=headers)
    other = http.post("/v1/checkpoints?display_name=other", content=content, headers=headers)

    assert (first.status_code, again.content) == (202, first.content)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert uploads.is_dir()
    assert {path.name for path in uploads.glob("*")} - of_others <= {first.json()["id"]}


def test_an_answer_survives_the_job_itself(http: httpx.Client) -> None:
    key = uuid4().hex
    first = _post(http, key, train_spec())
    job_id = first.json()["id"]
    http.post(f"/v1/jobs/{job_id}/cancel")
    while http.delete(f"/v1/jobs/{job_id}").status_code == 409:
        http.get(f"/v1/jobs/{job_id}?wait=5")

    again = _post(http, key, train_spec())

    assert again.content == first.content
    assert http.get(again.headers["Location"]).status_code == 410


def test_a_server_that_was_killed_and_is_back_gives_the_same_answer(
    idle_service: Stack, newcomer: httpx.Client
) -> None:
    key = uuid4().hex
    first = _post(newcomer, key, train_spec())

    restart_api(idle_service, newcomer)

    assert _post(newcomer, key, train_spec()).content == first.content
