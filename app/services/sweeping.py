"""One round of the sweeper: every stuck job gets its way out, every due message is sent."""

from __future__ import annotations

import logging
import threading

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app.db import jobs, workers
from app.queue import Queue

logger = logging.getLogger(__name__)


def sweep_once(sessions: sessionmaker[Session], queue: Queue, *, max_attempts: int) -> None:
    """Transitions first, in one transaction; messages after its commit."""
    with sessions.begin() as session:
        for action, job_ids in jobs.sweep(session, max_attempts=max_attempts).items():
            for job_id in job_ids:
                logger.warning("swept", extra={"action": action, "job_id": job_id})
        workers.forget_old(session)
    with sessions.begin() as session:
        due = jobs.due_messages(session)
    for job_id in due:
        if not queue.wake(job_id):
            return  # the rest comes when it is due again


class Sweeper:
    """Sweeps every so often on a thread of its own, from `start` to `stop`. Any number may run at once."""

    def __init__(
        self, sessions: sessionmaker[Session], queue: Queue, *, interval_seconds: float, max_attempts: int
    ) -> None:
        self._sessions, self._queue = sessions, queue
        self._interval, self._max_attempts = interval_seconds, max_attempts
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=self._interval + 10)

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            try:
                sweep_once(self._sessions, self._queue, max_attempts=self._max_attempts)
            except OperationalError as error:
                logger.warning("sweep failed, will try again", extra={"error": str(error.orig)})
            except Exception:  # a sweeper that died unseen would leave every stuck job stuck
                logger.exception("sweep failed, will try again")
