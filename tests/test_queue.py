from __future__ import annotations

import json
import time
from pathlib import Path

import redis

from app.local import start_broker
from app.queue import MOST_UNSENT, QUEUE, RUN_JOB, Queue, Waker
from tests.waiting import wait_until

JOB = "job_" + "0" * 32


def test_a_message_bears_the_jobs_id_and_nothing_else(broker_url: str) -> None:
    queue = Queue(broker_url)
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
        queue = Queue(broker.url)
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


def test_a_waker_sends_all_in_their_order_before_it_ends(broker_url: str) -> None:
    queue, client = Queue(broker_url), redis.Redis.from_url(broker_url)
    client.delete(QUEUE)
    waker = Waker(queue)
    waker.wake(["job_1", "job_2"])
    waker.start()
    waker.wake(["job_3"])
    waker.stop()
    sent = [json.loads(raw)["headers"]["argsrepr"] for raw in client.lrange(QUEUE, 0, -1)]
    assert sent[::-1] == ["['job_1']", "['job_2']", "['job_3']"]
    client.delete(QUEUE)
    client.close()
    queue.close()


def test_nobody_waits_for_a_waker_whose_broker_is_away_and_it_goes_on_when_that_is_back(tmp_path: Path) -> None:
    with start_broker(tmp_path / "state") as broker:
        queue = Queue(broker.url)
        assert queue.is_up()
    waker = Waker(queue)
    waker.start()
    start = time.monotonic()
    waker.wake([JOB] * (MOST_UNSENT + 1))
    waker.wake([JOB] * (MOST_UNSENT + 1))
    assert time.monotonic() - start < 1

    with start_broker(tmp_path / "state") as broker, redis.Redis.from_url(broker.url) as client:

        def is_sent() -> bool:
            waker.wake([JOB])
            return bool(client.llen(QUEUE))

        wait_until(is_sent, timeout=30, what="a message is sent")
        waker.stop()
    queue.close()
