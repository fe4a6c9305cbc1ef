"""A small HTTP server that answers as it is told, for what the real one does seldom or never."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import MappingProxyType
from typing import NamedTuple

import pytest

from app.client import Client
from app.client.resources import Artifact


class Reply(NamedTuple):
    """One answer. `cut` ends the connection after so many bytes of the body."""

    status: int
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})
    cut: int | None = None


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Told:
    """What the server is to say, in order, and what it was asked."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.requests: list[Request] = []
        self.url = ""

    def client(self, patience_seconds: float = 5.0) -> Client:
        return Client(self.url, "sk_test", patience_seconds=patience_seconds)


def _handler(told: Told) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told.requests.append(Request(self.command, self.path, dict(self.headers), body))
            reply = told.replies.pop(0)
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body[: reply.cut])
            self.close_connection = reply.cut is not None

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def told() -> Iterator[Told]:
    told = Told()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(told))
    told.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield told
    server.shutdown()
    server.server_close()
    thread.join()


def artifact_of(body: bytes) -> Artifact:
    """The record of a file that holds these bytes."""
    return {
        "name": "model.pt",
        "role": "checkpoint",
        "media_type": "application/octet-stream",
        "size": len(body),
        "sha256": sha256(body).hexdigest(),
        "created_at": "2026-01-01T00:00:00Z",
        "expires_at": None,
        "href": "/",
    }
