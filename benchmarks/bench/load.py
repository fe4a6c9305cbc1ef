"""A client that costs as little as it can: the same processor also serves."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Answer(NamedTuple):
    status: int
    body: bytes
    seconds: float


class Connection:
    """HTTP/1.1 on one kept connection, as far as these servers speak it: bodies with a length."""

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host, self._port = parts.hostname, parts.port
        self._headers = f"Host: {parts.netloc}\r\n" + (f"Authorization: Bearer {key}\r\n" if key else "")

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        started = time.perf_counter()
        head = f"{method} {path} HTTP/1.1\r\n{self._headers}"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._writer.write(head.encode() + b"\r\n" + body)
        found = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(found)
        content = await self._reader.readexactly(int(length[1])) if length else b""
        return Answer(int(found[9:12]), content, time.perf_counter() - started)


class Request(NamedTuple):
    method: str
    path: str
    body: bytes = b""


def seconds_for(url: str, key: str | None, requests: Sequence[Request], *, connections: int, status: int) -> float:
    """From the first request to the last answer, on so many connections at once. Raises when one is not answered by
    that status."""

    async def run() -> float:
        waiting = list(reversed(requests))

        async def one(connection: Connection) -> None:
            while waiting:
                answer = await connection.ask(*waiting.pop())
                if answer.status != status:
                    raise RuntimeError(f"answered {answer.status}: {answer.body[:500]!r}")

        async with AsyncExitStack() as opened:
            ready = [await opened.enter_async_context(Connection(url, key)) for _ in range(connections)]
            started = time.perf_counter()
            await asyncio.gather(*(one(connection) for connection in ready))
            return time.perf_counter() - started

    return asyncio.run(run())
