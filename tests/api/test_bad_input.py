"""Whatever a client sends wrongly: a clear problem, and nothing stored."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import httpx
import psycopg
import pytest

from app.local import Stack
from tests.specs import Document, compare_spec, prune_spec, submit, train_spec

ABSENT = "job_" + "0" * 32


@pytest.fixture(autouse=True)
def _nothing_is_stored(idle_service: Stack) -> Iterator[None]:
    before = _jobs(idle_service)
    yield
    assert _jobs(idle_service) == before


def _jobs(running: Stack) -> list[Any]:
    with psycopg.connect(running.database_url) as connection:
        return connection.execute("SELECT id, revision, status FROM jobs ORDER BY id").fetchall()


@pytest.fixture(scope="module")
def queued(idle_http: httpx.Client) -> str:
    """A job that has not finished."""
    return str(submit(idle_http, train_spec())["id"])


@pytest.fixture(scope="module")
def given_up(idle_http: httpx.Client) -> str:
    """A job that was cancelled."""
    job = submit(idle_http, train_spec())
    idle_http.post(job["links"]["cancel"]).raise_for_status()
    return str(job["id"])


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document, checked for what every one has."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code), body
    assert body["type"] == "about:blank"
    assert body["title"]
    assert body["detail"]
    assert body["instance"] == answer.request.url.path
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert "Traceback" not in answer.text
    return body


MALFORMED = {
    "nothing": b"",
    "half": b'{"kind": "train", ',
    "not JSON": b"kind: train",
    "not UTF-8": b'{"kind": "\xff"}',
    "lone surrogate": b'{"kind": "train", "display_name": "\\ud800"}',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_json_is_malformed(idle_http: httpx.Client, body: bytes) -> None:
    answer = idle_http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})

    assert "UTF-8" in problem(answer, 400, "malformed_request")["detail"]


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        ("/v1/jobs", b'{"kind": "train", "kind": "train", "dataset": {"name": "digits"}}', "kind"),
        (
            "/v1/jobs",
            b'{"kind": "train", "dataset": {"name": "digits"}, "training": {"epochs": 1, "epochs": 5}}',
            "epochs",
        ),
        ("/v1/jobs", b'{"kind": "train", "dataset": {"name": "digits"}, "labels": {"a": "1", "\\u0061": "2"}}', "a"),
        ("/v1/webhooks", b'{"url": "https://a.example", "url": "https://b.example", "events": ["job.failed"]}', "url"),
    ],
)
def test_a_key_that_is_given_twice_is_refused_by_name(
    idle_http: httpx.Client, path: str, body: bytes, key: str
) -> None:
    answer = idle_http.post(path, content=body, headers={"Content-Type": "application/json"})

    assert f"The key {key!r} is given twice" in problem(answer, 400, "malformed_request")["detail"]


@pytest.mark.parametrize("body", [b'{"a":' * 5_000 + b"1" + b"}" * 5_000, b"[" * 100_000], ids=["object", "list"])
def test_a_deep_body_is_refused(idle_http: httpx.Client, body: bytes) -> None:
    answer = idle_http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})

    problem(answer, 413, "body_too_deep")


def test_a_body_of_nothing_but_mistakes_has_a_bounded_answer(idle_http: httpx.Client) -> None:
    answer = idle_http.post("/v1/jobs", json=train_spec(**{f"field{number}": 1 for number in range(5_000)}))

    assert "the first 50" in problem(answer, 422, "invalid_spec")["detail"]
    assert len(answer.json()["errors"]) == 50


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/webhooks"])
def test_a_body_of_too_many_values_is_refused_before_they_are_looked_at(idle_http: httpx.Client, path: str) -> None:
    answer = idle_http.post(path, json={"kind": "sweep", "base": train_spec(), "grid": {"seeds": [-1] * 20_000}})

    problem(answer, 413, "body_too_many_values")


def test_of_unknown_parameters_fifty_are_told(idle_http: httpx.Client) -> None:
    answer = idle_http.get("/v1/jobs?" + "&".join(f"p{number}" for number in range(2_000)))

    assert len(problem(answer, 422, "invalid_parameter")["errors"]) == 50


def _train(**training: Any) -> dict[str, Any]:
    return train_spec(training=training)


INVALID: dict[str, tuple[Any, str, str]] = {
    "a list": ([], "", "object"),
    "an unknown field": (train_spec(lamda=1), "/lamda", ""),
    "a misspelt field": (_train(epocs=3), "/training/epocs", "did you mean 'epochs'?"),
    "a misspelt kind": (train_spec(kind="trian"), "/kind", "train"),
    "no kind": ({"dataset": {"name": "digits"}}, "/kind", "compare, prune, sweep, train"),
    "an unknown data set": (train_spec(dataset={"name": "mnits"}), "/dataset/name", "mnist"),
    "an unknown method": (train_spec(pruning={"method": "treshold"}), "/pruning/method", "threshold"),
    "an unknown penalty": (train_spec(regularization={"penalty": "l3"}), "/regularization/penalty", "l1"),
    "no epochs": (_train(epochs=0), "/training/epochs", "1"),
    "too many epochs": (_train(epochs=1001), "/training/epochs", "1000"),
    "an empty batch": (_train(batch_size=0), "/training/batch_size", "1"),
    "a huge batch": (_train(batch_size=4097), "/training/batch_size", "4096"),
    "a learning rate of 0": (_train(learning_rate=0), "/training/learning_rate", "0"),
    "a negative threshold": (
        train_spec(pruning={"method": "threshold", "threshold": -0.1}),
        "/pruning/threshold",
        "0",
    ),
    "a text for a number": (_train(epochs="5"), "/training/epochs", "integer"),
    "a truth for a number": (_train(epochs=True), "/training/epochs", "integer"),
    "a fraction for a count": (_train(epochs=1.5), "/training/epochs", "integer"),
    "no channels": (train_spec(model={"channels": []}), "/model/channels/0", "required"),
    "a wide channel": (train_spec(model={"channels": [16, 513, 32]}), "/model/channels/1", "512"),
    "a wide layer": (train_spec(model={"hidden": 4097}), "/model/hidden", "4096"),
    "an unknown tensor": (train_spec(histogram={"tensors": ["fc3.weight"]}), "/histogram/tensors/0", "fc"),
    "one job to compare": (compare_spec(ABSENT), "/jobs", "2"),
    "a job twice": (compare_spec(ABSENT, ABSENT), "/jobs", "repeat"),
    "a path as job": (prune_spec("../../etc/passwd"), "/source/job_id", "job_"),
    "a path as artifact": (
        {**prune_spec(ABSENT), "source": {"job_id": ABSENT, "artifact": "../model.pt"}},
        "/source/artifact",
        "safetensors",
    ),
    "a control character": (train_spec(display_name="a\nb"), "/display_name", ""),
}


@pytest.mark.parametrize(("spec", "pointer", "hint"), INVALID.values(), ids=INVALID)
def test_a_wrong_spec_is_refused_with_the_place_and_a_hint(
    idle_http: httpx.Client, spec: Any, pointer: str, hint: str
) -> None:
    errors = problem(idle_http.post("/v1/jobs", json=spec), 422, "invalid_spec")["errors"]

    assert pointer in [error["pointer"] for error in errors]
    assert any(hint in error["detail"] for error in errors if error["pointer"] == pointer), errors


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_a_number_that_is_not_finite_is_refused(idle_http: httpx.Client, number: str) -> None:
    body = json.dumps(_train(learning_rate=0.5)).replace("0.5", number)

    answer = idle_http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})

    error = problem(answer, 422, "invalid_spec")["errors"][0]
    assert (error["pointer"], error["code"]) == ("/training/learning_rate", "finite_number")


@pytest.mark.parametrize(
    ("spec", "pointer"),
    [
        (prune_spec(ABSENT), "/source/job_id"),
        (train_spec(initial={"job_id": ABSENT, "artifact": "model.safetensors"}), "/initial/job_id"),
        (compare_spec(ABSENT, "job_" + "1" * 32), "/jobs/0"),
    ],
    ids=["prune", "train", "compare"],
)
def test_a_job_that_is_missing_cannot_be_built_on(idle_http: httpx.Client, spec: Any, pointer: str) -> None:
    error = problem(idle_http.post("/v1/jobs", json=spec), 422, "invalid_spec")["errors"][0]

    assert (error["pointer"], error["code"]) == (pointer, "source_not_found")
    assert ABSENT in error["detail"]


def test_a_job_that_is_unfinished_cannot_be_built_on(idle_http: httpx.Client, queued: str) -> None:
    body = problem(idle_http.post("/v1/jobs", json=prune_spec(queued)), 409, "source_not_finished")

    assert body["retryable"]
    assert "queued" in body["errors"][0]["detail"]


def test_a_job_that_ended_without_a_result_cannot_be_built_on(idle_http: httpx.Client, given_up: str) -> None:
    body = problem(idle_http.post("/v1/jobs", json=prune_spec(given_up)), 409, "source_has_no_result")

    assert not body["retryable"]
    assert "cancelled" in body["errors"][0]["detail"]


def test_another_tenants_job_looks_like_a_missing_one(
    idle_http: httpx.Client, queued: str, stranger: httpx.Client
) -> None:
    theirs = problem(stranger.post("/v1/jobs", json=prune_spec(queued)), 422, "invalid_spec")
    missing = problem(stranger.post("/v1/jobs", json=prune_spec(ABSENT)), 422, "invalid_spec")

    assert theirs["errors"][0]["detail"].replace(queued, ABSENT) == missing["errors"][0]["detail"]


def test_a_huge_body_is_refused_before_it_is_read(idle_http: httpx.Client) -> None:
    answer = idle_http.post("/v1/jobs", content=b" " * 300_000, headers={"Content-Type": "application/json"})

    assert "262144 bytes" in problem(answer, 413, "payload_too_large")["detail"]


def test_a_huge_body_of_unknown_length_is_refused_too(idle_http: httpx.Client) -> None:
    chunks = (b" " * 10_000 for _ in range(40))

    answer = idle_http.post("/v1/jobs", content=chunks, headers={"Content-Type": "application/json"})

    problem(answer, 413, "payload_too_large")


def test_another_media_type_is_refused(idle_http: httpx.Client) -> None:
    answer = idle_http.post("/v1/jobs", content=b"kind: train", headers={"Content-Type": "application/yaml"})

    problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/webhooks", "/v1/checkpoints", "/v1/datasets"])
def test_a_body_that_is_coded_is_refused_with_what_to_do(idle_http: httpx.Client, path: str) -> None:
    media_type = "application/json" if path in ("/v1/jobs", "/v1/webhooks") else "application/octet-stream"
    headers = {"Content-Type": media_type, "Content-Encoding": "gzip"}
    answer = idle_http.post(path, content=gzip.compress(json.dumps(train_spec()).encode()), headers=headers)

    assert "without Content-Encoding" in problem(answer, 415, "unsupported_media_type")["detail"]
    assert answer.headers["Accept-Encoding"] == "identity"
    plain = idle_http.post("/v1/jobs", json={}, headers={"Content-Encoding": "Identity"})
    problem(plain, 422, "invalid_spec")


def test_a_body_where_none_is_taken_is_refused_and_nothing_is_done(idle_http: httpx.Client, queued: str) -> None:
    document = idle_http.get("/openapi.json").json()
    posts = {path: each["post"] for path, each in document["paths"].items() if "post" in each}
    ids = {"job_id": queued, "webhook_id": "wh_" + "0" * 32, "delivery_id": "msg_" + "0" * 32}
    urls = [path.format_map(ids) for path, described in posts.items() if "requestBody" not in described]
    assert len(urls) == 6

    for url in urls:
        answer = idle_http.post(url, json={"training": {"epochs": 1}})
        assert "POST /v1/jobs" in problem(answer, 422, "unexpected_body")["detail"]
        problem(idle_http.post(url, content=b"epochs=1"), 422, "unexpected_body")


@pytest.mark.parametrize("body", [b"", b" \r\n", b"{}", b"{ }\n"])
def test_a_body_that_asks_for_nothing_is_none(idle_http: httpx.Client, body: bytes) -> None:
    problem(idle_http.post(f"/v1/jobs/{ABSENT}/rerun", content=body), 404, "job_not_found")


@pytest.mark.parametrize(
    "name", ["../1/report.json", "../../../api-key", "..%2f..%2f..%2fapi-key", "%2e%2e/%2e%2e/%2e%2e/api-key", "%00"]
)
def test_an_artifacts_name_is_no_path(service: Stack, trained: Document, name: str) -> None:
    folder = service.state_dir / "artifacts" / trained["id"] / "1"
    assert "%" in name or (folder / name).is_file()  # what a careless server would hand out

    status, body = _get_as_it_stands(service, f"/v1/jobs/{trained['id']}/artifacts/{name}")

    assert (status, body["code"]) == (404, "artifact_not_found")


def _get_as_it_stands(running: Stack, target: str) -> tuple[int, dict[str, Any]]:
    """A request by the standard library, since httpx tidies `..` away."""
    with contextlib.closing(HTTPConnection(running.url.removeprefix("http://"), timeout=10)) as connection:
        connection.request("GET", target, headers={"Authorization": f"Bearer {running.api_key}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@pytest.mark.parametrize("job_id", [ABSENT, "nonsense", "job_%00", "job_" + "0" * 500])
def test_a_job_that_is_not_there_is_not_found(idle_http: httpx.Client, job_id: str) -> None:
    for path in ("", "/events", "/artifacts", "/artifacts/report.json"):
        problem(idle_http.get(f"/v1/jobs/{job_id}{path}"), 404, "job_not_found")
    problem(idle_http.post(f"/v1/jobs/{job_id}/cancel"), 404, "job_not_found")


def test_a_job_without_artifacts_says_so(idle_http: httpx.Client, queued: str) -> None:
    body = problem(idle_http.get(f"/v1/jobs/{queued}/artifacts/x"), 404, "artifact_not_found")

    assert body["detail"].endswith("has no artifact 'x'; it has none: they are there once a job has succeeded.")


@pytest.mark.parametrize("cursor", ["x", "bm90IGpzb24", "WzEsMl0=", "ä", "%00"])
def test_a_made_up_cursor_is_refused(idle_http: httpx.Client, cursor: str) -> None:
    problem(idle_http.get("/v1/jobs", params={"cursor": cursor}), 400, "invalid_cursor")


@pytest.mark.parametrize(
    ("parameter", "pointer", "said"),
    [
        ({"limit": 0}, "/query/limit", "greater than or equal to 1"),
        ({"limit": "many"}, "/query/limit", "valid integer"),
        ({"status": "done"}, "/query/status/0", "unknown value 'done'; known: waiting, queued"),
        ({"status": "succeded"}, "/query/status/0", "did you mean 'succeeded'? Known: waiting, queued"),
        ({"kind": "trian"}, "/query/kind/0", "did you mean 'train'? Known: train, prune"),
        ({"kind": "\0"}, "/query/kind/0", "unknown value '\\x00'; known: "),
        ({"created_after": "0.5"}, "/query/created_after", "a time is written like 2026"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_refused(
    idle_http: httpx.Client, parameter: dict[str, str], pointer: str, said: str
) -> None:
    body = problem(idle_http.get("/v1/jobs", params=parameter), 422, "invalid_parameter")

    assert body["detail"] == "A parameter must be mended; `errors` says which."
    assert body["errors"][0]["pointer"] == pointer
    assert said in body["errors"][0]["detail"]
    assert "Value error" not in body["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("path", "parameter", "said"),
    [
        ("/v1/jobs", {"label": "team"}, "write key:value; the key has 1 to 63"),
        ("/v1/jobs", {"parent": "x"}, "job_ and 32 digits or letters"),
        ("/v1/datasets", {"sha256": "x"}, "64 digits or letters"),
        ("/v1/compare", {"jobs": ABSENT}, "write two to 8 job ids with commas in between"),
    ],
    ids=str,
)
def test_a_text_of_another_form_is_refused_in_words(
    idle_http: httpx.Client, path: str, parameter: dict[str, str], said: str
) -> None:
    [error] = problem(idle_http.get(path, params=parameter), 422, "invalid_parameter")["errors"]

    assert error["code"] == "string_pattern_mismatch"
    assert said in error["detail"]
    assert "^" not in error["detail"]


def test_a_key_with_a_space_is_refused_in_words(idle_http: httpx.Client) -> None:
    answer = idle_http.post("/v1/jobs", json=train_spec(), headers={"Idempotency-Key": "a b"})

    [error] = problem(answer, 422, "invalid_parameter")["errors"]
    assert error["pointer"] == "/header/Idempotency-Key"
    assert "without spaces" in error["detail"]


def test_an_unknown_parameter_is_refused_and_nothing_is_submitted(idle_http: httpx.Client) -> None:
    answer = idle_http.post("/v1/jobs", params={"validate_onyl": "true"}, json=train_spec())
    [error] = problem(answer, 422, "invalid_parameter")["errors"]
    assert (error["pointer"], error["code"]) == ("/query/validate_onyl", "unknown_parameter")
    assert "did you mean 'validate_only'?" in error["detail"]
    problem(idle_http.get("/v1/jobs", params={"stauts": "failed"}), 422, "invalid_parameter")
    problem(idle_http.get("/v1/options", params={"verbose": "1"}), 422, "invalid_parameter")


def test_what_does_not_exist_is_a_problem_too(idle_http: httpx.Client) -> None:
    problem(idle_http.get("/v2/jobs"), 404, "not_found")
    answer = idle_http.delete("/v1/jobs")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, POST"
    assert idle_http.post("/openapi.json").headers["Allow"] == "GET, HEAD"
