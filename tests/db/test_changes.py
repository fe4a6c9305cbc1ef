"""Who waits for a job to change is told, and of mere progress in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.db import attempts, jobs
from app.db.changes import PROGRESS_A_SECOND, Changes
from tests.db.conftest import LEASE, Jobs

PATIENT = 3 * PROGRESS_A_SECOND


def _beat(sessions: sessionmaker[Session], job_id: str, *, phase: str, completed: int) -> None:
    progress = {"phase": phase, "completed": completed, "total": 100}
    with sessions.begin() as session:
        assert attempts.beat(session, job_id, 1, lease_seconds=LEASE, phase=phase, progress=progress)


@asynccontextmanager
async def _listening(url: str, job_id: str) -> AsyncIterator[Changes]:
    changes = Changes(url)
    with changes.of(job_id) as heard:
        changes.start()
        async with asyncio.timeout(10):
            await heard.event.wait()  # all are woken once it listens
    try:
        yield changes
    finally:
        await changes.stop()


async def _wake(change: Callable[[], object], *events: asyncio.Event) -> None:
    await asyncio.to_thread(change)
    async with asyncio.timeout(10):
        await asyncio.gather(*(event.wait() for event in events))


def test_progress_is_told_to_the_patient_in_turn_and_to_others_at_once(
    made: Jobs, sessions: sessionmaker[Session], database_url: str
) -> None:
    job_id = made.running()
    _beat(sessions, job_id, phase="training", completed=1)

    async def run() -> None:
        async with _listening(_libpq(database_url), job_id) as changes:
            with ExitStack() as waiters:
                patient = [waiters.enter_context(changes.of(job_id, patient=True)).event for _ in range(PATIENT)]
                stream = waiters.enter_context(changes.of(job_id)).event
                await _wake(lambda: _beat(sessions, job_id, phase="training", completed=2), stream)
                assert sum(event.is_set() for event in patient) < PATIENT / 2
                # Telling them again before their turn has come does not put it off.
                await _wake(lambda: _beat(sessions, job_id, phase="training", completed=3), *patient)

    asyncio.run(run())


@pytest.mark.parametrize("change", ["phase", "cancel", "name"])
def test_all_else_is_told_to_all_at_once(
    made: Jobs, sessions: sessionmaker[Session], database_url: str, change: str
) -> None:
    job_id = made.running()
    _beat(sessions, job_id, phase="training", completed=1)

    def happen() -> None:
        if change == "phase":
            _beat(sessions, job_id, phase="pruning", completed=0)
            return
        with sessions.begin() as session:
            if change == "cancel":
                jobs.request_cancel(session, job_id, "default")
            else:
                jobs.relabel(session, job_id, display_name="renamed", labels={})

    async def run() -> None:
        async with _listening(_libpq(database_url), job_id) as changes:
            with ExitStack() as waiters:
                patient = [waiters.enter_context(changes.of(job_id, patient=True)).event for _ in range(PATIENT)]
                loop = asyncio.get_running_loop()
                await _wake(lambda: _beat(sessions, job_id, phase="training", completed=2), patient[0])
                began = loop.time()
                await _wake(happen, *patient)
                # In turn, it would have taken them three seconds.
                assert loop.time() - began < 1.5

    asyncio.run(run())


def _libpq(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)
