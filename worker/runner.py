"""What comes of a message: the job whose turn it is, or several members of a sweep at once, from claim to end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextvars import copy_context
from typing import Any

from sqlalchemy.orm import Session

from app.core.logging import about
from app.core.tracing import trace_field
from app.db import attempts, members, turns
from app.db.attempts import Claim
from app.db.session import AWAY
from worker import identity
from worker.attempt import Attempt
from worker.companions import companions
from worker.engine.execute import Awaited
from worker.engine.lockstep import carry_out
from worker.engine.placed import Placed
from worker.runtime import Runtime
from worker.trace import AttemptTrace

__all__ = ["Runtime", "run_job"]

logger = logging.getLogger(__name__)


def run_job(job_id: str, runtime: Runtime) -> None:
    """A message about this job has come: run the job whose turn it is, this one or another, to its end; and, when that
    is a member of a sweep, others of its sweep with it, where that is faster. When there is none, because that one is
    taken, has ended, is unknown or waits for its tenant's others, there is nothing to do."""
    claims = _claim(job_id, runtime)
    if not claims:
        logger.info("nothing to claim", extra={"job_id": job_id})
        return
    at_work, placed = _AtWork(runtime.working_on), Placed()
    carry_out([_Life(claim, runtime, placed, at_work) for claim in claims], runtime.together)


def _claim(job_id: str, runtime: Runtime) -> list[Claim]:
    """Waits for a database that is away: the message is gone with this call."""
    in_doubt = False
    while True:
        try:
            with runtime.sessions.begin() as session:
                if in_doubt:
                    attempts.give_back(session, runtime.owner)
                return _claimed(session, runtime)
        except AWAY as error:
            in_doubt = True
            logger.warning("claim failed, will try again", extra={"job_id": job_id, "error": str(error)})
            time.sleep(runtime.heartbeat_seconds)


def _claimed(session: Session, runtime: Runtime) -> list[Claim]:
    owner, lease_seconds, max_running = runtime.owner, runtime.lease_seconds, runtime.max_running
    first = turns.claim_next(session, owner=owner, lease_seconds=lease_seconds, max_running=max_running)
    if first is None:
        return []
    party = companions(session, first, runtime.together, identity.worker_of(owner))
    if party is None:
        return [first]
    others = turns.claim_beside(
        session,
        first,
        party.joins,
        most=party.most,
        sharers=party.sharers,
        owner=owner,
        lease_seconds=lease_seconds,
        max_running=max_running,
    )
    return [first, *others]


class _AtWork:
    """Tells what this process is at: of several jobs, the first that has not ended."""

    def __init__(self, tell: Callable[[str | None], object]) -> None:
        self._tell = tell
        self._jobs: list[str] = []

    def begin(self, job_id: str) -> None:
        self._jobs.append(job_id)
        if len(self._jobs) == 1:
            self._tell(job_id)

    def end(self, job_id: str) -> None:
        was_told = self._jobs[0] == job_id
        self._jobs.remove(job_id)
        if was_told:
            self._tell(self._jobs[0] if self._jobs else None)


class _Life:
    """An attempt as a run, in a context of its own: what is logged and traced in it is about it, whichever attempts
    this process goes on with in between."""

    def __init__(self, claim: Claim, runtime: Runtime, placed: Placed, at_work: _AtWork) -> None:
        self._context = copy_context()
        self._steps = self._live(claim, runtime, placed, at_work)

    def begin(self) -> None:
        self._context.run(next, self._steps)

    def go_on(self, answer: object = None, failure: BaseException | None = None) -> Awaited | None:
        steps = self._steps
        try:
            return self._context.run(lambda: steps.send(answer) if failure is None else steps.throw(failure))
        except StopIteration:
            return None

    def _live(
        self, claim: Claim, runtime: Runtime, placed: Placed, at_work: _AtWork
    ) -> Generator[Awaited | None, Any, None]:
        trace = AttemptTrace(runtime.tracer, claim)
        with trace.running(), about(job_id=claim.job_id, attempt=claim.attempt, tenant=claim.tenant, **trace_field()):
            logger.info("attempt started")
            at_work.begin(claim.job_id)
            try:
                outcome = yield from Attempt(claim, runtime, trace).steps(placed)
            finally:
                at_work.end(claim.job_id)
            trace.ended(outcome)
            logger.info("attempt ended", extra={"outcome": outcome})
            if claim.sweep_id is not None:
                _settle(claim.sweep_id, runtime)
        _remind(runtime)


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
