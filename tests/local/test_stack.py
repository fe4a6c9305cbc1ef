"""The stack as a library: what dies comes back, what was running goes on, and its database can be found."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from app.local import NotRunning, Stack, database_url, stack
from tests.command import Done, run
from tests.conftest import QUICK
from tests.local.conftest import STOP_SECONDS
from tests.speaking import client_of
from tests.specs import Document, ended, read, submit, train_spec
from tests.waiting import wait_until

# An hour of work: it is still running when it is to be stopped.
ENDLESS = train_spec(training={"epochs": 1000})


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose parts may be killed."""
    state = tmp_path_factory.mktemp("mortal") / "state of it"
    with stack(state_dir=state, workers=0, env=QUICK, notify=lambda _: None) as running:
        yield running


def _client(running: Stack) -> httpx.Client:
    return client_of(running.url, running.api_key)


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("name", ["api", "broker", "postgres"])
def test_what_is_killed_is_started_again_and_loses_nothing(mortal: Stack, name: str) -> None:
    child = mortal.children[name]
    with _client(mortal) as http:
        job = submit(http, train_spec())
        before = child.pid
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: child.pid != before and _is_ready(http), timeout=30, what=f"{name} is back")
        assert read(http, job["id"])["status"] == "queued"


def _at_work(http: httpx.Client, job_id: str, attempt: int) -> Document | None:
    job = read(http, job_id)
    return job if job["attempt"] == attempt and job["phase"] == "training" else None


@pytest.mark.chaos
def test_a_running_job_is_handed_back_at_the_stop_and_goes_on_at_the_start(state_dir: Path) -> None:
    with stack(state_dir=state_dir, workers=1, durable=False, env=QUICK) as running, _client(running) as http:
        job_id = submit(http, ENDLESS)["id"]
        wait_until(lambda: _at_work(http, job_id, 1), timeout=60, what="the first attempt trains")
        began = time.monotonic()
    assert time.monotonic() - began < STOP_SECONDS
    with stack(state_dir=state_dir, workers=1, durable=False, env=QUICK) as running, _client(running) as http:
        wait_until(lambda: _at_work(http, job_id, 2), timeout=60, what="the second attempt trains")
        events = http.get(f"/v1/jobs/{job_id}/events").json()["items"]
        assert [event["data"] for event in events if event["type"] == "requeued"] == [{"reason": "worker_shutdown"}]
        http.post(f"/v1/jobs/{job_id}/cancel")
        assert ended(http, job_id)["status"] == "cancelled"


def test_the_database_of_a_running_stack_is_found(idle_service: Stack) -> None:
    url = database_url(idle_service.state_dir)
    assert url == idle_service.database_url
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("secateur",)


def test_where_no_stack_runs_the_way_to_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match=r"no stack runs in .*: start one with `secateur up`"):
        database_url(tmp_path)


def _keys(running: Stack, *arguments: str) -> Done:
    return _secateur(running, "keys", *arguments)


def _secateur(running: Stack, *arguments: str) -> Done:
    return run(*arguments, "--state-dir", running.state_dir, folder=Path.cwd(), timeout=60)


def _status(running: Stack, secret: str) -> int:
    with client_of(running.url, secret) as http:
        return http.get("/v1/jobs").status_code


def test_a_key_made_on_the_command_line_opens_until_it_is_revoked(idle_service: Stack) -> None:
    made = _keys(idle_service, "create", "--tenant", "robots", "--name", "conveyor")
    assert made.code == 0, made.err
    secret = made.out.strip()
    key_id = secret.split("_")[1]
    assert _status(idle_service, secret) == 200
    listed = _keys(idle_service, "list").out
    assert key_id in listed
    assert secret not in listed
    rotated = _keys(idle_service, "rotate", key_id, "--overlap-hours", "0.5")
    assert rotated.code == 0, rotated.err
    assert [_status(idle_service, each) for each in (secret, rotated.out.strip())] == [200, 200]
    assert _keys(idle_service, "revoke", key_id).code == 0
    assert [_status(idle_service, each) for each in (secret, rotated.out.strip())] == [401, 200]
    again = _keys(idle_service, "revoke", key_id)
    assert again.code == 2
    assert f"no key {key_id} that could be revoked" in again.err


def test_a_key_for_no_lawful_tenant_is_refused_in_a_sentence(idle_service: Stack) -> None:
    refused = _keys(idle_service, "create", "--tenant", "No Tenant")
    assert refused.code == 2
    assert "lower-case" in refused.err
    assert "Traceback" not in refused.err


def test_limits_are_set_and_listed_on_the_command_line(idle_service: Stack) -> None:
    given = ("--max-queued", "7", "--max-running", "none", "--max-stored-bytes", "default")
    done = _secateur(idle_service, "tenants", "set", "limited", *given)
    assert done.code == 0, done.err
    row = next(line for line in _secateur(idle_service, "tenants", "list").out.splitlines() if "limited" in line)
    assert " ".join(row.split()) == "limited 0 of 7 0 of none 0 of default default"
    refused = _secateur(idle_service, "tenants", "set", "limited", "--max-queued", "-1")
    assert refused.code == 2
    assert "a number, `none`, or `default`" in refused.err
