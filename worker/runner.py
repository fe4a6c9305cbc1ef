"""One attempt's life: claim, heartbeat, engine, publish, finish. Every write is fenced by the attempt's number."""

from __future__ import annotations

import hashlib
import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from opentelemetry.trace import NoOpTracer, Tracer
from pydantic import JsonValue
from sqlalchemy.orm import Session, sessionmaker

from app.contract.artifacts import ARTIFACTS
from app.contract.failure import Failure, FailureCode
from app.contract.report import EpochMetrics
from app.contract.result import Result
from app.contract.spec import PruneSpec, StoredSpec, TrainSpec, UploadSpec, parse_stored
from app.contract.status import Phase, Status
from app.core.logging import about
from app.core.tracing import trace_field
from app.db import attempts, members, turns
from app.db.attempts import Checkpoint, Claim, NewArtifact
from app.db.moves import NewEvent
from app.db.session import AWAY
from app.storage import ArtifactStore, is_intact, sha256_of, write_durably
from worker import inputs
from worker.engine import pipeline
from worker.engine.data import DatasetStore
from worker.engine.errors import EngineError, InvalidInput, translated
from worker.engine.observer import Observer
from worker.engine.resume import Recovery, TrainingState
from worker.heart import KEPT_CHECKPOINTS, AttemptStopped, CancelRequested, Heart, OutOfTouch
from worker.recent import RecentLog
from worker.trace import AttemptTrace

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
    max_running: int
    """Of a tenant without a cap of its own."""
    wake: Callable[[str], object]
    """Tells another worker that a job waits."""
    remind: Callable[[str], object]
    """The same, unless there are messages anyway."""
    working_on: Callable[[str | None], object]
    """Tells whom it may concern what this process is at."""
    tracer: Tracer = field(default_factory=NoOpTracer)


def run_job(job_id: str, runtime: Runtime) -> None:
    """A message about this job has come: run the job whose turn it is, this one or another, to its end. When there is
    none, because that one is taken, has ended, is unknown or waits for its tenant's others, there is nothing to do."""
    claim = _claim(job_id, runtime)
    if claim is None:
        logger.info("nothing to claim", extra={"job_id": job_id})
        return
    trace = AttemptTrace(runtime.tracer, claim)
    with trace.running(), about(job_id=claim.job_id, attempt=claim.attempt, tenant=claim.tenant, **trace_field()):
        logger.info("attempt started")
        runtime.working_on(claim.job_id)
        try:
            outcome = _Attempt(claim, runtime, trace).run()
        finally:
            runtime.working_on(None)
        trace.ended(outcome)
        logger.info("attempt ended", extra={"outcome": outcome})
        if claim.sweep_id is not None:
            _settle(claim.sweep_id, runtime)
    _remind(runtime)


def _claim(job_id: str, runtime: Runtime) -> Claim | None:
    """Waits for a database that is away: the message is gone with this call."""
    while True:
        try:
            with runtime.sessions.begin() as session:
                return turns.claim_next(
                    session,
                    owner=runtime.owner,
                    lease_seconds=runtime.lease_seconds,
                    max_running=runtime.max_running,
                )
        except AWAY as error:
            logger.warning("claim failed, will try again", extra={"job_id": job_id, "error": str(error)})
            time.sleep(runtime.heartbeat_seconds)


def _settle(sweep_id: str, runtime: Runtime) -> None:
    """The member may have been the last one that its sweep has waited for."""
    try:
        with runtime.sessions.begin() as session:
            may_begin = members.settle(session, sweep_id)
    except AWAY as error:
        logger.warning("could not settle the sweep, the sweeper will", extra={"error": str(error)})
    else:
        if may_begin:
            runtime.wake(sweep_id)


def _remind(runtime: Runtime) -> None:
    """This end may have made room below a tenant's cap for a job whose message came, and was used up, before."""
    try:
        with runtime.sessions.begin() as session:
            job_id = turns.next_job(session, max_running=runtime.max_running)
    except AWAY as error:
        logger.warning("could not look for the next job, the sweeper will", extra={"error": str(error)})
    else:
        if job_id is not None:
            runtime.remind(job_id)


class _Attempt:
    """What one claim leads to."""

    def __init__(self, claim: Claim, runtime: Runtime, trace: AttemptTrace) -> None:
        self._claim, self._runtime, self._trace = claim, runtime, trace
        self._folder = runtime.store.checkpoints(claim.job_id)
        self._checkpoints = [each for each in claim.checkpoints if self._is_whole(each)]
        self._heart = Heart(
            runtime.sessions,
            claim,
            self._folder,
            self._checkpoints,
            beat_seconds=runtime.heartbeat_seconds,
            lease_seconds=runtime.lease_seconds,
        )
        self._log = RecentLog()

    def run(self) -> str:
        """Returns the job's status after it, or why this attempt has no say any more."""
        self._heart.start()
        with self._log.listening():
            try:
                return self._run()
            except SystemExit:
                # The worker is shutting down. Celery repeats its signal half a second after the first one, and the
                # second would end the process amid its last write.
                signal.signal(signal.SIGQUIT, signal.SIG_IGN)
                self._hand_back()
                raise

    def _run(self) -> str:
        try:
            result, files = self._work()
            return self._finish(attempts.succeed, result=result.model_dump(mode="json"), files=files)
        except CancelRequested:
            return self._finish(attempts.cancelled)
        except (OutOfTouch, *AWAY):
            return self._hand_back()
        except AttemptStopped:
            return self._finish(None)
        except EngineError as error:
            return self._fail(error.code, str(error))
        except Exception as error:
            logger.exception("attempt failed on a bug")
            message = f"An unexpected {type(error).__name__} in the worker; its log has the rest under this job's id."
            return self._fail(FailureCode.INTERNAL_ERROR, message)

    def _work(self) -> tuple[Result, list[NewArtifact]]:
        claim, store = self._claim, self._runtime.store
        # Read again and validated again: this process trusts the row no more than the API trusted the client.
        spec = parse_stored(claim.spec)
        with translated():
            staging = store.stage(claim.job_id, claim.attempt)
        found = self._persistently(lambda session: inputs.members(session, claim))
        result = pipeline.run(
            spec,
            datasets=self._runtime.datasets,
            inputs=self._inputs(inputs.needs(spec, found)),
            out=staging,
            upload=self._upload(spec),
            members=found,
            observer=_Reporter(self._heart, self._trace, spec, self._keeper()),
            recovery=Recovery(claim.attempt, tuple(self._folder / each.name for each in self._checkpoints)),
        )
        self._heart.enter(Phase.PUBLISHING)
        self._trace.enter(Phase.PUBLISHING)
        with translated():
            files = [_described(path) for path in sorted(staging.iterdir())]
            self._heart.check()
            store.publish(claim.job_id, claim.attempt)
        return result, files

    def _keeper(self) -> _Keeper:
        return _Keeper(self._heart, self._folder, self._claim.attempt, self._runtime.checkpoint_seconds)

    def _is_whole(self, checkpoint: Checkpoint) -> bool:
        """Whether it is still what was written; a damaged one is passed over for the one before it."""
        try:
            if sha256_of(self._folder / checkpoint.name) == checkpoint.sha256:
                return True
            why = "damaged"
        except OSError as error:
            why = str(error)
        logger.warning("checkpoint passed over", extra={"file": checkpoint.name, "why": why})
        return False

    def _upload(self, spec: StoredSpec) -> Path | None:
        """The file that an import is about, as it arrived. Raises InvalidInput."""
        if not isinstance(spec, UploadSpec):
            return None
        path = self._runtime.store.upload(self._claim.job_id)
        if not is_intact(path, size=spec.size, sha256=spec.sha256):
            raise InvalidInput("the uploaded file is gone or damaged: upload it again")
        return path

    def _inputs(self, needs: inputs.Needs) -> Mapping[str, Path]:
        """The folders of these jobs, their files checked. Raises InvalidInput."""
        records = self._persistently(
            lambda session: {job_id: inputs.records(session, self._claim.tenant, job_id) for job_id in needs}
        )
        store = self._runtime.store
        return {job_id: inputs.folder(store, job_id, names, records[job_id]) for job_id, names in needs.items()}

    def _fail(self, code: FailureCode, message: str) -> str:
        self._trace.failed(code)
        failure = Failure.of(
            code, message, attempt=self._claim.attempt, phase=self._heart.phase, log=list(self._log.lines)
        )
        return self._finish(attempts.fail, with_checkpoints=True, failure=failure)

    def _hand_back(self) -> str:
        outcome = self._finish(attempts.drain, with_checkpoints=True)
        if outcome == Status.QUEUED:
            self._runtime.wake(self._claim.job_id)
        return outcome

    def _finish(self, end: Callable[..., Status | None] | None, *, with_checkpoints: bool = False, **told: Any) -> str:
        """The last write of the attempt. Whatever is not a success leaves no file behind, but to go on from."""
        left = self._heart.stop()
        if with_checkpoints:
            told["checkpoints"] = left.checkpoints[:KEPT_CHECKPOINTS]
        job_id, attempt = self._claim.job_id, self._claim.attempt

        def write(session: Session) -> Status | None:
            status = end(session, job_id, attempt, new_events=left.events, **told) if end else None
            # Fenced, or an earlier try was committed and its acknowledgement lost: never discard what was published.
            return status or (Status.SUCCEEDED if attempts.has_won(session, job_id, attempt) else None)

        try:
            status = self._persistently(write)
            if status is not Status.SUCCEEDED:
                self._runtime.store.discard(job_id, attempt)
            if status is None:
                self._persistently(lambda session: attempts.look_again(session, job_id))
        except AWAY:
            # What the row says is unknown. Should it not be this attempt's, its files go when the job has ended.
            return "unknown"
        return str(status or "fenced")

    def _persistently(self, ask: Callable[[Session], T]) -> T:
        """Ask the database, and while it is away again, for as long as the lease may last. Raises one of AWAY."""
        until = time.monotonic() + self._runtime.lease_seconds
        while True:
            try:
                with self._runtime.sessions.begin() as session:
                    return ask(session)
            except AWAY as error:
                logger.warning("database is away", extra={"error": str(error)})
                if time.monotonic() > until:
                    raise
                time.sleep(self._runtime.heartbeat_seconds)


def _described(path: Path) -> NewArtifact:
    kind = ARTIFACTS[path.name]
    return NewArtifact(path.name, kind.role, kind.media_type, path.stat().st_size, sha256_of(path))


def _epochs_done(spec: TrainSpec | PruneSpec, last: EpochMetrics) -> int:
    """Of all courses, since each counts its own."""
    if last.course == "training" or spec.fine_tuning is None:
        return last.epoch
    before = spec.training.epochs if isinstance(spec, TrainSpec) else 0
    return before + ((last.round or 1) - 1) * spec.fine_tuning.epochs + last.epoch


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

    def __init__(self, heart: Heart, trace: AttemptTrace, spec: StoredSpec, keeper: _Keeper) -> None:
        self._heart, self._trace, self._keeper = heart, trace, keeper
        self._spec = spec
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
        self._keeper.offer(state, epoch_ended)
