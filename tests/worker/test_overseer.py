"""The overseer's own life; what it does to others is in `tests/faults`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.queue import Queue
from app.storage import LocalStore
from app.sweeping import Round, Sweeper
from tests.limits import NO_LIMITS
from tests.waiting import wait_until
from worker import identity
from worker.overseer import Consumer, Overseer
from worker.runner import Runtime


@pytest.fixture
def queue(broker_url: str) -> Iterator[Queue]:
    queue = Queue(broker_url)
    yield queue
    queue.close()


def test_it_survives_what_it_did_not_foresee(
    sessions: sessionmaker[Session], runtime: Runtime, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_SECATEUR_WORKER", "")
    identity.christen()
    assert isinstance(runtime.store, LocalStore)
    looks: list[int] = []

    def job_processes() -> list[int]:
        looks.append(len(looks))
        if len(looks) == 1:
            raise AttributeError("_pool")  # as Celery's own objects do while it starts
        return []

    overseer = Overseer(
        sessions,
        queue,
        Sweeper(Round(sessions, queue, runtime.store, 3, NO_LIMITS.max_running), interval_seconds=60),
        Consumer(job_processes=job_processes, is_busy=lambda: False, tasks_taken=lambda: 0),
        grace_seconds=5,
        watchdog_seconds=60,
    )
    overseer.start()
    for count in (1, 2, 3):
        overseer.wake()
        wait_until(lambda: len(looks) >= count, timeout=10, what="it looks again")  # noqa: B023 - called at once
    overseer.stop()
