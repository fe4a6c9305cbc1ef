"""The log, streamed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx
import pytest

from app.local import Stack
from tests.api.conftest import restart_api
from tests.specs import Document, submit, train_spec


class Entry(NamedTuple):
    id: str | None
    event: str
    data: str


def _entries(lines: Iterator[str]) -> Iterator[Entry]:
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Entry(fields.get("id"), fields["event"], fields["data"])
            fields = {}


def _stream(http: httpx.Client, job: Document, *, last: str | None = None, most: int | None = None) -> list[Entry]:
    """Entries until the server ends the stream, or the client has had enough."""
    headers = {} if last is None else {"Last-Event-ID": last}
    found: list[Entry] = []
    with http.stream("GET", f"{job['links']['events']}/stream", headers=headers) as answer:
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
        for entry in _entries(answer.iter_lines()):
            found.append(entry)
            if len(found) == most:
                break
    return found


def _page(http: httpx.Client, job: Document) -> str:
    answer = http.get(job["links"]["events"], params={"limit": 100})
    assert answer.json()["next_cursor"] is None
    return answer.text


def _as_page(entries: list[Entry]) -> str:
    return '{"items":[' + ",".join(entry.data for entry in entries) + '],"next_cursor":null}'


class Read(NamedTuple):
    """A job's stream, read while it ran."""

    job: Document
    whole: list[Entry]
    in_pieces: list[list[Entry]]


@pytest.fixture(scope="module")
def told(http: httpx.Client) -> Read:
    job = submit(http, train_spec(training={"epochs": 2}))
    with ThreadPoolExecutor(6) as readers:
        whole = readers.submit(_stream, http, job)
        in_pieces = readers.map(lambda seed: _in_pieces(http, job, random.Random(seed)), range(5))
        return Read(job, whole.result(), list(in_pieces))


def test_a_stream_tells_of_a_job_from_beginning_to_end(http: httpx.Client, told: Read) -> None:
    *entries, end = told.whole

    assert end == Entry(None, "end", "{}")
    assert [entry.id for entry in entries] == [str(json.loads(entry.data)["seq"]) for entry in entries]
    assert [entry.event for entry in entries] == [json.loads(entry.data)["type"] for entry in entries]
    assert (entries[0].event, entries[-1].event) == ("queued", "succeeded")
    assert _as_page(entries) == _page(http, told.job)


def test_cut_anywhere_and_gone_on_from_it_is_the_page_byte_for_byte(http: httpx.Client, told: Read) -> None:
    assert [_as_page(entries) for entries in told.in_pieces] == [_page(http, told.job)] * 5


def _in_pieces(http: httpx.Client, job: Document, cuts: random.Random) -> list[Entry]:
    """All of a stream but its end, read over connections that are cut after a few entries."""
    found: list[Entry] = []
    while not found or found[-1].event != "end":
        last = found[-1].id if found else None
        found += _stream(http, job, last=last, most=cuts.randint(1, 4))
    return found[:-1]


def test_a_server_that_was_killed_meanwhile_loses_nothing(idle_service: Stack, newcomer: httpx.Client) -> None:
    job = submit(newcomer, train_spec())
    (before,) = _stream(newcomer, job, most=1)

    restart_api(idle_service, newcomer)
    newcomer.post(job["links"]["cancel"])

    *after, end = _stream(newcomer, job, last=before.id)
    assert end.event == "end"
    assert _as_page([before, *after]) == _page(newcomer, job)


def test_after_may_say_where_to_begin_and_the_last_id_counts_before_it(newcomer: httpx.Client) -> None:
    job = submit(newcomer, train_spec())
    newcomer.post(job["links"]["cancel"])
    url = f"{job['links']['events']}/stream"

    assert "id: 1\n" not in newcomer.get(url, params={"after": 1}).text
    assert "id: 1\n" in newcomer.get(url, params={"after": 0}).text
    assert newcomer.get(url, params={"after": 0}, headers={"Last-Event-ID": "2"}).text == "event: end\ndata: {}\n\n"


@pytest.mark.parametrize("last", ["x", "-1", "99999999999"])
def test_a_wrong_last_id_is_refused(newcomer: httpx.Client, last: str) -> None:
    job = submit(newcomer, train_spec())
    answer = newcomer.get(f"{job['links']['events']}/stream", headers={"Last-Event-ID": last})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")


def test_a_stream_of_no_job_is_a_problem(newcomer: httpx.Client, idle_http: httpx.Client) -> None:
    theirs = submit(idle_http, train_spec())
    for job_id in ("job_0", theirs["id"]):
        answer = newcomer.get(f"/v1/jobs/{job_id}/events/stream")
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
