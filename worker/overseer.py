"""Beside the process that receives messages: ends a job process that does not stop, frees the jobs of one that is gone,
and ends the worker itself when it no longer takes messages, for its supervisor to start it again."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy.orm import Session, sessionmaker

from app.contract.status import Status
from app.db import attempts, workers
from app.db.session import AWAY
from app.queue import Queue
from app.sweeping import Sweeper
from worker import identity

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
KILL_AFTER_SECONDS = 2.0
"""From the polite signal to SIGKILL."""

START_SECONDS = 60.0
"""A message may have been fetched for a job process that still imports torch."""

EXIT_CODE = os.EX_SOFTWARE


@dataclass(frozen=True)
class Consumer:
    """What the overseer may know of Celery: its job processes, whether one of them has a task, how many it has had."""

    job_processes: Callable[[], Sequence[int]]
    is_busy: Callable[[], bool]
    tasks_taken: Callable[[], int]


@dataclass
class _Patience:
    """How long one and the same thing has been so."""

    limit: float
    _what: object = None
    _since: float = field(default_factory=time.monotonic)

    def is_over(self, what: object) -> bool:
        """Whether `what` has been the answer for longer than the limit; None is nothing to wait for."""
        if what is None or what != self._what:
            self._what, self._since = what, time.monotonic()
        return what is not None and time.monotonic() - self._since > self.limit


class Overseer:
    """Looks every second, and when it is woken, on a thread of its own, from `start` to `stop`."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        queue: Queue,
        sweeper: Sweeper,
        consumer: Consumer,
        *,
        grace_seconds: float,
        watchdog_seconds: float,
    ) -> None:
        self._sessions, self._queue, self._sweeper, self._consumer = sessions, queue, sweeper, consumer
        self._polite, self._forceful = _Patience(grace_seconds), _Patience(grace_seconds + KILL_AFTER_SECONDS)
        self._idle, self._stuck = _Patience(watchdog_seconds), _Patience(2 * watchdog_seconds + START_SECONDS)
        self._asked: str | None = None
        self._pids: tuple[int, ...] = ()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="overseer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look now: a job process has gone."""
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            try:
                self._look()
            except AWAY as error:
                logger.warning("could not look after the job process", extra={"error": str(error)})
            except Exception:  # an overseer that died unseen would leave its worker to itself
                logger.exception("could not look after the job process")

    def _look(self) -> None:
        with self._sessions.begin() as session:
            # In this order: a process that is there has got its leases since the look at them, never lost them.
            leases = attempts.leases(session, identity.worker_id())
            pids = tuple(self._consumer.job_processes())
            if pids != self._pids:
                # A new job process is at nothing until it says so; what the last one was at is not held against it.
                workers.idle(session, identity.worker_id())
                self._pids = pids
            job_id = workers.working_on(session, identity.worker_id())
            living = {identity.owner(pid) for pid in pids}
            lost = [lease for lease in leases if lease.owner not in living]
            for lease in lost:
                logger.warning("job process lost", extra={"job_id": lease.job_id, "owner": lease.owner})
                attempts.expire_leases(session, lease.owner)
        if lost:
            self._sweeper.wake()
        wanted = {lease.job_id for lease in leases if lease.status == Status.RUNNING}
        self._escalate(job_id if job_id not in wanted else None, pids)
        self._watch(has_lease=bool(leases), pids=pids)

    def _escalate(self, unwanted: str | None, pids: Sequence[int]) -> None:
        """End a job process that goes on with a job which was cancelled, or taken from it, and does not notice."""
        polite, forceful = self._polite.is_over(unwanted), self._forceful.is_over(unwanted)
        if forceful:
            self._signal(signal.SIGKILL, unwanted, pids)
        elif polite and self._asked != unwanted:
            # What Celery itself ends a job process with, see REMAP_SIGTERM: the attempt gets SystemExit. Once: a second
            # one would end it amid its last write.
            self._signal(signal.SIGQUIT, unwanted, pids)
        self._asked = unwanted if polite else None

    def _signal(self, number: signal.Signals, job_id: str | None, pids: Sequence[int]) -> None:
        for pid in pids:
            logger.warning("ending the job process", extra={"job_id": job_id, "signal": number.name, "pid": pid})
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _watch(self, *, has_lease: bool, pids: Sequence[int]) -> None:
        """End the worker when messages wait and it takes none, or when one that it took leads to no attempt."""
        taken, busy = self._consumer.tasks_taken(), self._consumer.is_busy()
        broker = None if has_lease or busy else self._queue.look()
        if self._idle.is_over(taken if broker and broker.waiting else None):
            self._end_worker("messages wait and this worker takes none", pids)
        if self._stuck.is_over(taken if busy and not has_lease else None):
            self._end_worker("a message was taken and no attempt comes of it", pids)

    def _end_worker(self, why: str, pids: Sequence[int]) -> None:
        logger.critical("ending this worker: %s", why)
        self._signal(signal.SIGKILL, None, pids)
        # The main thread may hang anywhere: nothing of it can be relied upon to end.
        os._exit(EXIT_CODE)
