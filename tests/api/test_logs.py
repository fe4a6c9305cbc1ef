from __future__ import annotations

import json
import re
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx

from app.local import Stack
from tests.specs import submit, train_spec
from tests.waiting import wait_until


def _log(running: Stack, process: str) -> str:
    return (running.state_dir / "logs" / f"{process}.log").read_text()


def _entries(running: Stack) -> list[dict[str, Any]]:
    """All lines of the API's log, each of which is an entry."""
    return [json.loads(line) for line in _log(running, "api").splitlines()]


def _logged(running: Stack, request_id: str) -> dict[str, Any]:
    """The access entry of a request."""

    def look() -> dict[str, Any] | None:
        return next((each for each in _entries(running) if each.get("request_id") == request_id), None)

    return wait_until(look, timeout=10, what="the request is logged")


def test_an_access_entry_says_who_asked_for_what(idle_service: Stack, newcomer: httpx.Client) -> None:
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    newcomer.headers.update({"X-Request-Id": "submission-1", "traceparent": traceparent})
    job_id = submit(newcomer, train_spec())["id"]
    newcomer.headers["X-Request-Id"] = "cancel-1"
    newcomer.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()

    entry = _logged(idle_service, "submission-1")
    key_id = newcomer.headers["Authorization"].split("_")[1]
    assert re.fullmatch(r"[0-9a-f]{32}", entry["tenant"])
    told = ("message", "method", "route", "path", "status", "key_id", "job_id", "trace_id")
    assert [entry[name] for name in told] == [
        "request", "POST", "/v1/jobs", "/v1/jobs", 202, key_id, job_id, "4bf92f3577b34da6a3ce929d0e0e4736",
    ]  # fmt: skip
    assert _logged(idle_service, "cancel-1")["route"] == "/v1/jobs/{job_id}/cancel"
    assert _logged(idle_service, "cancel-1")["job_id"] == job_id


def test_nothing_that_a_client_sends_makes_another_line(idle_service: Stack) -> None:
    address = urlsplit(idle_service.url)
    request = (
        "GET /forged%0A%7B%22level%22:%22INFO%22%7D%E2%80%A8 HTTP/1.1\r\n"
        f"Host: {address.netloc}\r\nX-Request-Id: forged\x85id\r\nUser-Agent: forged\x85agent\r\n"
        "Connection: close\r\n\r\n"
    )
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as connection:
        connection.sendall(request.encode("latin-1"))
        while connection.recv(4096):
            pass
    forged = "/forged\n"
    entry = wait_until(
        lambda: next((each for each in _entries(idle_service) if each.get("path", "").startswith(forged)), None),
        timeout=10,
        what="the request is logged",
    )
    assert entry["request_id"].startswith("req_")
    assert entry["route"] is None


def test_no_secret_is_in_any_log(idle_service: Stack, newcomer: httpx.Client, idle_http: httpx.Client) -> None:
    key = newcomer.headers["Authorization"].removeprefix("Bearer ")
    for sent in (f"/v1/jobs/{key}", f"/v1/jobs?label={key}", "/v1/jobs/whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"):
        newcomer.get(sent, headers={"X-Request-Id": "leak-1"})
    assert _logged(idle_service, "leak-1")["path"] == f"/v1/jobs/{key[:16]}…"
    secrets = {
        key[16:],
        idle_service.api_key[16:],
        "C2FVsBQIhrscChlQIMV",
        *(urlsplit(url).password for url in (idle_service.redis_url, idle_service.database_url)),
        (idle_service.state_dir / "broker" / "operator-password").read_text().strip(),
    }
    logs = {log.name: log.read_text() for log in (idle_service.state_dir / "logs").glob("*")}
    assert {"api.log", "broker.log", "postgres.log"} <= logs.keys()
    found = [(name, secret) for name, log in logs.items() for secret in filter(None, secrets) if secret in log]
    assert found == []


def test_a_worker_s_entries_say_which_attempt_of_whose_job(service: Stack, trained: dict[str, Any]) -> None:
    log = _log(service, "worker-1")  # in which Celery warns of root in a line of its own
    entries = [json.loads(line) for line in log.splitlines() if line.startswith("{") and trained["id"] in line]
    of_attempt = [each for each in entries if each["message"].startswith("attempt")]
    assert [(each["message"], each["attempt"], each["tenant"]) for each in of_attempt] == [
        ("attempt started", 1, "default"),
        ("attempt ended", 1, "default"),
    ]
    assert re.fullmatch(r"[0-9a-f]{32}", of_attempt[0]["trace_id"])
    assert service.api_key[16:] not in log
