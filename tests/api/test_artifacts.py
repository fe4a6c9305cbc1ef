from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import httpx
import jsonschema
import psycopg
import pytest

from app.contract.spec import ModelSpec
from app.local import Stack
from tests.api.conftest import published
from tests.specs import Document, train_spec

PUBLISHED = {
    "model.safetensors",
    "model.pt",
    "dense.safetensors",
    "compact.safetensors",
    "model.onnx",
    "compact.onnx",
    "packed.npz",
    "report.json",
    "report.csv",
    "histogram.json",
    "histogram.png",
    "metrics.jsonl",
    "manifest.json",
}


@pytest.fixture
def listed(http: httpx.Client, trained: Document) -> dict[str, Document]:
    page = http.get(trained["links"]["artifacts"]).json()
    return {artifact["name"]: artifact for artifact in page["items"]}


def test_a_train_job_publishes_all_its_files(listed: dict[str, Document], trained: Document) -> None:
    assert set(listed) == PUBLISHED
    assert all(artifact["size"] > 0 for artifact in listed.values())
    assert {artifact["expires_at"] for artifact in listed.values()} == {trained["expires_at"]}
    assert listed["model.safetensors"]["role"] != listed["dense.safetensors"]["role"]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_bytes_are_those_that_were_listed(http: httpx.Client, listed: dict[str, Document], name: str) -> None:
    answer = http.get(listed[name]["href"])

    digest = hashlib.sha256(answer.content).digest()
    assert answer.status_code == 200
    assert (len(answer.content), digest.hex()) == (listed[name]["size"], listed[name]["sha256"])
    assert answer.headers["ETag"] == f'"{digest.hex()}"'
    assert answer.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
    assert answer.headers["Content-Type"].startswith(listed[name]["media_type"])
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "immutable" in answer.headers["Cache-Control"]


def test_a_head_tells_all_but_the_bytes(http: httpx.Client, listed: dict[str, Document]) -> None:
    href = listed["model.pt"]["href"]

    whole, head = http.get(href), http.head(href)

    assert head.status_code == 200
    assert head.content == b""
    for name in ("Content-Length", "ETag", "Repr-Digest", "Accept-Ranges"):
        assert head.headers[name] == whole.headers[name]


def test_a_download_that_broke_off_goes_on(http: httpx.Client, listed: dict[str, Document]) -> None:
    href = listed["model.safetensors"]["href"]
    whole = http.get(href)

    rest = http.get(href, headers={"Range": "bytes=1000-", "If-Range": whole.headers["ETag"]})

    assert rest.status_code == 206
    assert rest.headers["Content-Range"] == f"bytes 1000-{len(whole.content) - 1}/{len(whole.content)}"
    assert whole.content[:1000] + rest.content == whole.content


def test_a_part_of_other_bytes_is_not_appended(http: httpx.Client, listed: dict[str, Document]) -> None:
    headers = {"Range": "bytes=1000-", "If-Range": '"another"'}

    assert http.get(listed["model.pt"]["href"], headers=headers).status_code == 200


def test_the_end_of_a_file(http: httpx.Client, listed: dict[str, Document]) -> None:
    href = listed["report.csv"]["href"]

    assert http.get(href, headers={"Range": "bytes=-10"}).content == http.get(href).content[-10:]


@pytest.mark.parametrize("part", ["bytes=999999999-", "bytes=999999999-1000000000", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused(http: httpx.Client, listed: dict[str, Document], part: str) -> None:
    answer = http.get(listed["report.csv"]["href"], headers={"Range": part})

    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == f"bytes */{listed['report.csv']['size']}"


@pytest.mark.parametrize("part", ["bytes=5-2", "bytes=a-b", "bytes=-", "lines=1-2", "bytes=0-1,3-4", "nonsense"])
def test_a_range_that_is_none_is_ignored(http: httpx.Client, listed: dict[str, Document], part: str) -> None:
    answer = http.get(listed["report.csv"]["href"], headers={"Range": part})

    assert (answer.status_code, len(answer.content)) == (200, listed["report.csv"]["size"])


def test_bytes_that_the_client_has_are_not_sent_again(http: httpx.Client, listed: dict[str, Document]) -> None:
    etag = f'"{listed["report.json"]["sha256"]}"'

    answer = http.get(listed["report.json"]["href"], headers={"If-None-Match": f'"other", {etag}'})

    assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)


def test_the_manifest_lists_every_other_file(http: httpx.Client, listed: dict[str, Document]) -> None:
    manifest = http.get(listed["manifest.json"]["href"]).json()

    told = {file["name"]: (file["size"], file["sha256"]) for file in manifest["files"]}
    assert told == {name: (one["size"], one["sha256"]) for name, one in listed.items() if name != "manifest.json"}


def test_the_receipt_tells_how_the_files_came_about(
    http: httpx.Client, listed: dict[str, Document], trained: Document
) -> None:
    receipt = http.get(listed["manifest.json"]["href"]).json()["receipt"]

    assert receipt["spec"] == trained["spec"]
    assert (receipt["seed"], receipt["dataset"]) == (0, "digits")
    assert receipt["dataset_sha256"] == trained["result"]["dataset_sha256"]
    assert {"torch", "numpy", "python"} <= set(receipt["versions"])
    assert receipt["duration_seconds"] > 0


SCHEMA_OF = {"report.json": "report", "histogram.json": "histogram", "manifest.json": "manifest"}


@pytest.mark.parametrize("name", sorted(SCHEMA_OF))
def test_a_document_keeps_its_published_schema(http: httpx.Client, listed: dict[str, Document], name: str) -> None:
    schema = http.get(f"/v1/schemas/{SCHEMA_OF[name]}").json()
    document = http.get(listed[name]["href"]).json()

    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({}, schema)


def test_every_line_of_the_metrics_keeps_its_schema(http: httpx.Client, listed: dict[str, Document]) -> None:
    schema = http.get("/v1/schemas/epoch-metrics").json()

    lines = http.get(listed["metrics.jsonl"]["href"]).text.splitlines()

    assert len(lines) == 1
    for line in lines:
        jsonschema.validate(json.loads(line), schema)
        assert set(json.loads(line)) == set(schema["properties"])


def test_an_artifact_that_no_job_makes_is_named_with_those_there_are(http: httpx.Client, trained: Document) -> None:
    answer = http.get(f"{trained['links']['artifacts']}/weights.bin")

    assert (answer.status_code, answer.json()["code"]) == (404, "artifact_not_found")
    assert "model.safetensors" in answer.json()["detail"]


@pytest.fixture
def damaged(service: Stack, http: httpx.Client) -> tuple[str, Path]:
    """A finished job, and its manifest on disk."""
    job = published(http, ModelSpec(channels=(2, 2, 4), hidden=8))
    files = Path(service.environment["SECATEUR_ARTIFACT_DIR"]).rglob(f"*{job['id']}*/**/manifest.json")
    return job["links"]["artifacts"], next(files)


def test_bytes_that_changed_are_never_served(http: httpx.Client, damaged: tuple[str, Path]) -> None:
    artifacts, manifest = damaged
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes().replace(b"0", b"1", 1))

    answer = http.get(f"{artifacts}/manifest.json")

    assert (answer.status_code, answer.json()["code"]) == (500, "artifact_corrupt")
    assert http.get(f"{artifacts}/model.pt").status_code == 200


def test_bytes_that_are_gone_are_a_problem(http: httpx.Client, damaged: tuple[str, Path]) -> None:
    artifacts, manifest = damaged
    manifest.unlink()

    assert http.get(f"{artifacts}/manifest.json").json()["code"] == "artifact_corrupt"


def test_an_unfinished_job_has_no_artifacts(idle_http: httpx.Client, idle_service: Stack) -> None:
    job = idle_http.post("/v1/jobs", json=train_spec()).json()

    assert idle_http.get(job["links"]["artifacts"]).json() == {"items": [], "next_cursor": None}
    assert idle_http.get(f"{job['links']['artifacts']}/report.json").status_code == 404
    with psycopg.connect(idle_service.database_url) as connection:
        assert connection.execute("SELECT count(*) FROM job_artifacts").fetchone() == (0,)
