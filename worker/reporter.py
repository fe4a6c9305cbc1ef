"""What an attempt's run tells, passed on to its heart; and the checkpoints that it leaves on the way."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import JsonValue

from app.contract.report import EpochMetrics
from app.contract.spec import PruneSpec, StoredSpec, TrainSpec
from app.contract.status import Phase
from app.db.attempts import Checkpoint
from app.db.moves import NewEvent
from app.storage import write_durably
from worker.engine.observer import Observer
from worker.engine.resume import TrainingState
from worker.heart import Heart
from worker.trace import AttemptTrace

logger = logging.getLogger(__name__)


def _epochs_done(spec: TrainSpec | PruneSpec, last: EpochMetrics) -> int:
    """Of all courses, since each counts its own."""
    if last.course == "training" or spec.fine_tuning is None:
        return last.epoch
    before = spec.training.epochs if isinstance(spec, TrainSpec) else 0
    return before + ((last.round or 1) - 1) * spec.fine_tuning.epochs + last.epoch


class Keeper:
    """Writes the states of a training from which a later attempt may go on: one an epoch, more in long ones."""

    def __init__(self, heart: Heart, folder: Path, attempt: int, every_seconds: float) -> None:
        self._heart, self._folder, self._attempt, self._every = heart, folder, attempt, every_seconds
        self._last = time.monotonic()
        self._written = 0

    def offer(self, state: Callable[[], TrainingState], epoch_ended: bool) -> None:
        if not epoch_ended and time.monotonic() - self._last < self._every:
            return
        self._written += 1
        path = self._folder / f"{self._attempt}-{self._written}.pt"
        try:
            content = state().to_bytes()
            write_durably(path, content)
        except OSError as error:
            # Without it a later attempt has more to do again, and that is all: no reason to end this one.
            logger.warning("checkpoint not written", extra={"file": path.name, "error": str(error)})
        else:
            self._heart.reference(Checkpoint(path.name, hashlib.sha256(content).hexdigest()))
        self._last = time.monotonic()


class Reporter(Observer):
    """Passes on what the engine tells, and ends the run when the heart says so."""

    def __init__(self, heart: Heart, trace: AttemptTrace, spec: StoredSpec, keeper: Keeper) -> None:
        self._heart, self._trace, self._keeper = heart, trace, keeper
        self._spec = spec
        # Trainings may be done out of the attempt's own context, where entries would not say what they are about.
        self._context = copy_context()
        self._training_began: float | None = None
        self._done_here = 0
        self._finish_at: str | None = None

    def enter(self, phase: Phase) -> None:
        self._heart.check()
        self._heart.enter(phase)
        self._trace.enter(phase)
        if phase in (Phase.TRAINING, Phase.FINE_TUNING) and self._training_began is None:
            self._training_began = time.monotonic()

    def advance(self, completed: int, total: int, unit: str) -> None:
        self._heart.check()
        self._heart.progress(
            {
                "completed": completed,
                "total": total,
                "unit": unit,
                "fraction": round(completed / total, 4) if total else 1.0,
                "updated_at": datetime.now(UTC).isoformat(),
                "estimated_finish_at": self._finish_at,
            }
        )

    def check(self) -> None:
        self._heart.check()

    def record(self, type: str, data: dict[str, JsonValue]) -> None:
        self._heart.event(NewEvent(type, data))
        spec = self._spec
        if type == "epoch" and self._training_began is not None and isinstance(spec, TrainSpec | PruneSpec):
            self._done_here += 1  # an attempt that went on from a checkpoint took no time for the epochs before
            to_do = spec.epochs - _epochs_done(spec, EpochMetrics.model_validate(data))
            left = (time.monotonic() - self._training_began) / self._done_here * to_do
            self._finish_at = (datetime.now(UTC) + timedelta(seconds=left)).isoformat()

    def checkpoint(self, state: Callable[[], TrainingState], epoch_ended: bool) -> None:
        self._context.run(self._keeper.offer, state, epoch_ended)
