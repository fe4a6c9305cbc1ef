from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import psycopg
import pytest

from app.local import Stack
from tests.api.conftest import wait_for_another_api
from tests.specs import Document, ended, submit, train_spec
from tests.waiting import wait_until


@pytest.fixture
def waiting(newcomer: httpx.Client) -> Document:
    """A job that stays queued."""
    return submit(newcomer, train_spec())


def test_a_copy_that_is_the_present_one_is_not_sent_again(newcomer: httpx.Client, waiting: Document) -> None:
    first = newcomer.get(waiting["links"]["self"])
    assert first.headers["ETag"].startswith(f'W/"{waiting["revision"]}.')
    assert first.headers["Cache-Control"] == "private, no-cache"

    same = newcomer.get(waiting["links"]["self"], headers={"If-None-Match": f'"x", {first.headers["ETag"]}'})
    assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", first.headers["ETag"])

    newcomer.post(waiting["links"]["cancel"])
    changed = newcomer.get(waiting["links"]["self"], headers={"If-None-Match": first.headers["ETag"]})
    assert (changed.status_code, changed.json()["status"]) == (200, "cancelled")
    assert changed.headers["ETag"] != first.headers["ETag"]
    assert "Retry-After" not in changed.headers


@pytest.mark.parametrize("spelt", ["{}", '"x",{}', "W/{}", "*"])
def test_a_copy_is_known_however_its_tag_is_spelt(newcomer: httpx.Client, waiting: Document, spelt: str) -> None:
    """A proxy may take `W/` away."""
    strong = newcomer.get(waiting["links"]["self"]).headers["ETag"].removeprefix("W/")

    answer = newcomer.get(waiting["links"]["self"], headers={"If-None-Match": spelt.format(strong)})

    assert (answer.status_code, answer.content) == (304, b"")


def test_a_wait_ends_at_a_change_and_no_sooner(idle_service: Stack, newcomer: httpx.Client, waiting: Document) -> None:
    url, api = waiting["links"]["self"], psutil.Process(idle_service.children["api"].pid)
    before = len(api.net_connections("tcp"))
    with ThreadPoolExecutor() as pool:
        polls = [
            pool.submit(newcomer.get, url, params={"wait": 30}, headers=headers)
            for headers in ({}, {"If-None-Match": newcomer.get(url).headers["ETag"]})
        ]
        wait_until(lambda: len(api.net_connections("tcp")) > before, timeout=10, what="the second is connected")
        began = time.monotonic()
        newcomer.post(waiting["links"]["cancel"])
        answers = [poll.result(timeout=5) for poll in polls]
    assert time.monotonic() - began < 2
    assert [answer.json()["status"] for answer in answers] == ["cancelled", "cancelled"]


def test_a_wait_that_nothing_ends_is_over_in_time(newcomer: httpx.Client, waiting: Document) -> None:
    url = waiting["links"]["self"]
    began = time.monotonic()
    unchanged = newcomer.get(url, params={"wait": 1}, headers={"If-None-Match": newcomer.get(url).headers["ETag"]})
    whole = newcomer.get(url, params={"wait": 1})
    assert 2 <= time.monotonic() - began < 5
    assert (unchanged.status_code, whole.status_code) == (304, 200)


def test_nobody_waits_for_a_job_that_is_done_or_with_an_old_copy(newcomer: httpx.Client, waiting: Document) -> None:
    url = waiting["links"]["self"]
    began = time.monotonic()
    assert newcomer.get(url, params={"wait": 30}, headers={"If-None-Match": 'W/"0"'}).status_code == 200
    newcomer.post(waiting["links"]["cancel"])
    assert newcomer.get(url, params={"wait": 30}).status_code == 200
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("wait", ["-1", "31", "soon"])
def test_a_wait_is_bounded(newcomer: httpx.Client, waiting: Document, wait: str) -> None:
    answer = newcomer.get(waiting["links"]["self"], params={"wait": wait})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/wait")


def test_polling_with_waits_sees_a_job_through(http: httpx.Client) -> None:
    job, polls = submit(http, train_spec()), 0
    etag = ""
    while not job["done"]:
        answer = http.get(job["links"]["self"], params={"wait": 30}, headers={"If-None-Match": etag})
        polls += 1
        if answer.status_code == 200:
            job, etag = answer.json(), answer.headers["ETag"]
    assert job["status"] == "succeeded"
    assert polls <= job["revision"] + 1


HUNDREDS = 250


def test_hundreds_wait_without_a_thread_each(idle_service: Stack, newcomer: httpx.Client, waiting: Document) -> None:
    api = psutil.Process(idle_service.children["api"].pid)
    headers = {"Authorization": newcomer.headers["Authorization"]}
    limits = httpx.Limits(max_connections=HUNDREDS)
    with (
        httpx.Client(
            base_url=idle_service.url, headers=headers, timeout=60, trust_env=False, verify=False, limits=limits
        ) as many,
        ThreadPoolExecutor(HUNDREDS) as pool,
    ):
        polls = [pool.submit(many.get, waiting["links"]["self"], params={"wait": 30}) for _ in range(HUNDREDS)]
        wait_until(lambda: len(api.net_connections("tcp")) >= HUNDREDS, timeout=30, what="all are connected")
        assert newcomer.get(waiting["links"]["self"]).status_code == 200
        assert api.num_threads() < 100
        newcomer.post(waiting["links"]["cancel"])
        answers = [poll.result(timeout=30) for poll in polls]
    assert {(answer.status_code, answer.json()["status"]) for answer in answers} == {(200, "cancelled")}


def test_a_lost_listener_comes_back(idle_service: Stack, newcomer: httpx.Client, waiting: Document) -> None:
    with psycopg.connect(idle_service.database_url, autocommit=True) as connection:
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'secateur changes'"
        assert connection.execute(end).fetchall() == [(True,)]

        def is_back() -> bool:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'secateur changes'"
            ).fetchone()
            return row == (1,)

        wait_until(is_back, timeout=10, what="the listener is back")
    with ThreadPoolExecutor() as pool:
        poll = pool.submit(newcomer.get, waiting["links"]["self"], params={"wait": 30})
        newcomer.post(waiting["links"]["cancel"])
        assert poll.result(timeout=10).json()["status"] == "cancelled"


def test_a_server_that_is_told_to_end_sends_home_who_waits(
    idle_service: Stack, newcomer: httpx.Client, waiting: Document
) -> None:
    api = idle_service.children["api"].pid
    with ThreadPoolExecutor() as pool:
        poll = pool.submit(newcomer.get, waiting["links"]["self"], params={"wait": 30})
        with newcomer.stream("GET", f"{waiting['links']['events']}/stream") as stream:
            lines = stream.iter_lines()
            log = [next(lines)]  # told all that there is, the stream waits; and the poll came before it
            began = time.monotonic()
            os.kill(api, signal.SIGTERM)
            log += lines
        answer = poll.result(timeout=10)
        assert time.monotonic() - began < 5
    wait_for_another_api(idle_service, newcomer, api)
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert "event: queued" in log
    assert "event: end" not in log


@pytest.mark.parametrize(("age", "seconds"), [(0, "2"), (61, "5"), (601, "15")])
def test_retry_after_grows_with_the_age_of_a_job(
    idle_service: Stack, newcomer: httpx.Client, waiting: Document, age: int, seconds: str
) -> None:
    with psycopg.connect(idle_service.database_url) as connection:
        aged = "UPDATE jobs SET queued_at = queued_at - make_interval(secs => %s) WHERE id = %s"
        connection.execute(aged, [age, waiting["id"]])
    assert newcomer.get(waiting["links"]["self"]).headers["Retry-After"] == seconds


def test_a_waiting_job_tells_its_place_in_the_queue(newcomer: httpx.Client) -> None:
    first, second = (submit(newcomer, train_spec()) for _ in range(2))

    before, copy = newcomer.get(first["links"]["self"]).json()["queue"], newcomer.get(second["links"]["self"])

    assert copy.json()["queue"]["position"] > before["position"]
    assert copy.json()["queue"]["waits_for"] == "worker"
    assert copy.json()["queue"]["ahead_seconds_estimate"] is None  # nobody works here
    newcomer.post(first["links"]["cancel"])
    # Nothing happened to the job itself, and yet the copy is an old one.
    now = newcomer.get(second["links"]["self"], headers={"If-None-Match": copy.headers["ETag"]})
    assert (now.status_code, now.json()["queue"]["position"]) == (200, before["position"])
    assert now.json()["revision"] == copy.json()["revision"]


def test_the_time_ahead_comes_from_what_jobs_took(http: httpx.Client, trained: Document) -> None:
    busy = submit(http, train_spec(training={"epochs": 1000}))
    waiting = [submit(http, train_spec()) for _ in range(2)]
    wait_until(lambda: http.get(busy["links"]["self"]).json()["status"] == "running", timeout=60, what="one runs")

    first, second = (http.get(job["links"]["self"]).json()["queue"] for job in waiting)

    assert (first["position"], second["position"]) == (1, 2)
    assert 0 < first["ahead_seconds_estimate"] < second["ahead_seconds_estimate"] < 600
    assert http.get(busy["links"]["self"]).json()["queue"] is None
    for job in (busy, *waiting):
        http.post(job["links"]["cancel"])
        ended(http, job["id"])
