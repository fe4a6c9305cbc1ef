"""What the sweeper does when messages are fewer than jobs that can be begun."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from app.db import attempts
from app.queue import QUEUE, Queue
from app.storage import LocalStore
from app.sweeping import Round
from tests.db.conftest import FAILURE, Jobs


@pytest.fixture
def broker(broker_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(broker_url) as client:
        client.delete(QUEUE)
        yield client
        client.delete(QUEUE)


def test_a_job_that_can_be_begun_gets_a_message_when_none_waits(
    sessions: sessionmaker[Session], broker_url: str, broker: redis.Redis, tmp_path: Path
) -> None:
    queue, made = Queue(broker_url), Jobs(sessions)
    queue.mark()
    running, _ = made.running(), made.queued()
    with sessions.begin() as session:  # all messages came long ago
        session.execute(text("UPDATE jobs SET publish_at = now() + interval '1 hour'"))
    round_ = Round(sessions, queue, LocalStore(tmp_path), max_attempts=3, max_running=1)

    round_.run()
    assert broker.llen(QUEUE) == 0  # it waits for its tenant's other job
    with sessions.begin() as session:
        attempts.fail(session, running, 1, failure=FAILURE)
    for _ in range(3):
        round_.run()

    assert broker.llen(QUEUE) == 1
    queue.close()
