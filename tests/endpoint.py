"""A real HTTP server that answers as it is told, and keeps what it was sent."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import NamedTuple

from tests.waiting import wait_until


class Received(NamedTuple):
    path: str
    headers: Mapping[str, str]
    body: bytes


class Endpoint:
    """Answers with `status`, as soon as it `may_answer`, and ends the answer when it `may_end`; with a body that
    `never_ends`, or without one. Where it `never_begins`, it says for ever that one may go on."""

    def __init__(self, server: ThreadingHTTPServer, scheme: str = "http") -> None:
        self.url = f"{scheme}://127.0.0.1:{server.server_port}/hook?of=tests"
        self.port = server.server_port
        self.status = 204
        self.headers: dict[str, str] = {}
        self.never_ends = False
        self.never_begins = False
        self.may_end = Event()
        self.may_end.set()
        self.may_answer = Event()
        self.may_answer.set()
        self.received: list[Received] = []

    def wait_for(self, count: int, *, timeout: float = 20) -> list[Received]:
        """The first requests, once there are so many."""
        wait_until(lambda: len(self.received) >= count, timeout=timeout, what=f"{count} requests at {self.url}")
        return self.received[:count]


@contextmanager
def endpoint(tls: ssl.SSLContext | None = None) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            running.received.append(Received(self.path, dict(self.headers.items()), body))
            running.may_answer.wait()
            while running.never_begins:
                self.wfile.write(1_000 * b"HTTP/1.1 100 Continue\r\n\r\n")
            self.send_response(running.status)
            for name, value in running.headers.items():
                self.send_header(name, value)
            self.end_headers()
            while running.never_ends:
                self.wfile.write(bytes(8_192))
            running.may_end.wait()

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: object) -> None:
            """Of a client that left amid a handshake, or did not wait: that is what it is tried with."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        running = Endpoint(server, "https" if tls else "http")
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield running
        finally:
            running.may_answer.set()
            running.may_end.set()
            server.shutdown()
            thread.join()
