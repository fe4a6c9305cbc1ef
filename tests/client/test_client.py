"""What the client makes of answers, those of foreign and newer servers included."""

from __future__ import annotations

import inspect
import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from app.local import Stack
from secateur_client import (
    Artifact,
    AsyncClient,
    BadAddress,
    Busy,
    Client,
    DigestMismatch,
    DownloadFailed,
    FieldError,
    Gone,
    Invalid,
    NotSecateur,
    Problem,
    Unreachable,
    WaitTimeout,
)
from tests.client.conftest import Connect, Reply, Told, artifact_of, job_document
from tests.engine.data_sets import arrays, npz

BODY = bytes(range(256)) * 40
BUSY = Reply(503, b"upstream is away", {"Retry-After": "0"})


def _json(document: Any, status: int = 200, **headers: str) -> Reply:
    headers = {"Content-Type": "application/json", "Retry-After": "0", **headers}
    return Reply(status, json.dumps(document).encode(), headers)


def _job(code: int = 200, /, **fields: Any) -> Reply:
    return _json(job_document(**fields), code)


def _problem(status: int, **fields: Any) -> Reply:
    return _json({"title": "Refused", "status": status, **fields}, status)


@pytest.fixture
def artifact() -> Artifact:
    return artifact_of(BODY)


def test_both_clients_have_the_same_methods_with_the_same_words() -> None:
    def methods(client: type) -> dict[str, Any]:
        found = inspect.getmembers(client, inspect.isfunction)
        return {name: [*inspect.signature(it).parameters.values()] for name, it in found if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)
    assert all(getattr(Client, name).__doc__ for name in methods(Client))


# --- repeating -------------------------------------------------------------------------------------------------------


def test_a_read_is_repeated_while_the_server_is_busy_or_the_connection_breaks(told: Told, connect: Connect) -> None:
    cut = Reply(200, json.dumps(job_document()).encode(), cut=3)
    told.replies = [cut, BUSY, _job(), Reply(502, b"", {"Retry-After": "0"}), _job()]
    with connect(told.url) as client:
        assert client.get("j").id == "j"
        assert client.get("j").id == "j"
    assert len(told.requests) == 5


def test_a_pause_may_be_named_as_a_date(told: Told, connect: Connect) -> None:
    soon, late = (format_datetime(datetime.now(UTC) + timedelta(seconds=s), usegmt=True) for s in (0, 600))
    told.replies = [BUSY._replace(headers={"Retry-After": soon}), _job(), BUSY._replace(headers={"Retry-After": late})]
    with connect(told.url) as client:
        assert client.get("j").id == "j"
        with pytest.raises(Busy) as caught:
            client.get("j")
    assert caught.value.retry_after == pytest.approx(600, abs=30)
    assert len(told.requests) == 3


def test_trying_has_an_end(told: Told, connect: Connect) -> None:
    told.replies = [BUSY._replace(headers={"Retry-After": "9"}), *[BUSY] * 9]
    with connect(told.url, retry_seconds=1) as client, pytest.raises(Busy, match="busy"):
        client.get("j")
    assert len(told.requests) == 1


def test_what_the_server_calls_retryable_is_repeated_when_it_says_after_how_long(told: Told, connect: Connect) -> None:
    full = _problem(507, code="full", retryable=True)
    in_use = _problem(409, code="job_in_use", retryable=True)
    told.replies = [full, Reply(204, b""), in_use._replace(headers={})]
    with connect(told.url) as client:
        client.delete("j")
        with pytest.raises(Problem, match="Refused") as caught:
            client.delete("j")
    assert (caught.value.code, caught.value.retryable, len(told.requests)) == ("job_in_use", True, 3)


def test_what_makes_a_job_is_repeated_with_the_key_of_the_first_time_and_each_call_has_its_own(
    told: Told, connect: Connect
) -> None:
    cut = Reply(202, json.dumps(job_document()).encode(), cut=3)
    told.replies = [_job(202), BUSY, cut, *[_job(202)] * 3]
    with connect(told.url) as client:
        for _ in range(2):
            assert client.submit({"kind": "train"}).id == "j"
        assert client.rerun("j").id == "j"
        assert client.submit({"kind": "train"}, idempotency_key="mine").id == "j"
    first, *repeated, rerun, mine = [request.headers["Idempotency-Key"] for request in told.requests]
    assert len(repeated) == 3
    assert len({first, *repeated, rerun}) == 3
    assert mine == "mine"


@pytest.mark.parametrize(
    ("ask", "times"),
    [
        (lambda client: client.retry("j"), 1),  # a second time would be another retry
        (lambda client: client.update(client.get("j"), {}, only_if_unchanged=True), 1),  # and this would be refused
        (lambda client: client.update("j", {"labels": {"a": None}}), 2),
        (lambda client: client.cancel("j"), 2),
        (lambda client: client.validate({}), 2),
    ],
)
def test_what_has_no_key_is_repeated_only_where_twice_is_once(
    told: Told, connect: Connect, ask: Callable[[Client], object], times: int
) -> None:
    told.replies = [_job(), BUSY, _problem(409)] if "get" in ask.__code__.co_names else [BUSY, _problem(409)]
    with connect(told.url) as client, pytest.raises(Problem):
        ask(client)
    assert len([request for request in told.requests if request.method != "GET"]) == times


def test_a_deletion_whose_answer_was_lost_is_done(told: Told, connect: Connect) -> None:
    told.replies = [BUSY, _problem(410, code="job_purged")]
    with connect(told.url) as client:
        client.delete("j")
    assert [request.method for request in told.requests] == ["DELETE"] * 2


def test_what_never_answered_is_not_waited_for(connect: Connect) -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with connect(url, "k") as client, pytest.raises(Unreachable, match="No answer from"):
            client.get("j")


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_refusal_carries_what_the_server_said(told: Told, connect: Connect) -> None:
    fields = [{"pointer": "/kind", "code": "missing", "detail": "Field required"}]
    told.replies = [
        _problem(422, detail="See errors.", code="invalid_spec", errors=fields, request_id="req_1", limit=3)
    ]
    with connect(told.url) as client, pytest.raises(Invalid, match=r"Refused: See errors\.") as caught:
        client.submit({})
    problem = caught.value
    assert (problem.status, problem.code, problem.request_id) == (422, "invalid_spec", "req_1")
    assert problem.errors == [FieldError("/kind", "missing", "Field required")]
    assert str(problem) == "Refused: See errors.\n  /kind: Field required"
    assert problem.body["limit"] == 3


@pytest.mark.parametrize(
    "reply",
    [Reply(200, b"<html>"), Reply(200, b"[1]"), Reply(404, b"<html>not here</html>"), Reply(302, b""), Reply(304, b"")],
)
def test_an_answer_that_no_secateur_gives_is_told_as_such(told: Told, connect: Connect, reply: Reply) -> None:
    told.replies = [reply]
    with connect(told.url) as client, pytest.raises(NotSecateur, match=str(reply.status)):
        client.get("j")


@pytest.mark.parametrize("url", ["", "host:80", "ftp://h", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused_at_once(connect: Connect, url: str) -> None:
    with pytest.raises(BadAddress):
        connect(url)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_at_once(connect: Connect, key: str) -> None:
    with pytest.raises(BadAddress, match="API key"):
        connect("http://h", key)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_resource_keeps_what_this_client_does_not_know(told: Told, connect: Connect) -> None:
    document = job_document(carbon={"grams": 1.5}, created_at="2026-01-01T00:00:00.123456Z", error=None)
    told.replies = [_json(document)]
    with connect(told.url) as client:
        assert client.get("j").as_json() == document


def test_pages_are_fetched_as_they_are_taken(told: Told, connect: Connect) -> None:
    told.replies = [
        _json({"items": [job_document(id="1"), job_document(id="2")], "next_cursor": "a+b="}),
        _json({"items": [job_document(id="3")], "next_cursor": None}),
    ]
    with connect(told.url) as client:
        found = iter(client.list(status=["queued", "running"], labels={"team": "a"}, page_size=2))
        assert next(found).id == "1"
        assert len(told.requests) == 1
        assert [job.id for job in found] == ["2", "3"]
    query = "/v1/jobs?limit=2&status=queued&status=running&label=team%3Aa"
    assert [request.path for request in told.requests] == [query, f"{query}&cursor=a%2Bb%3D"]


def test_a_list_takes_one_word_as_well_as_several(told: Told, connect: Connect) -> None:
    told.replies = [_json({"items": [], "next_cursor": None})]
    with connect(told.url) as client:
        assert list(client.list(status="succeeded", kind="train")) == []
    assert told.requests[0].path == "/v1/jobs?limit=100&status=succeeded&kind=train"


def test_waiting_ends_with_done_whatever_the_words(told: Told, connect: Connect) -> None:
    words: list[dict[str, Any]] = [{"status": "hibernating", "phase": "yoga"}, {"status": "running"}]
    words.append({"status": "composted", "done": True})
    told.replies = [_job(revision=n, **word) for n, word in enumerate(words)]
    with connect(told.url) as client:
        seen = [job.status for job in client.watch("j")]
    assert seen == ["hibernating", "running", "composted"]


def test_waiting_sends_the_tag_back_and_keeps_its_pace_where_nothing_holds_the_answer(
    told: Told, connect: Connect
) -> None:
    tagged = _json(job_document(), ETag='W/"1"')
    told.replies = [tagged, Reply(304, b"", {"ETag": 'W/"1"', "Retry-After": "0"}), _job(done=True)]
    with connect(told.url) as client:
        assert client.wait("j").done
    assert [request.headers.get("If-None-Match") for request in told.requests] == [None, 'W/"1"', 'W/"1"']
    assert [request.path for request in told.requests] == [f"/v1/jobs/j?wait={wait}" for wait in (0, 30, 30)]


def test_waiting_gives_up_in_time_and_has_the_job_as_it_was_seen_last(told: Told, connect: Connect) -> None:
    told.replies = [_job(status="running")] * 50
    with connect(told.url) as client, pytest.raises(WaitTimeout, match="it is running") as caught:
        client.wait("j", timeout=0.3)
    assert caught.value.job.status == "running"
    assert 2 <= len(told.requests) <= 6


# --- uploads ---------------------------------------------------------------------------------------------------------


def test_a_file_is_sent_as_it_is_with_its_length(told: Told, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "a network.pt").write_bytes(BODY)
    told.replies = [_job(202, kind="import")]
    with connect(told.url) as client:
        job = client.upload_checkpoint(tmp_path / "a network.pt", display_name="mine", labels={"team": "a:b"})
    (request,) = told.requests
    assert job.id == "j"
    assert (request.method, request.path) == ("POST", "/v1/checkpoints?display_name=mine&label=team%3Aa%3Ab")
    assert request.headers["Content-Type"] == "application/octet-stream"
    assert request.headers["Content-Length"] == str(len(BODY))
    assert request.body == BODY


def test_a_path_may_be_a_text(told: Told, connect: Connect, artifact: Artifact, tmp_path: Path) -> None:
    told.replies = [
        Reply(200, BODY),
        _job(202, kind="import"),
        _json({"id": "j", "job_id": "j", "status": "checking"}, 202),
    ]
    with connect(told.url) as client:
        path = str(client.download("j", artifact, str(tmp_path)))
        client.upload_checkpoint(path)
        client.upload_dataset(path)
    assert path == str(tmp_path / "model.pt")
    assert [request.body for request in told.requests[1:]] == [BODY, BODY]


def test_a_data_set_is_sent_found_and_deleted(idle_service: Stack, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_bytes(npz(arrays()))
    with connect(idle_service.url, idle_service.api_key) as client:
        sent = client.upload_dataset(tmp_path / "mine.npz", name="mine", labels={"team": "a"})
        assert (sent.name, sent.status, sent.labels) == ("mine", "checking", {"team": "a"})
        assert client.dataset(sent.id).job_id == sent.job_id
        assert sent.id in [each.id for each in client.datasets()]
        client.cancel(sent.job_id)
        assert client.dataset(sent.id).status == "rejected"
        client.delete_dataset(sent.id)
        client.delete_dataset(sent.id)
        with pytest.raises(Gone):
            client.dataset(sent.id)


def test_an_upload_is_repeated_from_its_first_byte_with_the_same_key(
    told: Told, connect: Connect, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(BODY)
    told.replies = [BUSY, _job(202)]
    with connect(told.url) as client:
        assert client.upload_checkpoint(tmp_path / "a").id == "j"
        with pytest.raises(FileNotFoundError):
            client.upload_checkpoint(tmp_path / "b")
    assert [request.body for request in told.requests] == [BODY] * 2
    assert len({request.headers["Idempotency-Key"] for request in told.requests}) == 1


# --- downloads -------------------------------------------------------------------------------------------------------


def _rest(begin: int) -> Reply:
    return Reply(206, BODY[begin:], {"Content-Range": f"bytes {begin}-{len(BODY) - 1}/{len(BODY)}"})


def test_a_download_that_breaks_is_picked_up_where_it_was(
    told: Told, connect: Connect, artifact: Artifact, tmp_path: Path
) -> None:
    told.replies = [Reply(200, BODY, cut=4_000), _rest(4_000)]
    with connect(told.url) as client:
        path = client.download("j", artifact, tmp_path)
    assert path.read_bytes() == BODY
    assert told.requests[1].headers["Range"] == "bytes=4000-"
    assert told.requests[1].headers["If-Range"] == f'"{artifact.sha256}"'
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt"]


def test_a_server_without_ranges_sends_the_whole_anew(
    told: Told, connect: Connect, artifact: Artifact, tmp_path: Path
) -> None:
    told.replies = [Reply(200, BODY, cut=4_000), Reply(200, BODY)]
    with connect(told.url) as client:
        assert client.download("j", artifact, tmp_path / "mine").read_bytes() == BODY


def test_a_later_call_goes_on_with_what_an_earlier_one_left(
    told: Told, connect: Connect, artifact: Artifact, tmp_path: Path
) -> None:
    told.replies = [Reply(200, BODY, cut=4_000), Reply(404, b"", cut=0)]
    with connect(told.url) as client, pytest.raises(NotSecateur):
        client.download("j", artifact, tmp_path)
    assert not (tmp_path / "model.pt").exists()

    told.replies = [_rest(4_000)]
    with connect(told.url) as client:
        assert client.download("j", artifact, tmp_path).read_bytes() == BODY
    assert told.requests[-1].headers["Range"] == "bytes=4000-"


@pytest.mark.parametrize(
    ("replies", "error", "said"),
    [
        ([Reply(200, BODY[::-1])], DigestMismatch, "came damaged"),
        ([Reply(200, BODY * 2)], DownloadFailed, "More than"),
        ([Reply(200, BODY[:100]), _rest(200)], DownloadFailed, "another part"),
        ([Reply(200, b"")], DownloadFailed, f"ended {len(BODY)} bytes before its {len(BODY)}"),
    ],
)
def test_wrong_bytes_never_bear_the_files_name(
    told: Told,
    connect: Connect,
    artifact: Artifact,
    tmp_path: Path,
    replies: list[Reply],
    error: type[Exception],
    said: str,
) -> None:
    told.replies = [*replies]
    with connect(told.url) as client, pytest.raises(error, match=said):
        client.download("j", artifact, tmp_path)
    assert not (tmp_path / "model.pt").exists()


def test_a_whole_file_is_not_fetched_again_and_a_changed_one_is(
    told: Told, connect: Connect, artifact: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "model.pt").write_bytes(BODY)
    with connect(told.url) as client:
        client.download("j", artifact, tmp_path)
        assert told.requests == []
        (tmp_path / "model.pt").write_bytes(b"older")
        told.replies = [Reply(200, BODY)]
        assert client.download("j", artifact, tmp_path).read_bytes() == BODY


def test_a_store_may_serve_the_bytes(told: Told, connect: Connect, artifact: Artifact, tmp_path: Path) -> None:
    told.replies = [Reply(307, b"", {"Location": f"{told.url}/elsewhere"}), Reply(200, BODY)]
    with connect(told.url) as client:
        assert client.download("j", artifact, tmp_path).read_bytes() == BODY
    assert told.requests[1].path == "/elsewhere"


def test_an_artifact_may_be_named(told: Told, connect: Connect, artifact: Artifact, tmp_path: Path) -> None:
    listed = _json({"items": [artifact.as_json()], "next_cursor": None})
    told.replies = [listed, Reply(200, BODY), listed]
    with connect(told.url) as client:
        assert client.download("j", "model.pt", tmp_path).read_bytes() == BODY
        with pytest.raises(DownloadFailed, match=r"no artifact 'model.onnx'; it has: model\.pt"):
            client.download("j", "model.onnx", tmp_path)


def test_a_file_without_bytes_is_a_file(connect: Connect, tmp_path: Path) -> None:
    with connect("http://127.0.0.1:9") as client:
        assert client.download("j", artifact_of(b""), tmp_path).read_bytes() == b""


@pytest.mark.parametrize("name", ["", ".", "..", "../key", "a/b", "a\\b", "a\0b"])
def test_a_name_that_would_leave_the_folder_is_refused(told: Told, connect: Connect, name: str, tmp_path: Path) -> None:
    with connect(told.url) as client, pytest.raises(DownloadFailed, match="no file's name"):
        client.download("j", artifact_of(BODY, name=name), tmp_path)
    assert told.requests == []
    assert list(tmp_path.iterdir()) == []
