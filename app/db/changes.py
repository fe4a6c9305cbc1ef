"""Who waits for a job to change, without a thread or a connection each: one connection a process listens for all."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from app.core.pace import Pace
from app.db.session import CONNECT_SECONDS, KEEPALIVE

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 1.0

PROGRESS_A_SECOND = 20
"""Of those who are patient, so many are told of mere progress. A thousand that wait for one job would otherwise ask for
it as often as it makes a step, and leave no time for anything else."""

_CHANGES, _PROGRESS = "jobs", "jobs_progress"
"""What the database calls them: what became of a job, and how far it has come."""


@dataclass(eq=False)
class Waiter:
    """Somebody who waits for a job to change."""

    patient: bool
    event: asyncio.Event = field(default_factory=asyncio.Event)
    due: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        self.due = None
        self.event.set()


class Changes:
    """Wakes those who wait for a job when the database tells that its revision has grown.

    A notice may be missed while the connection is away, so that a waiter looks again by itself in the end; when the
    connection is back, all are woken.
    """

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._waiting: dict[str, set[Waiter]] = defaultdict(set)
        self._pace = Pace(PROGRESS_A_SECOND)
        self._leaving = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def leaving(self) -> bool:
        """Whether the process is about to end: nobody should wait any longer."""
        return self._leaving

    @contextmanager
    def of(self, job_id: str, *, patient: bool = False) -> Iterator[Waiter]:
        """Whose event is set whenever the job may have changed; whoever has looked clears it, and before that. To the
        patient, progress is told when it is their turn, the rest at once."""
        waiter = Waiter(patient)
        self._waiting[job_id].add(waiter)
        try:
            yield waiter
        finally:
            if waiter.due is not None:
                waiter.due.cancel()
            waiting = self._waiting[job_id]
            waiting.discard(waiter)
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
            await connection.execute(f"LISTEN {_CHANGES}; LISTEN {_PROGRESS}")
            self._wake_all()
            async for notice in connection.notifies():
                for waiter in self._waiting.get(notice.payload, ()):
                    self._tell(waiter, mere_progress=notice.channel == _PROGRESS)

    def _tell(self, waiter: Waiter, *, mere_progress: bool) -> None:
        if mere_progress and waiter.patient:
            self.take_turn(waiter)
        else:
            waiter.wake()

    def take_turn(self, waiter: Waiter) -> None:
        """Wake one who is patient when it is its turn, unless it waits for that already."""
        if waiter.due is None:
            waiter.due = asyncio.get_running_loop().call_later(self._pace.turn(), waiter.wake)

    def _wake_all(self) -> None:
        for waiters in self._waiting.values():
            for waiter in waiters:
                waiter.wake()
