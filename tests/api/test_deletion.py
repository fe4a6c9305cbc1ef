from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from app.contract.failure import Failure, FailureCode
from app.contract.spec import ModelSpec
from app.db import attempts
from app.db.session import session_scope
from app.local import Stack
from tests.api.conftest import published, restart_api, sqlalchemy_url
from tests.db.conftest import FILE
from tests.specs import FEW, Document, ended, prune_spec, submit, train_spec
from tests.waiting import wait_until

MODEL = ModelSpec(channels=(2, 2, 4), hidden=8)


def _folder(running: Stack, job: Document) -> Path:
    return running.state_dir / "artifacts" / str(job["id"])


def _time_passes(running: Stack, job: Document, column: str, seconds: int) -> None:
    statement = f"UPDATE jobs SET {column} = {column} - make_interval(secs => {seconds}) WHERE id = :id"
    with session_scope(sqlalchemy_url(running)) as session:
        session.execute(text(statement), {"id": job["id"]})


def _rows(running: Stack, job: Document) -> int:
    with session_scope(sqlalchemy_url(running)) as session:
        return sum(
            session.scalar(text(f"SELECT count(*) FROM {table} WHERE {column} = :id"), {"id": job["id"]}) or 0
            for table, column in (("jobs", "id"), ("job_events", "job_id"), ("job_artifacts", "job_id"))
        )


def _is_gone(http: httpx.Client, job: Document) -> None:
    """All that there was of it answers 410, and no list has it."""
    links = job["links"]
    answers = [
        *(http.get(links[name]) for name in ("self", "events", "artifacts")),
        http.get(f"{links['events']}/stream"),
        http.get(f"{links['artifacts']}/report.json"),
        *(http.post(links[name]) for name in ("cancel", "retry", "rerun")),
        http.patch(links["self"], json={"display_name": "x"}),
        http.delete(links["self"]),
    ]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(410, "job_purged")}
    assert len({answer.json()["purged_at"] for answer in answers}) == 1
    assert job["id"] not in [each["id"] for each in http.get("/v1/jobs", params={"limit": 100}).json()["items"]]


@pytest.fixture(scope="module")
def deleted(service: Stack, http: httpx.Client) -> Document:
    """A job that had succeeded, as it was before."""
    job = published(http, MODEL)
    assert _folder(service, job).is_dir()
    answer = http.delete(job["links"]["self"])
    assert (answer.status_code, answer.content) == (204, b"")
    return job


def _is_no_source(http: httpx.Client, job: Document) -> None:
    answer = http.post("/v1/jobs", json=prune_spec(job["id"]))
    [error] = answer.json()["errors"]
    assert (answer.status_code, error["code"]) == (422, "source_not_found")
    purged_at = http.get(job["links"]["self"]).json()["purged_at"]
    assert error["detail"] == f"the job {job['id']} was deleted at {purged_at}: name another one"


def test_a_job_that_was_deleted_is_no_source(http: httpx.Client, deleted: Document) -> None:
    _is_no_source(http, deleted)


def test_a_deleted_job_is_gone_at_once_and_its_bytes_and_rows_soon(
    service: Stack, http: httpx.Client, deleted: Document
) -> None:
    job = deleted
    _is_gone(http, job)
    _time_passes(service, job, "purged_at", 60)
    wait_until(lambda: _rows(service, job) == 0, timeout=20, what="the rows are gone")
    assert not _folder(service, job).exists()
    _is_gone(http, job)
    _is_no_source(http, job)


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_what_never_published_a_file_can_be_deleted_as_well(http: httpx.Client, status: str) -> None:
    job = submit(http, train_spec(dataset={"name": "kmnist" if status == "failed" else "digits"}))
    if status == "cancelled":
        http.post(job["links"]["cancel"])
    assert ended(http, job["id"])["status"] == status
    assert http.delete(job["links"]["self"]).status_code == 204
    _is_gone(http, job)


def test_a_job_that_has_not_ended_stays(newcomer: httpx.Client, idle_http: httpx.Client) -> None:
    job = submit(newcomer, train_spec())
    answer = newcomer.delete(job["links"]["self"])
    assert (answer.status_code, answer.json()["code"]) == (409, "job_not_done")
    assert idle_http.delete(job["links"]["self"]).status_code == 404
    assert newcomer.get(job["links"]["self"]).json() | {"queue": None} == job


def test_what_a_waiting_job_will_read_stays(service: Stack, http: httpx.Client) -> None:
    source = published(http, MODEL)
    busy = submit(http, train_spec(training={"epochs": 1000}))
    reader = submit(http, {**prune_spec(source["id"], dataset=FEW), "source": {"job_id": source["id"]}})

    refused = http.delete(source["links"]["self"])
    _time_passes(service, source, "expires_at", 365 * 86_400)
    http.post(busy["links"]["cancel"])

    assert (refused.status_code, refused.json()["code"]) == (409, "job_in_use")
    assert reader["id"] in refused.json()["detail"]
    assert ended(http, reader["id"])["status"] == "succeeded"
    # Its own time was over long before: now that nobody reads it, it goes.
    wait_until(lambda: http.get(source["links"]["self"]).status_code == 410, timeout=20, what="it has expired")


def test_what_was_pruned_is_pruned_on_when_the_training_that_it_began_with_is_gone(http: httpx.Client) -> None:
    model = MODEL.model_dump(mode="json")
    root = ended(http, submit(http, train_spec(dataset=FEW, model=model))["id"])
    pruned = ended(http, submit(http, prune_spec(root["id"], dataset=FEW))["id"])
    assert (pruned["result"]["channels"], pruned["result"]["hidden"]) == ([2, 2, 4], 8)
    http.delete(root["links"]["self"]).raise_for_status()

    on = {"job_id": pruned["id"], "artifact": "dense.safetensors"}
    for spec in (prune_spec(pruned["id"], dataset=FEW), train_spec(dataset=FEW, model=None, initial=on)):
        asked = {name: value for name, value in spec.items() if value is not None}
        answer = http.post("/v1/jobs", params={"validate_only": True}, json=asked)
        assert answer.status_code == 200, answer.text


def test_a_job_whose_source_is_gone_is_not_retried(idle_http: httpx.Client, idle_service: Stack) -> None:
    result = {"accuracy_before": 1, "accuracy_after": 1, "parameters": 9, "nonzero_before": 9, "nonzero_after": 9}
    more = {"kind": "train", "sparsity": 0, "emptied": [], "threshold": None, "device": "cpu", "engine_seconds": 1}
    source = submit(idle_http, train_spec())
    with session_scope(sqlalchemy_url(idle_service)) as session:
        attempts.claim(session, source["id"], owner="w", lease_seconds=60)
        told = {**result, **more, "dataset": "digits", "dataset_sha256": "0" * 64}
        attempts.succeed(session, source["id"], 1, result=told, files=[FILE])
    reader = submit(idle_http, prune_spec(source["id"]))
    with session_scope(sqlalchemy_url(idle_service)) as session:
        attempts.claim(session, reader["id"], owner="w", lease_seconds=60)
        attempts.fail(session, reader["id"], 1, failure=Failure.of(FailureCode.INTERNAL_ERROR, "x", attempt=1))
    idle_http.delete(source["links"]["self"]).raise_for_status()

    answer = idle_http.post(reader["links"]["retry"])

    assert (answer.status_code, answer.json()["code"]) == (409, "job_not_retryable")
    assert source["id"] in answer.json()["detail"]


def test_retention_counts_from_the_end_and_ends_by_itself(service: Stack, http: httpx.Client) -> None:
    job = submit(http, train_spec(dataset=FEW))
    assert job["expires_at"] is None
    job = ended(http, job["id"])
    assert job["expires_at"] > job["finished_at"]

    _time_passes(service, job, "expires_at", 31 * 86_400)

    wait_until(lambda: http.get(job["links"]["self"]).status_code == 410, timeout=20, what="it has expired")
    _is_gone(http, job)


def test_a_download_that_has_begun_is_not_cut_by_a_deletion(service: Stack, http: httpx.Client) -> None:
    job = published(http, ModelSpec(channels=(2, 2, 64), hidden=600))
    url = f"{job['links']['artifacts']}/model.safetensors"
    with http.stream("GET", url) as answer:
        chunks = answer.iter_raw(1024)
        first = next(chunks)
        assert http.delete(job["links"]["self"]).status_code == 204
        _time_passes(service, job, "purged_at", 60)
        wait_until(lambda: not _folder(service, job).exists(), timeout=20, what="the bytes are gone")
        assert len(first) + sum(map(len, chunks)) == int(answer.headers["Content-Length"])


def test_deletions_at_once_are_one(http: httpx.Client) -> None:
    job = submit(http, train_spec())
    http.post(job["links"]["cancel"])
    ended(http, job["id"])
    with ThreadPoolExecutor(20) as pool:
        codes = list(pool.map(lambda _: http.delete(job["links"]["self"]).status_code, range(20)))
    assert sorted(codes) == [204] + [410] * 19


def test_a_deletion_that_was_cut_short_is_finished_by_the_next_process(service: Stack, http: httpx.Client) -> None:
    job = published(http, MODEL)
    http.delete(job["links"]["self"])
    (_folder(service, job) / "1" / "model.pt").unlink()  # as far as a reaper came that was killed
    restart_api(service, http)
    _time_passes(service, job, "purged_at", 60)
    wait_until(lambda: _rows(service, job) == 0, timeout=20, what="the rows are gone")
    assert not _folder(service, job).exists()
    _is_gone(http, job)
