"""The server process."""

from __future__ import annotations

import gc
import socket
import sys
from types import FrameType

import uvicorn

from app.api.main import create_app
from app.core.settings import Settings

GRACE_SECONDS = 10
"""What requests have left when the process is told to end."""

KEEP_ALIVE_SECONDS = 75
"""What a connection may rest between two requests: longer than a client is ever told to wait before it comes again, or
its next request would now and then meet the end of its connection."""

COLLECT_AFTER = (10_000, 20, 50)
"""New objects, young collections, and middle ones, until the garbage collector looks through the young, the middle and
the old. A request makes thousands of objects, and hardly any garbage that is not freed at once: by Python's own
thresholds, looking for it took up to a fifth of what a read of a job takes."""


class Server(uvicorn.Server):
    """Sends those home who wait for something to change, and only then waits for all requests to end."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.freeze()  # what is here now stays
        gc.set_threshold(*COLLECT_AFTER)
        gc.enable()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.changes.leave()  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def serve(settings: Settings, *, host: str, port: int) -> None:
    """Serve until a signal ends it."""
    gc.disable()  # nearly all that a start makes is there to stay
    config = uvicorn.Config(
        create_app(settings),
        host=host,
        port=port,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        http="h11",  # also where httptools is installed, which puts no bound on a request's headers
        access_log=False,
        log_config=None,
    )
    try:
        Server(config).run()
    except SystemExit:  # uvicorn's own code for an address that is taken is ours for something else
        sys.exit(1)
