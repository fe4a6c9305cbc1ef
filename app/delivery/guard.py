"""Connections to addresses that somebody else has chosen: to a public one, or not at all, and not to hear it out.

What is looked at is the address that is connected to, and nothing is looked up between the two: a name that answers
otherwise a moment later gains nothing by that.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from httpcore import (
    SOCKET_OPTION,
    AnyIOBackend,
    AsyncNetworkBackend,
    AsyncNetworkStream,
    ConnectError,
    ConnectTimeout,
    ReadError,
)

from app.core.peers import may_connect

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host, for a port. Raises OSError."""


MOST_READ = 32_768
"""Bytes of an answer, its head included. Before its head may come any number of preliminary ones (100 Continue)."""

_AT_ONCE = 4_096
"""Bytes: what is read at once is parsed at once, while all others wait."""


class PeerRefused(Exception):
    """The host has no address, or one that may not be connected to; which of the two is nobody's business."""


class Resolver:
    """The system's. It cannot be interrupted, so that each look-up has a thread: a slow name server holds up nobody."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolver")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(sockaddr[0]) for *_, sockaddr in found]


class GuardedBackend(AsyncNetworkBackend):
    """Looks a host up by itself, and connects to what it has found by its number."""

    def __init__(self, resolve: Resolve, *, allow_private: bool, network: AsyncNetworkBackend | None = None) -> None:
        self._resolve, self._allow_private = resolve, allow_private
        self._network = network or AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> AsyncNetworkStream:
        """Raises PeerRefused, and what httpcore raises."""
        failure: ConnectError | ConnectTimeout | None = None
        for address in await self._addresses(host, port):
            try:
                stream = await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (ConnectError, ConnectTimeout) as error:
                failure = error
                continue
            return await self._checked(stream)
        raise failure or PeerRefused(host)

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        try:
            found = await self._resolve(host, port)
        except (OSError, UnicodeError):
            found = []
        # One that is not public spoils them all: no honest name has both.
        if not all(self._may_connect(address) for address in found):
            raise PeerRefused(host)
        return found

    async def _checked(self, stream: AsyncNetworkStream) -> AsyncNetworkStream:
        """Asked again of the connection itself: between us and the network may be what we know nothing of."""
        peer = stream.get_extra_info("server_addr")
        if not self._may_connect(peer[0]):
            await stream.aclose()
            raise PeerRefused(peer[0])
        return _Bounded(stream)

    def _may_connect(self, address: str) -> bool:
        return may_connect(address, allow_private=self._allow_private)


class _Bounded(AsyncNetworkStream):
    """Of which so much can be read and no more."""

    def __init__(self, stream: AsyncNetworkStream) -> None:
        self._stream, self._left = stream, MOST_READ

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Raises ReadError where it has said too much."""
        if self._left <= 0:
            raise ReadError("the answer goes on and on")
        part = await self._stream.read(min(max_bytes, _AT_ONCE), timeout)
        self._left -= len(part)
        return part

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncNetworkStream:
        return _Bounded(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
