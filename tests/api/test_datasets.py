"""Data sets of clients: what is taken in, what is refused, who may see it, and what is left behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from app.contract.datasets import DatasetFacts
from app.contract.result import DatasetResult
from app.db.clock import now
from app.db.models import JobRow
from app.db.session import session_scope
from app.local import Stack
from tests.api.conftest import sqlalchemy_url
from tests.api.test_bad_input import problem
from tests.api.test_uploads import FORM, HEAD, OCTETS, _count, _uploads
from tests.engine.data_sets import arrays, idx_files, npz
from tests.specs import Document, prune_spec, read, submit, train_spec

NPZ = npz(arrays())
IDX = idx_files(arrays())
FACTS = DatasetFacts(channels=3, height=12, width=10, classes=3, train_images=30, test_images=9)
DIGEST = "a" * 64


def _send(http: httpx.Client, content: Any = NPZ, headers: Mapping[str, str] = OCTETS, **params: Any) -> httpx.Response:
    return http.post("/v1/datasets", content=content, headers=headers, params=params)


def _form(http: httpx.Client, parts: Mapping[str, bytes], **params: Any) -> httpx.Response:
    return http.post("/v1/datasets", files={name: (f"../{name}", data) for name, data in parts.items()}, params=params)


def _uploaded(http: httpx.Client, **params: Any) -> Document:
    answer = _send(http, **params)
    assert answer.status_code == 202, answer.text
    dataset: Document = answer.json()
    return dataset


def _checked(running: Stack, dataset_id: str, facts: DatasetFacts = FACTS) -> None:
    """As a worker leaves it, when it found nothing wrong."""
    result = DatasetResult(
        kind="dataset", format="npz", facts=facts, class_names=None, dataset_sha256=DIGEST, size=1, sha256="b" * 64
    ).model_dump(mode="json")
    done = {"status": "succeeded", "result": result, "phase": None, "finished_at": now()}
    leased = {"status": "running", "attempt": 1, "lease_owner": "w", "lease_expires_at": now()}
    with session_scope(sqlalchemy_url(running)) as session:
        row = update(JobRow).where(JobRow.id == dataset_id)
        session.execute(row.values(leased))
        session.execute(row.values({**done, "lease_owner": None, "lease_expires_at": None}))


@pytest.fixture
def ready(idle_service: Stack, newcomer: httpx.Client) -> str:
    """The id of the newcomer's data set."""
    dataset_id: str = _uploaded(newcomer, name="mine", label="team:a")["id"]
    _checked(idle_service, dataset_id)
    return dataset_id


def test_a_file_becomes_a_data_set_that_is_checked(idle_service: Stack, newcomer: httpx.Client) -> None:
    answer = _send(newcomer, name="mine", label="team:a")

    dataset = answer.json()
    assert (dataset["status"], dataset["name"], dataset["labels"]) == ("checking", "mine", {"team": "a"})
    assert (dataset["size"], dataset["shape"], dataset["sha256"]) == (len(NPZ), None, None)
    assert answer.headers["Location"] == dataset["links"]["self"] == f"/v1/datasets/{dataset['id']}"
    assert newcomer.get(dataset["links"]["self"]).json() == dataset
    assert newcomer.get(dataset["links"]["self"]).headers["Retry-After"] == "2"
    assert (idle_service.state_dir / "artifacts" / ".uploads" / dataset["id"]).read_bytes() == NPZ
    job = read(newcomer, dataset["job_id"])
    assert (job["kind"], job["spec"]["files"]) == ("dataset", [{"name": "file", "size": len(NPZ)}])


def test_the_parts_of_a_form_lie_one_after_the_other(idle_service: Stack, newcomer: httpx.Client) -> None:
    answer = _form(newcomer, IDX)

    assert answer.status_code == 202, answer.text
    job = read(newcomer, answer.json()["id"])
    assert job["spec"]["files"] == [{"name": name, "size": len(data)} for name, data in IDX.items()]
    kept = idle_service.state_dir / "artifacts" / ".uploads" / job["id"]
    assert kept.read_bytes() == b"".join(IDX.values())


def test_one_file_in_a_form_is_that_file(newcomer: httpx.Client) -> None:
    assert _form(newcomer, {"file": NPZ}).json()["size"] == len(NPZ)


@pytest.fixture
def _nothing_is_left(idle_service: Stack) -> Iterator[None]:
    before = _uploads(idle_service), _count(idle_service)
    yield
    assert (_uploads(idle_service), _count(idle_service)) == before


@pytest.mark.usefixtures("_nothing_is_left")
@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"file": b"nonsense"}, "no zip"),
        ({"file": b""}, "no zip"),
        ({**IDX, "train_images": b"\0\0\x0d\x03"}, "train_images begins with 00000d03"),
        ({name: data for name, data in IDX.items() if name != "test_labels"}, "There are the parts train_images"),
        ({**IDX, "file": NPZ}, "There are the parts"),
        ({"../../etc/passwd": NPZ}, "The part '../../etc/passwd' is not expected"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_files_are_refused(newcomer: httpx.Client, parts: dict[str, bytes], said: str) -> None:
    assert said in problem(_form(newcomer, parts), 422, "invalid_dataset")["detail"]


@pytest.mark.usefixtures("_nothing_is_left")
@pytest.mark.parametrize(
    ("content", "headers", "said"),
    [
        (HEAD + NPZ, FORM, "breaks off"),
        (HEAD + NPZ + b"\r\n--x--", {"Content-Type": "multipart/form-data"}, "must say its boundary"),
        (b"--y\r\n", FORM, "no such form"),
        (b"--x\r\n" + b"A" * 100_000 + b": b\r\n\r\n", FORM, "no such form"),
        (b"", FORM, "breaks off"),
    ],
    ids=["cut off", "no boundary", "another boundary", "a header without end", "nothing"],
)
def test_a_broken_form_is_refused(newcomer: httpx.Client, content: bytes, headers: dict[str, str], said: str) -> None:
    assert said in problem(_send(newcomer, content, headers), 400, "malformed_request")["detail"]


@pytest.mark.usefixtures("_nothing_is_left")
def test_a_part_may_not_come_twice_nor_another_media_type(newcomer: httpx.Client) -> None:
    twice = HEAD + b"PK\x03\x04\r\n" + HEAD + b"PK\x03\x04\r\n--x--"
    assert "comes twice" in problem(_send(newcomer, twice, FORM), 422, "invalid_dataset")["detail"]
    answer = _send(newcomer, NPZ, {"Content-Type": "application/json"})
    assert "multipart/form-data" in problem(answer, 415, "unsupported_media_type")["detail"]


def test_the_same_request_makes_one_data_set(idle_service: Stack, newcomer: httpx.Client) -> None:
    keyed = {**OCTETS, "Idempotency-Key": "once"}
    first = _send(newcomer, NPZ, keyed)
    before = _uploads(idle_service)

    again = _send(newcomer, NPZ, keyed)

    assert (again.json(), again.headers["Idempotency-Replayed"]) == (first.json(), "true")
    problem(_send(newcomer, npz(arrays(31)), keyed), 422, "idempotency_key_reused")
    assert _uploads(idle_service) == before


def test_a_data_set_is_found_by_its_content(newcomer: httpx.Client, ready: str) -> None:
    other = _uploaded(newcomer)["id"]

    def found(**params: Any) -> list[str]:
        return [each["id"] for each in newcomer.get("/v1/datasets", params=params).json()["items"]]

    assert found() == [other, ready]
    assert found(sha256=DIGEST) == found(label="team:a") == [ready]
    assert found(sha256="b" * 64) == []
    page = newcomer.get("/v1/datasets", params={"limit": 1}).json()
    assert found(cursor=page["next_cursor"]) == [ready]
    dataset = newcomer.get(f"/v1/datasets/{ready}").json()
    assert (dataset["status"], dataset["shape"]) == ("ready", FACTS.shape.model_dump())
    assert (dataset["train_images"], dataset["sha256"], dataset["expires_at"]) == (30, DIGEST, None)


def test_a_spec_is_counted_with_the_data_set_that_it_names(newcomer: httpx.Client, ready: str) -> None:
    spec = train_spec(dataset={"id": ready, "validation_images": 5})
    answer = newcomer.post("/v1/jobs", json=spec, params={"validate_only": True}).json()

    convolutions = 4 * 3 * 25 * 120, 4 * 4 * 9 * 120, 8 * 4 * 9 * 30
    macs = sum(convolutions) + 16 * 8 * 6 + 16 * 3
    assert answer["estimate"]["macs_per_image"] == macs
    assert answer["estimate"]["training_macs"] == macs * (3 * 25 + 5)
    job = submit(newcomer, spec)
    edges = newcomer.get(f"/v1/jobs/{job['id']}/lineage").json()["edges"]
    assert [(edge["from"], edge["relation"]) for edge in edges] == [(ready, "dataset")]


@pytest.mark.parametrize(
    ("spec", "pointer", "code"),
    [
        ({"dataset": {}}, "/dataset/name", "missing"),
        ({"dataset": {"id": None, "name": "digits", "validation_images": 1_437}}, "/dataset", "value_error"),
        ({"dataset": {"name": "digits", "id": "READY"}}, "/dataset/id", "misfit"),
        ({"dataset": {"id": "job_" + "0" * 32}}, "/dataset/id", "source_not_found"),
        ({"dataset": {"id": "../x"}}, "/dataset/id", "string_pattern_mismatch"),
        ({"dataset": {"id": "READY", "validation_images": 30}}, "/dataset/validation_images", "misfit"),
        (
            {"dataset": {"id": "READY"}, "pruning": {"method": "magnitude", "keep": 5_000}},
            "/pruning/keep",
            "misfit",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_the_data_set_is_refused_at_submission(
    newcomer: httpx.Client, ready: str, spec: Document, pointer: str, code: str
) -> None:
    dataset = {name: ready if value == "READY" else value for name, value in spec["dataset"].items()}

    answer = newcomer.post("/v1/jobs", json=train_spec(**{**spec, "dataset": dataset}))

    body = problem(answer, 422, "invalid_spec")
    assert [(error["pointer"], error["code"]) for error in body["errors"]] == [(pointer, code)]


def test_size_times_network_times_epochs_is_bounded(idle_service: Stack, newcomer: httpx.Client) -> None:
    facts = DatasetFacts(channels=3, height=64, width=64, classes=1000, train_images=20_000, test_images=1)
    dataset_id = _uploaded(newcomer)["id"]
    _checked(idle_service, dataset_id, facts)
    widest = {"channels": [512, 512, 512], "hidden": 4096}
    spec = train_spec(dataset={"id": dataset_id}, model=widest, training={"epochs": 20}, pruning=None)

    body = problem(newcomer.post("/v1/jobs", json=spec), 422, "invalid_spec")

    assert body["errors"][0]["code"] == "too_much_work"
    assert "take fewer epochs, smaller widths" in body["errors"][0]["detail"]


def test_a_data_set_is_no_source_and_a_job_no_data_set(newcomer: httpx.Client, ready: str) -> None:
    job = submit(newcomer, train_spec())
    for spec, code in (
        (prune_spec(ready), "source_has_no_network"),
        (train_spec(dataset={"id": job["id"]}), "not_a_dataset"),
        ({"kind": "compare", "jobs": [ready, job["id"]]}, "source_has_no_report"),
    ):
        assert problem(newcomer.post("/v1/jobs", json=spec), 422, "invalid_spec")["errors"][0]["code"] == code
    problem(newcomer.get(f"/v1/datasets/{job['id']}"), 404, "dataset_not_found")
    body = problem(newcomer.post("/v1/jobs", json={"kind": "dataset"}), 422, "invalid_spec")
    assert (body["errors"][0]["code"], "POST /v1/datasets" in body["detail"]) == ("upload_wanted", True)


def test_a_data_set_that_is_not_ready_cannot_be_named_or_deleted(newcomer: httpx.Client) -> None:
    dataset = _uploaded(newcomer)

    problem(newcomer.post("/v1/jobs", json=train_spec(dataset={"id": dataset["id"]})), 409, "source_not_finished")
    problem(newcomer.delete(dataset["links"]["self"]), 409, "job_not_done")
    newcomer.post(f"{dataset['links']['job']}/cancel").raise_for_status()
    assert newcomer.get(dataset["links"]["self"]).json()["status"] == "rejected"
    problem(newcomer.post("/v1/jobs", json=train_spec(dataset={"id": dataset["id"]})), 409, "source_has_no_result")
    problem(newcomer.post(f"{dataset['links']['job']}/rerun"), 409, "upload_not_kept")
    refused = problem(newcomer.post(f"{dataset['links']['job']}/retry"), 409, "job_not_retryable")
    assert refused["detail"].endswith("this one is cancelled: upload the file anew.")


def test_a_data_set_goes_when_nothing_needs_it(newcomer: httpx.Client, ready: str) -> None:
    job = submit(newcomer, train_spec(dataset={"id": ready}))

    for path in (f"/v1/datasets/{ready}", f"/v1/jobs/{ready}"):
        problem(newcomer.delete(path), 409, "job_in_use")
    newcomer.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()

    assert newcomer.delete(f"/v1/datasets/{ready}").status_code == 204
    gone = problem(newcomer.get(f"/v1/datasets/{ready}"), 410, "job_purged")
    body = problem(newcomer.post("/v1/jobs", json=train_spec(dataset={"id": ready})), 422, "invalid_spec")
    said = f"the data set {ready} was deleted at {gone['purged_at']}: name another one"
    assert [error["detail"] for error in body["errors"]] == [said]


def test_another_tenants_data_set_looks_like_a_missing_one(stranger: httpx.Client, ready: str) -> None:
    problem(stranger.get(f"/v1/datasets/{ready}"), 404, "dataset_not_found")
    problem(stranger.delete(f"/v1/datasets/{ready}"), 404, "dataset_not_found")
    body = problem(stranger.post("/v1/jobs", json=train_spec(dataset={"id": ready})), 422, "invalid_spec")
    assert body["errors"][0]["code"] == "source_not_found"
    assert ready not in [each["id"] for each in stranger.get("/v1/datasets").json()["items"]]
