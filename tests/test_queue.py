from __future__ import annotations

import json
import time
from pathlib import Path

import redis

from app.local import start_broker
from app.queue import QUEUE, RUN_JOB, Queue, make_celery

JOB = "job_" + "0" * 32


def test_a_message_bears_the_jobs_id_and_nothing_else(broker_url: str) -> None:
    queue = Queue(make_celery(broker_url))
    client = redis.Redis.from_url(broker_url)
    client.delete(QUEUE)

    assert queue.wake(JOB)

    raw = client.rpop(QUEUE)
    assert isinstance(raw, bytes)
    message = json.loads(raw)
    assert message["headers"]["task"] == RUN_JOB
    assert message["headers"]["argsrepr"] == f"['{JOB}']"
    assert message["content-type"] == "application/json"
    assert JOB in raw.decode()
    assert client.rpop(QUEUE) is None
    client.close()
    queue.close()


def test_a_broker_that_is_away_is_told_soon_and_found_again(tmp_path: Path) -> None:
    with start_broker(tmp_path / "state") as broker:
        queue = Queue(make_celery(broker.url))
        assert queue.is_up()
        assert queue.wake(JOB)

    start = time.monotonic()
    assert not queue.wake(JOB)
    assert not queue.is_up()
    assert time.monotonic() - start < 10  # a request must not hang on it

    with start_broker(tmp_path / "state"):
        assert queue.is_up()
        assert queue.wake(JOB)
    queue.close()
