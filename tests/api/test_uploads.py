"""Checkpoints from elsewhere: what is taken in, what is refused, and what any upload leaves behind."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
from safetensors.numpy import save

from app.contract.checkpoint import tensors_of
from app.contract.spec import ModelSpec
from app.db.session import session_scope
from app.local import Stack, stack
from app.services.keys import Scope, create_key
from tests.api.conftest import client_with, sqlalchemy_url
from tests.api.test_bad_input import problem
from tests.conftest import QUICK
from tests.small_disk import run_on_small_disk
from tests.specs import compare_spec, prune_spec, read, train_spec
from tests.waiting import wait_until

OCTETS = {"Content-Type": "application/octet-stream"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
"""Of a form's only part."""

MODEL = ModelSpec(channels=(2, 3, 4), hidden=5)
_TYPES = {"F32": np.float32, "I64": np.int64}


def _arrays(model: ModelSpec = MODEL) -> dict[str, Any]:
    return {name: np.ones(facts.shape, _TYPES[facts.dtype]) for name, facts in tensors_of(model).items()}


SAFETENSORS = save(_arrays(), {"format": "pt"})
ZIP = b"PK\x03\x04" + bytes(100)
"""Which the worker will not like."""


def _upload(http: httpx.Client, content: Any, **parameters: Any) -> httpx.Response:
    return http.post("/v1/checkpoints", content=content, headers=OCTETS, params=parameters)


def _uploads(running: Stack) -> list[str]:
    folder = running.state_dir / "artifacts" / ".uploads"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize(("content", "format"), [(SAFETENSORS, "safetensors"), (ZIP, "torch")])
def test_a_file_becomes_a_job(idle_service: Stack, idle_http: httpx.Client, content: bytes, format: str) -> None:
    answer = _upload(idle_http, content, display_name="mine", label=["team:a", "from:a:b"])

    job = answer.json()
    assert (answer.status_code, job["kind"], job["status"]) == (202, "import", "queued")
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["Retry-After"] == "2"
    assert (job["display_name"], job["labels"]) == ("mine", {"team": "a", "from": "a:b"})
    sha256 = hashlib.sha256(content).hexdigest()
    assert (job["spec"]["format"], job["spec"]["size"], job["spec"]["sha256"]) == (format, len(content), sha256)
    assert job["spec"]["limits"]["max_runtime_seconds"] < 86_400
    assert read(idle_http, job["id"])["spec"] == job["spec"]
    kept = idle_service.state_dir / "artifacts" / ".uploads" / job["id"]
    assert kept.read_bytes() == content
    assert job["id"] in [each["id"] for each in idle_http.get("/v1/jobs", params={"kind": "import"}).json()["items"]]

    idle_http.post(job["links"]["cancel"]).raise_for_status()
    wait_until(lambda: not kept.exists(), timeout=20, what="the upload of a cancelled job is removed")


def _with(**changes: Any) -> bytes:
    arrays = _arrays()
    for name, value in changes.items():
        name = name.replace("__", ".")
        arrays.pop(name)
        if value is not None:
            arrays[name] = value
    return save(arrays)


WRONG: dict[str, tuple[bytes, str, str | None]] = {
    "nothing": (b"", "empty", None),
    "a text": (b"kind: train", "neither whole safetensors nor a zip", None),
    "an old pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "of PyTorch 1.6 or newer", None),
    "cut off": (SAFETENSORS[:-1], "it was cut off, or added to", None),
    "cut off in the header": (SAFETENSORS[:100], "neither whole safetensors nor a zip", None),
    "another network": (save({"a": np.zeros(1, np.float32)}), "missing 'layer1.0.weight', 'layer", None),
    "a missing tensor": (_with(fc2__bias=None), "architecture: missing 'fc2.bias'.", "/fc2.bias"),
    "a tensor too many": (
        save({**_arrays(), "foo/~": np.zeros(1, np.float32)}),
        "architecture: unexpected 'foo/~'.",
        "/foo~1~0",
    ),
    "a name beyond all measure": (save({**_arrays(), "x" * 5_000: np.zeros(1, np.float32)}), "unexpected 'xxx", ""),
    "a wrong shape": (
        _with(fc2__bias=np.zeros(11, np.float32)),
        "fc2.bias has shape [11], expected [10], in a network of channels [2, 3, 4] and hidden 5, for",
        "/fc2.bias",
    ),
    "half precision": (
        _with(fc2__bias=np.zeros(10, np.float16)),
        "fc2.bias has type F16, expected F32",
        "/fc2.bias",
    ),
    "a wrapper": (save({f"module.{name}": each for name, each in _arrays().items()}), "'module.'", ""),
    "too wide": (_with(layer1__0__weight=np.zeros((513, 1, 5, 5), np.float32)), "less than or equal to 512", None),
}


@pytest.fixture
def _nothing_is_left(idle_service: Stack) -> Iterator[None]:
    before = _uploads(idle_service), _count(idle_service)
    yield
    assert (_uploads(idle_service), _count(idle_service)) == before


def _count(running: Stack) -> int:
    with psycopg.connect(running.database_url) as connection:
        row = connection.execute("SELECT count(*) FROM jobs").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.usefixtures("_nothing_is_left")
@pytest.mark.parametrize(("content", "said", "pointer"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_with_what_was_expected(
    idle_http: httpx.Client, content: bytes, said: str, pointer: str | None
) -> None:
    body = problem(_upload(idle_http, content), 422, "invalid_checkpoint")

    assert said in body["detail"]
    if pointer is not None:
        assert [(error["pointer"], error["code"]) for error in body["errors"]] == [(pointer, "tensor_misfit")]


@pytest.mark.usefixtures("_nothing_is_left")
def test_each_tensor_at_fault_is_pointed_at(idle_http: httpx.Client) -> None:
    names = sorted(_arrays())
    errors = problem(_upload(idle_http, save({"foo": np.zeros(1, np.float32)})), 422, "invalid_checkpoint")["errors"]

    assert sorted(error["pointer"] for error in errors) == sorted(["/foo", *(f"/{name}" for name in names)])
    said = {error["pointer"]: error["detail"] for error in errors}
    assert said["/fc2.bias"] == "fc2.bias is missing"
    assert said["/foo"] == "'foo' is no tensor of the cnn architecture: leave it out"


@pytest.mark.usefixtures("_nothing_is_left")
@pytest.mark.parametrize("media_type", ["application/json", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_media_type_is_refused(idle_http: httpx.Client, media_type: str) -> None:
    answer = idle_http.post("/v1/checkpoints", content=SAFETENSORS, headers={"Content-Type": media_type})

    assert "application/octet-stream" in problem(answer, 415, "unsupported_media_type")["detail"]


@pytest.mark.usefixtures("_nothing_is_left")
@pytest.mark.parametrize(
    ("parameters", "pointer"),
    [
        ({"display_name": "a\nb"}, "/query/display_name"),
        ({"label": "team"}, "/query/label/0"),
        ({"label": ["a:b", "Team:a"]}, "/query/label/1"),
        ({"label": ["a:b", "a:c"]}, "/query/label/1"),
        ({"label": [f"a{number}:b" for number in range(17)]}, "/query/label"),
        ({"labels": "a:b"}, "/query/labels"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_refused(idle_http: httpx.Client, parameters: dict[str, Any], pointer: str) -> None:
    body = problem(_upload(idle_http, SAFETENSORS, **parameters), 422, "invalid_parameter")

    assert body["errors"][0]["pointer"] == pointer


@pytest.mark.usefixtures("_nothing_is_left")
def test_a_reader_may_not_upload_nor_may_nobody(idle_service: Stack, idle_http: httpx.Client) -> None:
    with session_scope(sqlalchemy_url(idle_service)) as session:
        _, token = create_key(session, name="reader", scopes=[Scope.JOBS_READ])
    with client_with(idle_service, token) as reader:
        assert "jobs:write" in problem(_upload(reader, SAFETENSORS), 403, "forbidden")["detail"]
    with client_with(idle_service, "nonsense") as nobody:
        problem(_upload(nobody, SAFETENSORS), 401, "unauthenticated")


def test_an_import_is_not_submitted_as_json(idle_http: httpx.Client) -> None:
    for spec in ({"kind": "import"}, {"kind": "import", "format": "torch", "size": 1, "sha256": "0" * 64}):
        body = problem(idle_http.post("/v1/jobs", json=spec), 422, "invalid_spec")

        assert [(error["pointer"], error["code"]) for error in body["errors"]] == [("/kind", "upload_wanted")]
        assert "POST /v1/checkpoints" in body["detail"]


def test_another_tenants_import_looks_like_a_missing_one(idle_http: httpx.Client, stranger: httpx.Client) -> None:
    job_id = _upload(idle_http, SAFETENSORS).json()["id"]

    for spec in (prune_spec(job_id), train_spec(initial={"job_id": job_id}), compare_spec(job_id, "job_" + "0" * 32)):
        body = problem(stranger.post("/v1/jobs", json=spec), 422, "invalid_spec")
        assert body["errors"][0]["code"] == "source_not_found"
    problem(stranger.get(f"/v1/jobs/{job_id}"), 404, "job_not_found")
    problem(idle_http.post("/v1/jobs", json=prune_spec(job_id)), 409, "source_not_finished")


def test_the_options_tell_what_may_be_uploaded(idle_http: httpx.Client) -> None:
    options = idle_http.get("/v1/options").json()

    assert options["uploads"] == {"formats": ["safetensors", "torch"], "max_bytes": 536_870_912}
    assert "POST /v1/checkpoints" in options["kinds"]["import"]["description"]


MAX_BYTES = 100_000
STALL_SECONDS = 1.0


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service that takes small files, and waits for nobody."""
    settings = {
        **QUICK,
        "SECATEUR_MAX_CHECKPOINT_BYTES": str(MAX_BYTES),
        "SECATEUR_MAX_DATASET_BYTES": str(MAX_BYTES),
        "SECATEUR_BODY_SECONDS": str(STALL_SECONDS),
        "SECATEUR_UPLOAD_SECONDS": "4",
    }
    state = tmp_path_factory.mktemp("strict") / "state of it"
    with stack(state_dir=state, workers=0, durable=False, env=settings) as running:
        yield running


@pytest.fixture
def strict_http(strict: Stack) -> Iterator[httpx.Client]:
    with client_with(strict, strict.api_key) as http:
        yield http
    assert _uploads(strict) == []
    assert _count(strict) == 0


def test_a_huge_file_is_refused_by_its_length(strict_http: httpx.Client) -> None:
    answer = _upload(strict_http, bytes(MAX_BYTES + 1))

    assert f"{MAX_BYTES} bytes" in problem(answer, 413, "payload_too_large")["detail"]


def test_a_huge_file_of_unknown_length_is_refused_on_its_way(strict_http: httpx.Client) -> None:
    answer = _upload(strict_http, (bytes(10_000) for _ in range(20)))

    problem(answer, 413, "payload_too_large")


def test_a_huge_form_of_unknown_length_is_refused_on_its_way(strict_http: httpx.Client) -> None:
    pieces = iter([HEAD, *(bytes(10_000) for _ in range(20)), b"\r\n--x--"])

    problem(strict_http.post("/v1/datasets", content=pieces, headers=FORM), 413, "payload_too_large")


def _sent(
    running: Stack, *pieces: bytes, path: str = "/v1/checkpoints", headers: Mapping[str, str] = OCTETS
) -> socket.socket:
    """A connection on which the head of an upload and so much of its body has been sent."""
    url = httpx.URL(running.url)
    connection = socket.create_connection((url.host, url.port or 80), timeout=20)
    head = [
        *(f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {running.api_key}"),
        *(f"Content-Type: {headers['Content-Type']}", f"Content-Length: {len(SAFETENSORS)}", "", ""),
    ]
    connection.sendall("\r\n".join(head).encode() + b"".join(pieces))
    return connection


def _received(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65_536), b""))  # until the server closes


def test_a_stalled_upload_is_cut_off(strict: Stack, strict_http: httpx.Client) -> None:
    with _sent(strict, SAFETENSORS[:1000]) as connection:
        wait_until(lambda: _uploads(strict), timeout=10, what="something has arrived")
        answer = _received(connection)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"Nothing more of the body came for 1 s." in answer


def test_an_upload_that_trickles_is_cut_off_too(strict: Stack, strict_http: httpx.Client) -> None:
    with _sent(strict) as connection:
        connection.settimeout(STALL_SECONDS / 4)
        for at in range(60):
            connection.sendall(SAFETENSORS[at : at + 1])
            try:
                answer = connection.recv(65_536) + _received(connection)
                break
            except TimeoutError:
                continue

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"The whole body must arrive within 4 s" in answer


def test_a_client_that_leaves_leaves_nothing(strict: Stack, strict_http: httpx.Client) -> None:
    with _sent(strict, SAFETENSORS[:-1]):
        wait_until(lambda: _uploads(strict), timeout=10, what="something has arrived")

    wait_until(lambda: not _uploads(strict), timeout=10, what="it is gone again")


def test_half_a_form_leaves_nothing(strict: Stack, strict_http: httpx.Client) -> None:
    form: dict[str, Any] = {"path": "/v1/datasets", "headers": FORM}
    with _sent(strict, HEAD, b"PK\x03\x04", **form) as connection:
        wait_until(lambda: _uploads(strict), timeout=10, what="something has arrived")
        assert _received(connection).startswith(b"HTTP/1.1 408 ")
    with _sent(strict, HEAD, b"PK\x03\x04", **form):
        wait_until(lambda: _uploads(strict), timeout=10, what="something has arrived")

    wait_until(lambda: not _uploads(strict), timeout=10, what="it is gone again")


@pytest.mark.host
def test_an_upload_that_fills_the_disk_is_refused_for_now_and_leaves_nothing(tmp_path: Path) -> None:
    said = run_on_small_disk(tmp_path, "tests.api.full_store", tmp_path, megabytes=8)

    assert said == "503 disk_full True []"


def test_the_size_of_an_upload_is_no_burden_on_memory(idle_service: Stack, idle_http: httpx.Client) -> None:
    before = _peak(idle_service)
    pieces = (bytes(1 << 20) for _ in range(200))

    problem(_upload(idle_http, pieces), 422, "invalid_checkpoint")

    assert _peak(idle_service) - before < 50_000  # kB, of the 200,000 that were sent


def _peak(running: Stack) -> int:
    status = Path(f"/proc/{running.children['api'].pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])
