from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.client import Client
from app.client.errors import BadAddress, DigestMismatch, DownloadFailed, NotSecateur, Problem, Unreachable
from app.client.resources import Artifact
from tests.client.conftest import Reply, Told, artifact_of

BODY = bytes(range(256)) * 40
BUSY = Reply(503, b"upstream is away", {"Retry-After": "0"})


def _json(document: Any, status: int = 200, **headers: str) -> Reply:
    headers = {"Content-Type": "application/json", "Retry-After": "0", **headers}
    return Reply(status, json.dumps(document).encode(), headers)


def _problem(status: int, **fields: Any) -> Reply:
    return _json({"title": "Refused", "status": status, **fields}, status)


@pytest.fixture
def artifact() -> Artifact:
    return artifact_of(BODY)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_read_is_repeated_while_the_server_is_busy_or_the_connection_breaks(told: Told) -> None:
    told.replies = [BUSY, _json({"id": "j"}), Reply(200, b'{"id": "j"}', cut=3), _json({"id": "j"})]
    with told.client() as client:
        assert client.get("j")["id"] == "j"
        assert client.get("j")["id"] == "j"
    assert len(told.requests) == 4


def test_patience_has_an_end(told: Told) -> None:
    told.replies = [BUSY._replace(headers={"Retry-After": "9"}), *[BUSY] * 9]
    with told.client(patience_seconds=1) as client, pytest.raises(Problem, match="busy"):
        client.get("j")
    assert len(told.requests) == 1


def test_what_makes_a_job_is_repeated_with_the_key_of_the_first_time_and_each_call_has_its_own(told: Told) -> None:
    told.replies = [BUSY, Reply(202, b'{"id": "j"}', cut=3), *[_json({"id": "j"}, 202)] * 3]
    told.replies.insert(0, _json({"id": "j"}, 202))
    with told.client() as client:
        for _ in range(2):
            assert client.submit({"kind": "train"})["id"] == "j"
        assert client.rerun("j")["id"] == "j"
    first, *repeated, rerun = [request.headers["Idempotency-Key"] for request in told.requests]
    assert len(repeated) == 3
    assert len({first, *repeated, rerun}) == 3


@pytest.mark.parametrize("ask", [Client.cancel, Client.retry, Client.delete])
def test_what_has_no_key_is_never_repeated(told: Told, ask: Callable[[Client, str], object]) -> None:
    told.replies = [BUSY, _json({})]
    with told.client() as client, pytest.raises(Problem):
        ask(client, "j")
    assert len(told.requests) == 1


def test_a_refusal_carries_what_the_server_said(told: Told) -> None:
    fields = [{"pointer": "/kind", "code": "missing", "detail": "Field required"}]
    told.replies = [_problem(422, detail="See errors.", code="invalid_spec", errors=fields, request_id="req_1")]
    with told.client() as client, pytest.raises(Problem, match=r"Refused: See errors\.") as caught:
        client.submit({})
    problem = caught.value
    assert (problem.status, problem.code, problem.request_id, problem.errors) == (422, "invalid_spec", "req_1", fields)


@pytest.mark.parametrize(
    "reply", [Reply(200, b"<html>"), Reply(200, b"[1]"), Reply(404, b"<html>not here</html>"), Reply(302, b"")]
)
def test_an_answer_that_no_secateur_gives_is_told_as_such(told: Told, reply: Reply) -> None:
    told.replies = [reply]
    with told.client() as client, pytest.raises(NotSecateur, match=str(reply.status)):
        client.get("j")


def test_what_never_answered_is_not_waited_for() -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with Client(url, "k") as client, pytest.raises(Unreachable, match="No answer from"):
            client.get("j")


@pytest.mark.parametrize("url", ["", "host:80", "ftp://h", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(BadAddress):
        Client(url)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_at_once(key: str) -> None:
    with pytest.raises(BadAddress, match="API key"):
        Client("http://h", key)


def test_pages_are_fetched_as_they_are_taken(told: Told) -> None:
    told.replies = [
        _json({"items": [{"id": "1"}, {"id": "2"}]}, Link='</v1/jobs?limit=2&cursor=a%2Bb%3D>; rel="next"'),
        _json({"items": [{"id": "3"}]}),
    ]
    with told.client() as client:
        found = client.list(status=["queued", "running"], page_size=2)
        assert next(found)["id"] == "1"
        assert len(told.requests) == 1
        assert [job["id"] for job in found] == ["2", "3"]
    assert told.requests[0].path == "/v1/jobs?limit=2&status=queued&status=running"
    assert told.requests[1].path == "/v1/jobs?limit=2&cursor=a%2Bb%3D"


def test_waiting_ends_with_done_whatever_the_words(told: Told) -> None:
    states = [{"status": "hibernating", "done": False}, {"status": "running", "done": False}]
    told.replies = [_json(state) for state in states]
    told.replies.append(_json({"status": "composted", "done": True}))
    with told.client() as client:
        seen = [job["status"] for job in client.wait("j")]
    assert seen == ["hibernating", "running", "composted"]


# --- uploads ---------------------------------------------------------------------------------------------------------


def test_a_file_is_sent_as_it_is_with_its_length(told: Told, tmp_path: Path) -> None:
    (tmp_path / "a network.pt").write_bytes(BODY)
    told.replies = [_json({"id": "j", "kind": "import"}, 202)]
    with told.client() as client:
        job = client.upload_checkpoint(tmp_path / "a network.pt", display_name="mine", labels={"team": "a:b"})
    (request,) = told.requests
    assert job["id"] == "j"
    assert (request.method, request.path) == ("POST", "/v1/checkpoints?label=team%3Aa%3Ab&display_name=mine")
    assert request.headers["Content-Type"] == "application/octet-stream"
    assert request.headers["Content-Length"] == str(len(BODY))
    assert request.body == BODY


def test_an_upload_is_repeated_from_its_first_byte_with_the_same_key(told: Told, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BODY)
    told.replies = [BUSY, _json({"id": "j"}, 202)]
    with told.client() as client:
        assert client.upload_checkpoint(tmp_path / "a")["id"] == "j"
        with pytest.raises(FileNotFoundError):
            client.upload_checkpoint(tmp_path / "b")
    assert [request.body for request in told.requests] == [BODY] * 2
    assert len({request.headers["Idempotency-Key"] for request in told.requests}) == 1


# --- downloads -------------------------------------------------------------------------------------------------------


def test_a_download_that_breaks_is_picked_up_where_it_was(told: Told, artifact: Artifact, tmp_path: Path) -> None:
    told.replies = [
        Reply(200, BODY, cut=4_000),
        Reply(206, BODY[4_000:], {"Content-Range": f"bytes 4000-{len(BODY) - 1}/{len(BODY)}"}),
    ]
    with told.client() as client:
        path = client.download("j", artifact, tmp_path)
    assert path.read_bytes() == BODY
    assert told.requests[1].headers["Range"] == "bytes=4000-"
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt"]


def test_a_server_without_ranges_sends_the_whole_anew(told: Told, artifact: Artifact, tmp_path: Path) -> None:
    told.replies = [Reply(200, BODY, cut=4_000), Reply(200, BODY)]
    with told.client() as client:
        assert client.download("j", artifact, tmp_path).read_bytes() == BODY


def test_a_later_call_goes_on_with_what_an_earlier_one_left(told: Told, artifact: Artifact, tmp_path: Path) -> None:
    told.replies = [Reply(200, BODY, cut=4_000), *[Reply(404, b"", cut=0)] * 2]
    with told.client() as client, pytest.raises(NotSecateur):
        client.download("j", artifact, tmp_path)
    assert not (tmp_path / "model.pt").exists()

    told.replies = [Reply(206, BODY[4_000:])]
    with told.client() as client:
        assert client.download("j", artifact, tmp_path).read_bytes() == BODY
    assert told.requests[-1].headers["Range"] == "bytes=4000-"


def test_damaged_bytes_never_bear_the_files_name(told: Told, artifact: Artifact, tmp_path: Path) -> None:
    told.replies = [Reply(200, BODY[::-1])]
    with told.client() as client, pytest.raises(DigestMismatch, match=artifact["sha256"]):
        client.download("j", artifact, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_few_bytes_are_told(told: Told, artifact: Artifact, tmp_path: Path) -> None:
    told.replies = [Reply(200, BODY[:100]), Reply(206, b"")]
    with told.client() as client, pytest.raises(DownloadFailed, match=f"ended after 100 of {len(BODY)} bytes"):
        client.download("j", artifact, tmp_path)


def test_a_whole_file_is_not_fetched_again_and_a_changed_one_is(told: Told, artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(BODY)
    with told.client() as client:
        client.download("j", artifact, tmp_path)
        assert told.requests == []
        (tmp_path / "model.pt").write_bytes(b"older")
        told.replies = [Reply(200, BODY)]
        assert client.download("j", artifact, tmp_path).read_bytes() == BODY


def test_a_store_may_serve_the_bytes(told: Told, artifact: Artifact, tmp_path: Path) -> None:
    told.replies = [Reply(307, b"", {"Location": f"{told.url}/elsewhere"}), Reply(200, BODY)]
    with told.client() as client:
        assert client.download("j", artifact, tmp_path).read_bytes() == BODY
    assert told.requests[1].path == "/elsewhere"


@pytest.mark.parametrize("name", ["", ".", "..", "../key", "a/b", "a\\b", "a\0b"])
def test_a_name_that_would_leave_the_folder_is_refused(told: Told, name: str, tmp_path: Path) -> None:
    with told.client() as client, pytest.raises(DownloadFailed, match="no file's name"):
        client.download("j", {**artifact_of(BODY), "name": name}, tmp_path / "here")
    assert told.requests == []
    assert list(tmp_path.iterdir()) == []
