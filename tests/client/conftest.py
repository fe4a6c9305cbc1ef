"""Both clients behind one face, and an HTTP server that answers as it is told, for what the real one seldom does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import pytest

from secateur_client import Artifact, AsyncClient, Client

Connect = Callable[..., Client]


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

        do_GET = do_POST = do_DELETE = do_PATCH = _answer  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).parents[2]


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


class _OnLoop:
    """An AsyncClient, called as a Client is."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            begun = method(*arguments, **options)
            return self._runner.run(begun) if inspect.iscoroutine(begun) else self._each(begun)

        return call

    def _each(self, source: AsyncIterator[Any]) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(source)

        while True:
            try:
                yield self._runner.run(following())
            except StopAsyncIteration:
                return

    def __enter__(self) -> _OnLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=[Client, _OnLoop], ids=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Makes a client: of both kinds, since all that is promised holds for both."""
    return cast(Connect, request.param)


def artifact_of(body: bytes, **fields: Any) -> Artifact:
    """The record of a file that holds these bytes."""
    return Artifact.model_validate(
        {
            "name": "model.pt",
            "role": "checkpoint",
            "media_type": "application/octet-stream",
            "size": len(body),
            "sha256": sha256(body).hexdigest(),
            "created_at": "2026-01-01T00:00:00Z",
            "expires_at": None,
            "href": "/",
            **fields,
        }
    )


def job_document(**fields: Any) -> dict[str, Any]:
    return {
        **{"id": "j", "kind": "train", "status": "queued", "done": False, "revision": 1},
        **{"created_at": "2026-01-01T00:00:00Z", **fields},
    }
