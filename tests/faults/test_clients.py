"""Clients that stall, leave, or take their time."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.local import Stack, stack
from tests.conftest import QUICK
from tests.faults.conftest import client_of
from tests.specs import finished, train_spec
from tests.waiting import wait_until

BODY_SECONDS = 1.0


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service that does not wait long for a body."""
    settings = {**QUICK, "SECATEUR_BODY_SECONDS": str(BODY_SECONDS)}
    state = tmp_path_factory.mktemp("hasty") / "state of it"
    with stack(state_dir=state, workers=0, durable=False, env=settings, notify=lambda _: None) as running:
        yield running


@contextmanager
def _connection(running: Stack) -> Iterator[socket.socket]:
    address = urlsplit(running.url)
    with contextlib.closing(socket.create_connection((address.hostname, address.port), timeout=20)) as connection:
        yield connection


def _head(running: Stack, request: str, **headers: str) -> bytes:
    given = {"Host": "x", "Authorization": f"Bearer {running.api_key}", **headers}
    return "\r\n".join([f"{request} HTTP/1.1", *(f"{k}: {v}" for k, v in given.items()), "", ""]).encode()


def test_a_body_that_stalls_is_answered_and_its_connection_closed(hasty: Stack) -> None:
    body = json.dumps(train_spec()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    with client_of(hasty) as http, _connection(hasty) as connection:
        before = http.get("/v1/jobs").json()["items"]
        began = time.monotonic()
        connection.sendall(_head(hasty, "POST /v1/jobs", **headers) + body[:20])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # until the server closes
        assert time.monotonic() - began == pytest.approx(BODY_SECONDS, abs=2)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "request_timeout"
        assert http.get("/v1/jobs").json()["items"] == before


def test_a_client_that_leaves_amid_its_body_leaves_no_job(hasty: Stack) -> None:
    body = json.dumps(train_spec()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    with client_of(hasty) as http:
        before = http.get("/v1/jobs").json()["items"]
        with _connection(hasty) as connection:
            connection.sendall(_head(hasty, "POST /v1/jobs", **headers, **{"X-Request-Id": "left"}) + body[:-1])
        log = hasty.state_dir / "logs" / "api.log"
        wait_until(lambda: '"request_id": "left"' in log.read_text(), timeout=5, what="the API has done with it")
        assert http.get("/v1/jobs").json()["items"] == before
        assert "Traceback" not in log.read_text()


@pytest.mark.chaos
def test_a_slow_download_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    with stack(state_dir=tmp_path / "state", workers=1, durable=False, env=QUICK, notify=lambda _: None) as running:
        spec = train_spec(model={"architecture": "cnn", "channels": [4, 4, 16], "hidden": 4096})
        with client_of(running) as http, _connection(running) as connection:
            job = finished(http, spec)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(_head(running, f"GET {job['links']['artifacts']}/model.safetensors"))
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")  # and nothing of the 13 MB after it
            api = running.children["api"]
            began = time.monotonic()
            api.ask_to_stop()
            wait_until(lambda: not api.is_running or api.exit_code is not None, timeout=20, what="the API has stopped")
            assert time.monotonic() - began < 14  # uvicorn gives running requests 10
            assert api.exit_code in (0, -signal.SIGTERM)
