"""Who waits for a job to change, without a thread or a connection each: one connection a process listens for all."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from app.db.session import CONNECT_SECONDS, KEEPALIVE

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 1.0


class Changes:
    """Wakes those who wait for a job when the database tells that its revision has grown.

    A notice may be missed while the connection is away, so that a waiter looks again by itself in the end; when the
    connection is back, all are woken.
    """

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._leaving = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def leaving(self) -> bool:
        """Whether the process is about to end: nobody should wait any longer."""
        return self._leaving

    @contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job may have changed; whoever has looked clears it, and before that."""
        event = asyncio.Event()
        self._waiting[job_id].add(event)
        try:
            yield event
        finally:
            waiting = self._waiting[job_id]
            waiting.discard(event)
            if not waiting:
                del self._waiting[job_id]

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name="changes of jobs")

    def leave(self) -> None:
        """Send everybody home with what there is. May be called from a signal handler."""
        self._leaving = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake_all)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        import psycopg  # as SQLAlchemy does, when it is wanted

        while True:
            try:
                await self._listen()
            except (psycopg.Error, OSError) as error:
                logger.warning("no notices of changes, will try again", extra={"error": str(error)})
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen(self) -> None:
        import psycopg

        options: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "application_name": "secateur changes"}
        connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True, **options, **KEEPALIVE)
        async with connection:
            await connection.execute("LISTEN jobs")
            self._wake_all()
            async for notice in connection.notifies():
                for event in self._waiting.get(notice.payload, ()):
                    event.set()

    def _wake_all(self) -> None:
        for events in self._waiting.values():
            for event in events:
                event.set()
