"""`secateur up` as an operator runs it: a process, its signals, and what it leaves."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from app.local import Stack
from tests.local.conftest import all_gone, refused_up, running_up, starting_up
from tests.speaking import client_of
from tests.specs import ended, read, submit, train_spec
from tests.waiting import wait_until


def _client(url: str, state_dir: Path) -> httpx.Client:
    key = (state_dir / "api-key").read_text().strip()
    return client_of(url, key)


@pytest.mark.alone
def test_ctrl_c_stops_all_of_it_while_a_worker_still_starts(state_dir: Path, tmp_path: Path) -> None:
    with running_up(state_dir, tmp_path / "output") as up:
        family = up.family()
        assert len(family) >= 4  # the database, the broker, the API, a worker
        assert (state_dir / "api-key").stat().st_mode & 0o777 == 0o600
        assert up.end(signal.SIGINT) == 0
        assert all_gone(family)
        assert up.text.splitlines()[-2:] == ["Stopping …", f"Stopped. The data stays in {state_dir}."]
        assert "Warning" not in up.text
    assert not list((state_dir / "processes").iterdir())


@pytest.mark.parametrize("begun", ["postgres/lock", "broker/lock", "processes/api.json"])
def test_ctrl_c_while_it_starts_stops_it_cleanly(state_dir: Path, tmp_path: Path, begun: str) -> None:
    with starting_up(state_dir, tmp_path / "output") as up:
        wait_until(lambda: (state_dir / begun).exists(), timeout=60, what=f"{begun} is there")
        family = up.family()
        assert up.end(signal.SIGINT) == 0, up.text
        assert all_gone(family)
    assert up.text.splitlines()[-1] == f"Stopped before it ran. The data stays in {state_dir}."


@pytest.mark.chaos
def test_after_a_kill_the_next_start_ends_what_is_left_and_finds_all_again(state_dir: Path, tmp_path: Path) -> None:
    with running_up(state_dir, tmp_path / "first") as up, _client(up.url, state_dir) as http:
        job = submit(http, train_spec())
        key = (state_dir / "api-key").read_text()
        left = up.family()
        assert up.end(signal.SIGKILL) == -signal.SIGKILL
    with running_up(state_dir, tmp_path / "second") as up, _client(up.url, state_dir) as http:
        assert all_gone(left)
        assert (state_dir / "api-key").read_text() == key
        assert http.get(f"/v1/jobs/{job['id']}").status_code == 200
        family = up.family()
        assert up.end(signal.SIGTERM) == 0
        assert all_gone(family)


@pytest.mark.chaos
def test_a_training_goes_on_after_all_of_it_was_killed(state_dir: Path, tmp_path: Path) -> None:
    with running_up(state_dir, tmp_path / "first") as up, _client(up.url, state_dir) as http:
        job_id = submit(http, train_spec(training={"epochs": 30}))["id"]
        wait_until(lambda: _epochs(http, job_id) >= 2, timeout=60, what="it has trained two epochs")
        began = time.monotonic()
        up.kill_all()
    with running_up(state_dir, tmp_path / "second") as up, _client(up.url, state_dir) as http:
        # The default lease is 60 s: a new stack knows that the workers of the old one are gone.
        left = began + 50 - time.monotonic()
        wait_until(lambda: read(http, job_id)["attempt"] == 2, timeout=left, what="the second attempt has begun")
        job = ended(http, job_id)
        assert (job["status"], job["attempt"]) == ("succeeded", 2)
        events = http.get(f"/v1/jobs/{job_id}/events", params={"limit": 100}).json()["items"]
        assert next(event["data"]["step"] for event in events if event["type"] == "resumed") >= 15  # an epoch of digits
        assert up.end(signal.SIGTERM) == 0


def _epochs(http: httpx.Client, job_id: str) -> int:
    events = http.get(f"/v1/jobs/{job_id}/events", params={"limit": 100}).json()["items"]
    return sum(event["type"] == "epoch" for event in events)


def test_a_second_one_on_the_same_folder_is_refused(idle_service: Stack) -> None:
    said = refused_up("--port", 0, "--state-dir", idle_service.state_dir)
    assert "Cannot start" in said
    assert "is in use by process" in said


def test_a_port_that_is_taken_is_refused(idle_service: Stack, state_dir: Path) -> None:
    port = urlsplit(idle_service.url).port
    said = refused_up("--port", port, "--state-dir", state_dir)
    assert f"Cannot start: cannot listen on 127.0.0.1:{port} (Address already in use)" in said
    assert not state_dir.exists()


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    assert "holds something else" in refused_up("--port", 0, "--state-dir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]


def test_a_start_that_fails_tells_its_own_reason_and_no_earlier_one(state_dir: Path) -> None:
    where = ("--port", 0, "--state-dir", state_dir)
    first = refused_up(*where, settings={"SECATEUR_RETENTION_DAY": "3"})
    second = refused_up(*where, settings={"SECATEUR_RETENTION_DAYS": "-3"})

    assert "unknown setting" in first
    assert "SECATEUR_RETENTION_DAYS" in second
    assert "unknown setting" not in second
