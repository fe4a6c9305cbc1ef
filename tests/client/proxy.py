"""A TCP proxy that cuts connections after so many bytes of what the server says."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from urllib.parse import urlsplit

_PIECE = 65536
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """The first connection is cut after `cuts[0]` bytes of the answer, and so on; what follows the list is let through.
    `said` counts the bytes that went to the client, connection by connection."""

    def __init__(self, target: tuple[str, int], cuts: Sequence[int]) -> None:
        self._target, self._cuts = target, [*cuts]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.said: list[int] = []

    def serve(self) -> None:
        """Until the listener is closed."""
        threads = []
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                number = len(self.said)
                self.said.append(0)
                threads.append(Thread(target=self._connection, args=[client, number]))
                threads[-1].start()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        # Closing alone would not wake who accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _connection(self, client: socket.socket, number: int) -> None:
        with client, socket.create_connection(self._target) as server:
            upward = Thread(target=_copy, args=[client, server])
            upward.start()
            left = self._cuts[number] if number < len(self._cuts) else None
            with contextlib.suppress(OSError):
                while piece := server.recv(_PIECE if left is None else min(left, _PIECE)) if left != 0 else b"":
                    client.sendall(piece)
                    self.said[number] += len(piece)
                    left = None if left is None else left - len(piece)
                if left == 0:
                    if not self.said[number]:
                        server.recv(1)  # cut once the server has answered: what it was asked for is done
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        upward.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def cutting(url: str, *cuts: int) -> Iterator[Proxy]:
    """A proxy before the server at `url`."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    proxy = Proxy((address.hostname, address.port), cuts)
    thread = Thread(target=proxy.serve)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join()
