"""How bytes travel and time passes: blocking, or on asyncio's loop. All else is written once, above this."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import httpx

T = TypeVar("T")

_UPLOAD_BYTES = 1 << 18


class Transport(Protocol):
    def open(self, request: httpx.Request, *, follow_redirects: bool) -> AbstractAsyncContextManager[httpx.Response]:
        """The answer, its body still to come."""

    async def read(self, response: httpx.Response) -> None:
        """Read the body into the answer."""

    def pieces(self, response: httpx.Response) -> AsyncGenerator[bytes]:
        """The body as it comes."""

    async def sleep(self, seconds: float) -> None: ...

    async def disk(self, work: Callable[[], T]) -> T:
        """Do what waits for a disk."""

    async def close(self) -> None: ...


class Blocking:
    """Each await is over when it returns, so that `run` can do without a loop."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    @asynccontextmanager
    async def open(self, request: httpx.Request, *, follow_redirects: bool) -> AsyncIterator[httpx.Response]:
        response = self._http.send(request, stream=True, follow_redirects=follow_redirects)
        try:
            yield response
        finally:
            response.close()

    async def read(self, response: httpx.Response) -> None:
        response.read()

    async def pieces(self, response: httpx.Response) -> AsyncGenerator[bytes]:
        for piece in response.iter_bytes():
            yield piece

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def disk(self, work: Callable[[], T]) -> T:
        return work()

    async def close(self) -> None:
        self._http.close()


class OnLoop:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    @asynccontextmanager
    async def open(self, request: httpx.Request, *, follow_redirects: bool) -> AsyncIterator[httpx.Response]:
        response = await self._http.send(request, stream=True, follow_redirects=follow_redirects)
        try:
            yield response
        finally:
            await response.aclose()

    async def read(self, response: httpx.Response) -> None:
        await response.aread()

    async def pieces(self, response: httpx.Response) -> AsyncGenerator[bytes]:
        async for piece in response.aiter_bytes():
            yield piece

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def disk(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    async def close(self) -> None:
        await self._http.aclose()


class FileBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A file as a request's body, from its first byte each time that it is sent."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while piece := file.read(_UPLOAD_BYTES):
                yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        file = await asyncio.to_thread(self._path.open, "rb")
        with file:
            while piece := await asyncio.to_thread(file.read, _UPLOAD_BYTES):
                yield piece


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of what is made of Blocking's awaits alone: one step takes it to its end."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    coroutine.close()
    raise RuntimeError("Something has waited for an event loop, and there is none.")


_OVER: Any = object()


def iterate(source: AsyncGenerator[T]) -> Iterator[T]:
    """The same for what gives several results; it is closed together with the iterator."""

    async def following() -> T:
        return await anext(source, _OVER)

    try:
        while (found := run(following())) is not _OVER:
            yield found
    finally:
        run(source.aclose())
