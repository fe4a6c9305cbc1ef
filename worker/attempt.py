"""One attempt, from its first beat to its last write: engine, publish, finish. Every write is fenced by its number."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from app.contract.artifacts import ARTIFACTS
from app.contract.failure import Failure, FailureCode
from app.contract.result import Result
from app.contract.spec import StoredSpec, parse_stored
from app.contract.status import Phase, Status
from app.contract.uploads import UploadSpec
from app.db import attempts
from app.db.attempts import Checkpoint, Claim, HandBackReason, NewArtifact
from app.db.session import AWAY
from app.storage import is_intact, sha256_of
from worker import inputs
from worker.engine import pipeline
from worker.engine.errors import EngineError, InvalidInput, translated
from worker.engine.execute import Awaited, Steps
from worker.engine.placed import Placed
from worker.engine.resume import Recovery
from worker.heart import KEPT_CHECKPOINTS, AttemptStopped, CancelRequested, Heart, OutOfTouch
from worker.recent import RecentLog
from worker.reporter import Keeper, Reporter
from worker.runtime import Runtime
from worker.trace import AttemptTrace

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Attempt:
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
        self._log = RecentLog(claim.job_id)

    def steps(self, placed: Placed) -> Generator[Awaited | None, Any, str]:
        """From its first beat, after which it waits once, to its end. Returns the job's status after it, or why this
        attempt has no say any more."""
        with self._log.listening():
            try:
                self._heart.start()
                yield None
                return (yield from self._run(placed))
            except SystemExit:
                # The worker is shutting down. Celery repeats its signal half a second after the first one, and the
                # second would end the process amid its last write.
                signal.signal(signal.SIGQUIT, signal.SIG_IGN)
                self._hand_back("worker_shutdown")
                raise

    def _run(self, placed: Placed) -> Steps[str]:
        try:
            result, files = yield from self._work(placed)
            return self._finish(attempts.succeed, result=result.model_dump(mode="json"), files=files)
        except CancelRequested:
            return self._finish(attempts.cancelled)
        except (OutOfTouch, *AWAY):
            return self._hand_back("out_of_touch")
        except AttemptStopped:
            return self._finish(None)
        except EngineError as error:
            self._runtime.end_if_broken()  # a fault while something is loaded passes for a broken file
            return self._fail(error.code, str(error))
        except Exception as error:
            self._runtime.end_if_broken()
            logger.exception("attempt failed on a bug")
            message = f"An unexpected {type(error).__name__} in the worker; its log has the rest under this job's id."
            return self._fail(FailureCode.INTERNAL_ERROR, message)

    def _work(self, placed: Placed) -> Steps[tuple[Result, list[NewArtifact]]]:
        claim, store = self._claim, self._runtime.store
        # Read again and validated again: this process trusts the row no more than the API trusted the client.
        spec = parse_stored(claim.spec)
        with translated():
            staging = store.stage(claim.job_id, claim.attempt)
        found = self._persistently(lambda session: inputs.members(session, claim))
        result = yield from pipeline.steps(
            spec,
            datasets=self._runtime.datasets,
            inputs=self._inputs(inputs.needs(spec, found)),
            out=staging,
            upload=self._upload(spec),
            members=found,
            observer=Reporter(self._heart, self._trace, spec, self._keeper()),
            recovery=Recovery(claim.attempt, tuple(self._folder / each.name for each in self._checkpoints)),
            placed=placed,
            latency_seconds=self._runtime.latency_seconds,
        )
        self._heart.enter(Phase.PUBLISHING)
        self._trace.enter(Phase.PUBLISHING)
        with translated():
            files = [_described(path) for path in sorted(staging.iterdir())]
            self._heart.check()
            store.publish(claim.job_id, claim.attempt)
        return result, files

    def _keeper(self) -> Keeper:
        return Keeper(self._heart, self._folder, self._claim.attempt, self._runtime.checkpoint_seconds)

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

    def _hand_back(self, reason: HandBackReason) -> str:
        outcome = self._finish(attempts.drain, with_checkpoints=True, reason=reason)
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
