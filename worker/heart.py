"""The heartbeat of an attempt: a thread that renews the lease, stores progress, events and the place to go on from,
and learns of a cancel."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from app.contract.status import Phase, Status
from app.db import attempts
from app.db.attempts import Checkpoint, Claim
from app.db.moves import NewEvent

logger = logging.getLogger(__name__)

GIVE_UP = 0.8
"""A worker that could not beat for this share of the lease stops by itself, before somebody else starts."""

KEPT_CHECKPOINTS = 2
"""The newest, and the one before it in case that one is damaged."""


class AttemptStopped(Exception):
    """The run must end here."""


class CancelRequested(AttemptStopped):
    """The client wants the job cancelled."""


class Fenced(AttemptStopped):
    """The attempt has lost the job: another one owns it now, or it has ended. Nothing may be written any more."""


class OutOfTouch(AttemptStopped):
    """No beat for most of the lease: the database is away, and by its return somebody else may have the job."""


class Unstored(NamedTuple):
    """What no beat has stored: it goes with the last write."""

    events: list[NewEvent]
    checkpoints: Sequence[Checkpoint]


class Heart:
    """Beats from `start` to `stop`. The run reports to it and asks `check` whether to go on.

    `checkpoints` are those of the claim that are whole, in `folder`, where the run puts its own.
    """

    def __init__(
        self,
        sessions: sessionmaker[Session],
        claim: Claim,
        folder: Path,
        checkpoints: Sequence[Checkpoint],
        *,
        beat_seconds: float,
        lease_seconds: float,
    ) -> None:
        self._sessions, self._claim, self._folder = sessions, claim, folder
        self._beat_seconds, self._lease_seconds = beat_seconds, lease_seconds
        self._lock = threading.Lock()
        self._phase: str = Phase.PREPARING_DATA
        self._progress: Mapping[str, Any] | None = None
        self._events: list[NewEvent] = []
        self._stored: Sequence[Checkpoint] = claim.checkpoints
        self._checkpoints = checkpoints
        self._status: Status | None = Status.RUNNING
        self._last_beat = time.monotonic()
        self._stopping = threading.Event()
        # In the attempt's context, so that its log entries say what they are about.
        run = copy_context().run
        self._thread = threading.Thread(target=run, args=[self._run], name=f"heart of {claim.job_id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> Unstored:
        """End the beating. Returns what is not stored yet."""
        self._stopping.set()
        self._thread.join()
        return Unstored(self._events, self._checkpoints)

    @property
    def phase(self) -> str:
        return self._phase

    def enter(self, phase: str) -> None:
        with self._lock:
            self._phase, self._progress = phase, None
            self._events.append(NewEvent("phase", {"phase": phase}))

    def progress(self, progress: Mapping[str, Any]) -> None:
        # One assignment: whole or not at all for the other thread.
        self._progress = {"phase": self._phase, **progress}

    def event(self, event: NewEvent) -> None:
        with self._lock:
            self._events.append(event)

    def reference(self, checkpoint: Checkpoint) -> None:
        """From the next beat on, a later attempt may go on from this file, which is written."""
        with self._lock:
            self._checkpoints = [checkpoint, *self._checkpoints]

    def check(self) -> None:
        """Raise what must end the run, if anything must."""
        if self._status is Status.CANCELLING:
            raise CancelRequested
        if self._status is not Status.RUNNING:
            raise Fenced
        if time.monotonic() - self._last_beat > GIVE_UP * self._lease_seconds:
            raise OutOfTouch

    def _run(self) -> None:
        while not self._stopping.wait(self._beat_seconds):
            try:
                self._beat()
            except SQLAlchemyError as error:
                logger.warning("beat failed, will try again", extra={"error": str(error)})
            if self._status is None:
                return

    def _beat(self) -> None:
        with self._lock:
            phase, progress, events, written = self._phase, self._progress, list(self._events), self._checkpoints
        kept = written[:KEPT_CHECKPOINTS]
        # Taken before the write: the lease counts from the database's receipt, which is later.
        began = time.monotonic()
        with self._sessions.begin() as session:
            status = attempts.beat(
                session,
                self._claim.job_id,
                self._claim.attempt,
                lease_seconds=self._lease_seconds,
                phase=phase,
                progress=progress,
                checkpoints=kept if kept != self._stored else None,
                new_events=events,
            )
        with self._lock:
            del self._events[: len(events)]
        self._status, self._last_beat = status, began
        if status is not None:
            self._stored = kept
            self._drop(written)

    def _drop(self, written: Sequence[Checkpoint]) -> None:
        """Remove the files that no row names any more."""
        for old in written[KEPT_CHECKPOINTS:]:
            try:
                (self._folder / old.name).unlink(missing_ok=True)
            except OSError as error:  # tidied with the rest at the job's end
                logger.warning("old checkpoint not removed", extra={"file": old.name, "error": str(error)})
        dropped = set(written[KEPT_CHECKPOINTS:])
        with self._lock:
            self._checkpoints = [each for each in self._checkpoints if each not in dropped]
