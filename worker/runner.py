"""One attempt's life: claim, heartbeat, engine, publish, finish. Every write is fenced by the attempt's number."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app.contract.artifacts import ARTIFACTS
from app.contract.failure import Failure, FailureCode
from app.contract.result import CompareResult, NetworkResult
from app.contract.spec import CheckpointRef, CompareSpec, PruneSpec, TrainSpec, parse_spec
from app.contract.status import Phase, Status
from app.db import attempts, jobs
from app.db.attempts import Checkpoint, Claim, NewArtifact
from app.db.moves import NewEvent
from app.storage import ArtifactStore, is_intact, sha256_of, write_durably
from worker.engine import pipeline
from worker.engine.data import DatasetStore
from worker.engine.errors import EngineError, InvalidInput, translated
from worker.engine.observer import Observer
from worker.engine.resume import Recovery, TrainingState
from worker.heart import KEPT_CHECKPOINTS, AttemptStopped, CancelRequested, Heart
from worker.recent import RecentLog

logger = logging.getLogger(__name__)

T = TypeVar("T")

COMPARED_FILES = ("report.json", "histogram.json", "manifest.json")


@dataclass(frozen=True)
class Runtime:
    """What a worker process has, made once."""

    owner: str
    sessions: sessionmaker[Session]
    store: ArtifactStore
    datasets: DatasetStore
    heartbeat_seconds: float
    lease_seconds: float
    checkpoint_seconds: float


def run_job(job_id: str, runtime: Runtime) -> None:
    """Run a job to its end, unless it is not to be had: taken, ended, unknown. Then there is nothing to do."""
    with runtime.sessions.begin() as session:
        claim = attempts.claim(session, job_id, owner=runtime.owner, lease_seconds=runtime.lease_seconds)
    if claim is None:
        logger.info("nothing to claim", extra={"job_id": job_id})
        return
    logger.info("attempt started", extra={"job_id": job_id, "attempt": claim.attempt})
    outcome = _Attempt(claim, runtime).run()
    logger.info("attempt ended", extra={"job_id": job_id, "attempt": claim.attempt, "outcome": outcome})


class _Attempt:
    """What one claim leads to."""

    def __init__(self, claim: Claim, runtime: Runtime) -> None:
        self._claim, self._runtime = claim, runtime
        self._checkpoints = runtime.store.checkpoints(claim.job_id)
        self._heart = Heart(
            runtime.sessions,
            claim,
            self._checkpoints,
            beat_seconds=runtime.heartbeat_seconds,
            lease_seconds=runtime.lease_seconds,
        )
        self._log = RecentLog()

    def run(self) -> str:
        """Returns the job's status after it, or why this attempt has no say any more."""
        self._heart.start()
        with self._log.listening():
            return self._run()

    def _run(self) -> str:
        try:
            result, files = self._work()
            return self._finish(attempts.succeed, result=result.model_dump(mode="json"), files=files)
        except CancelRequested:
            return self._finish(attempts.cancelled)
        except AttemptStopped:
            return self._finish(None)
        except EngineError as error:
            return self._fail(error.code, str(error))
        except SystemExit:
            # The worker is shutting down: hand the job back at once instead of letting its lease run out.
            self._hand_back()
            raise
        except Exception as error:
            logger.exception("attempt failed on a bug", extra={"job_id": self._claim.job_id})
            message = f"An unexpected {type(error).__name__} in the worker; its log has the rest under this job's id."
            return self._fail(FailureCode.INTERNAL_ERROR, message)

    def _work(self) -> tuple[NetworkResult | CompareResult, list[NewArtifact]]:
        claim, store = self._claim, self._runtime.store
        # Read again and validated again: this process trusts the row no more than the API trusted the client.
        spec = parse_spec(claim.spec)
        with translated():
            staging = store.stage(claim.job_id, claim.attempt)
        result = pipeline.run(
            spec,
            datasets=self._runtime.datasets,
            inputs=_inputs(spec, claim.tenant, self._runtime),
            out=staging,
            observer=_Reporter(self._heart, spec, self._keeper()),
            recovery=Recovery(claim.attempt, tuple(self._intact_checkpoints())),
        )
        self._heart.enter(Phase.PUBLISHING)
        with translated():
            files = [_described(path) for path in sorted(staging.iterdir())]
            self._heart.check()
            store.publish(claim.job_id, claim.attempt)
        return result, files

    def _keeper(self) -> _Keeper:
        return _Keeper(self._heart, self._checkpoints, self._claim.attempt, self._runtime.checkpoint_seconds)

    def _intact_checkpoints(self) -> Iterator[Path]:
        """Those that are still what was written; a damaged one is passed over for the one before it."""
        for checkpoint in self._claim.checkpoints:
            path = self._checkpoints / checkpoint.name
            try:
                if sha256_of(path) == checkpoint.sha256:
                    yield path
                    continue
                why = "damaged"
            except OSError as error:
                why = str(error)
            logger.warning(
                "checkpoint passed over", extra={"job_id": self._claim.job_id, "file": checkpoint.name, "why": why}
            )

    def _fail(self, code: FailureCode, message: str) -> str:
        failure = Failure.of(
            code, message, attempt=self._claim.attempt, phase=self._heart.phase, log=list(self._log.lines)
        )
        return self._finish(attempts.fail, with_checkpoints=True, failure=failure)

    def _hand_back(self) -> str:
        return self._finish(attempts.drain, with_checkpoints=True)

    def _finish(self, end: Callable[..., Status | None] | None, *, with_checkpoints: bool = False, **told: Any) -> str:
        """The last write of the attempt. Whatever is not a success leaves no file behind, but to go on from."""
        left = self._heart.stop()
        if with_checkpoints:
            told["checkpoints"] = left.checkpoints[:KEPT_CHECKPOINTS]
        status = None
        if end:
            status = self._persistently(
                lambda session: end(session, self._claim.job_id, self._claim.attempt, new_events=left.events, **told)
            )
        if status is not Status.SUCCEEDED:
            self._runtime.store.discard(self._claim.job_id, self._claim.attempt)
        return str(status or "fenced")

    def _persistently(self, write: Callable[[Session], T]) -> T | None:
        """Write, and while the database is away try again, for as long as the lease may last."""
        until = time.monotonic() + self._runtime.lease_seconds
        while True:
            try:
                with self._runtime.sessions.begin() as session:
                    return write(session)
            except OperationalError as error:
                logger.warning("last write failed", extra={"job_id": self._claim.job_id, "error": str(error)})
                if time.monotonic() > until:
                    return None
                time.sleep(self._runtime.heartbeat_seconds)


def _inputs(spec: TrainSpec | PruneSpec | CompareSpec, tenant: str, runtime: Runtime) -> Mapping[str, Path]:
    """The folders of the jobs that the spec names, their files checked. Raises InvalidInput."""
    with runtime.sessions.begin() as session:
        return {job_id: _input(session, tenant, job_id, names, runtime.store) for job_id, names in _needs(spec)}


def _needs(spec: TrainSpec | PruneSpec | CompareSpec) -> Sequence[tuple[str, Sequence[str]]]:
    """Which files of which jobs the engine is going to read."""
    if isinstance(spec, CompareSpec):
        return [(job_id, COMPARED_FILES) for job_id in spec.jobs]
    ref: CheckpointRef | None = spec.source if isinstance(spec, PruneSpec) else spec.initial
    return [(ref.job_id, [ref.artifact])] if ref else []


def _input(session: Session, tenant: str, job_id: str, names: Sequence[str], store: ArtifactStore) -> Path:
    owned = jobs.get(session, job_id, tenant) is not None
    records = {record.name: record for record in jobs.artifacts(session, job_id)} if owned else {}
    for name in names:
        record = records.get(name)
        path = store.folder(job_id, record.attempt) / name if record else None
        if record is None or path is None or not is_intact(path, size=record.size, sha256=record.sha256):
            raise InvalidInput(f"{name} of {job_id} is gone or damaged: run that job again, then submit this one anew")
    return store.folder(job_id, records[names[0]].attempt)


def _described(path: Path) -> NewArtifact:
    kind = ARTIFACTS[path.name]
    return NewArtifact(path.name, kind.role, kind.media_type, path.stat().st_size, sha256_of(path))


class _Keeper:
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


class _Reporter(Observer):
    """Passes on what the engine tells, and ends the run when the heart says so."""

    def __init__(self, heart: Heart, spec: TrainSpec | PruneSpec | CompareSpec, keeper: _Keeper) -> None:
        self._heart, self._keeper = heart, keeper
        self._epochs = spec.training.epochs if isinstance(spec, TrainSpec) else 0
        self._training_began = time.monotonic()
        self._done_here = 0
        self._finish_at: str | None = None

    def enter(self, phase: Phase) -> None:
        self._heart.check()
        self._heart.enter(phase)
        if phase is Phase.TRAINING:
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

    def record(self, type: str, data: dict[str, JsonValue]) -> None:
        self._heart.event(NewEvent(type, data))
        if type == "epoch" and isinstance(done := data["epoch"], int):
            self._done_here += 1  # an attempt that went on from a checkpoint took no time for the epochs before
            left = (time.monotonic() - self._training_began) / self._done_here * (self._epochs - done)
            self._finish_at = (datetime.now(UTC) + timedelta(seconds=left)).isoformat()

    def checkpoint(self, state: Callable[[], TrainingState], epoch_ended: bool) -> None:
        self._keeper.offer(state, epoch_ended)
