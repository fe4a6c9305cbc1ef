"""The sweeper: every stuck job gets its way out, every due message is sent, every ended job's folder is tidied.

API processes and workers each run one. Any number may run at once, and any of them may be killed anywhere.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from sqlalchemy.orm import Session, sessionmaker

from app.db import members, metrics, sweep, tenants, turns, webhooks, workers
from app.db.session import AWAY
from app.queue import Queue
from app.storage import ArtifactStore

logger = logging.getLogger(__name__)

ORPHANED_SECONDS = 86_400
"""An upload that nobody has written to for so long, and that is no job's, is not going to be: no request takes as long
(`upload_seconds`)."""


@dataclass(frozen=True)
class Round:
    """What one round of sweeping needs, and the round itself."""

    sessions: sessionmaker[Session]
    queue: Queue
    store: ArtifactStore
    max_attempts: int
    max_running: int
    """Of a tenant without a cap of its own."""

    def run(self) -> None:
        """Moves first, in one transaction; messages and files after its commit. A step that fails does not keep the
        later ones from their turn: it may fail each time. Raises what failed, at the end."""
        failures: list[Exception] = []
        for step in (
            self._move,
            self._settle,
            self._send,
            self._expire,
            self._reap,
            self._tidy,
            self._tidy_uploads,
        ):
            try:
                step()
            except Exception as error:
                failures.append(error)
        if failures:
            raise ExceptionGroup("steps of a sweep failed", failures)

    def _move(self) -> None:
        with self.sessions.begin() as session:
            moved = sweep.sweep(session, max_attempts=self.max_attempts)
            for action, job_ids in moved.items():
                for job_id in job_ids:
                    logger.warning("swept", extra={"action": action, "job_id": job_id})
            workers.forget_old(session)
            tenants.lock_in_order(session, [job_id for job_ids in moved.values() for job_id in job_ids])

    def _settle(self) -> None:
        """Of sweeps: some have waited for too long, and who moved a member may have died before telling its sweep. One
        transaction each: it locks the rows of one sweep and of its members."""
        while (late := self._cancel_overdue()) is not None:
            logger.warning("members cancelled", extra={"job_id": late, "reason": "sweep_timeout"})
        with self.sessions() as session:
            found = members.unsettled(session)
        for sweep_id in found:
            with self.sessions.begin() as session:
                members.settle(session, sweep_id)

    def _cancel_overdue(self) -> str | None:
        with self.sessions.begin() as session:
            return members.cancel_overdue(session)

    def _send(self) -> None:
        """Send what is due; all that is queued when the broker is not the one that it was given to."""
        broker = self.queue.look()
        if broker is None:
            return  # the rest comes when it is due again
        with self.sessions.begin() as session:
            if broker.is_new:
                logger.warning("the broker is new or was emptied", extra={"queued": sweep.make_all_due(session)})
            due = sweep.due_messages(session, waiting=broker.waiting)
        if due and not self.queue.wake_all(due):
            with self.sessions.begin() as session:
                sweep.make_due(session, due)
        elif broker.is_new:
            # Last: had this process died before, another would have sent them all again.
            self.queue.mark()
        elif not (due or broker.waiting):
            self._wake_next()

    def _wake_next(self) -> None:
        """Messages may be fewer than jobs that can be begun: one was lost, or came while the cap of a tenant held, and
        whoever then made room for the job, or raised the cap, could not tell."""
        with self.sessions.begin() as session:
            job_id = turns.next_job(session, max_running=self.max_running)
        if job_id is not None:
            self.queue.wake(job_id)

    def _expire(self) -> None:
        with self.sessions.begin() as session:
            expired = sweep.expire(session)
            for job_id in expired:
                logger.info("retention is over", extra={"job_id": job_id})
            sweep.forget(session)
            webhooks.forget(session)
            metrics.fold(session)
            tenants.lock_in_order(session, expired)

    def _reap(self) -> None:
        """The mark was first, so that nobody is sent to what is half gone; then come bytes, then rows. Whoever is
        killed in between leaves a mark that brings the next one here."""
        with self.sessions.begin() as session:
            if found := sweep.doomed(session):
                sweep.buried(session, [job_id for job_id in found if self._is_removed(job_id)])

    def _is_removed(self, job_id: str) -> bool:
        try:
            self.store.remove(job_id)
            self.store.drop_upload(job_id)
        except OSError as error:
            logger.warning("could not purge, will try again", extra={"job_id": job_id, "error": str(error)})
            return False
        return True

    def _tidy(self) -> None:
        with self.sessions.begin() as session:
            if found := sweep.untidied(session):
                sweep.tidied(session, [ended.job_id for ended in found if self._is_tidy(ended)])

    def _is_tidy(self, ended: sweep.Ended) -> bool:
        try:
            self.store.tidy(*ended)
        except OSError as error:
            logger.warning("could not tidy, will try again", extra={"job_id": ended.job_id, "error": str(error)})
            return False
        return True

    def _tidy_uploads(self) -> None:
        """An upload goes when its job no longer needs it. One without a job still arrives, or is about to get its job;
        after a day, neither is so any more."""
        found = self.store.uploads()
        if not found:
            return
        with self.sessions.begin() as session:
            needed = sweep.uploads_needed(session, found)
        for job_id, age in found.items():
            if not needed.get(job_id, age < ORPHANED_SECONDS):
                try:
                    self.store.drop_upload(job_id)
                except OSError as error:
                    logger.warning("upload not removed, will try again", extra={"job_id": job_id, "error": str(error)})


class Sweeper:
    """Sweeps every so often, and when it is woken, on a thread of its own, from `start` to `stop`."""

    def __init__(self, round_: Round, *, interval_seconds: float) -> None:
        self._round, self._interval = round_, interval_seconds
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Sweep now."""
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=self._interval + 10)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._interval)
            self._wake.clear()
            if not self._stopping:
                self._sweep()

    def _sweep(self) -> None:
        try:
            self._round.run()
        except* AWAY as failures:
            logger.warning("sweep failed, will try again", extra={"error": str(failures.exceptions[0])})
        except* Exception:  # a sweeper that died unseen would leave every stuck job stuck
            logger.exception("sweep failed, will try again")
