"""What the sweeper does when messages are fewer than jobs that can be begun, when a step of it fails, and when there
are several sweepers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import redis
from sqlalchemy import text
from sqlalchemy.exc import DataError
from sqlalchemy.orm import Session, sessionmaker

from app.contract.status import Status
from app.db import attempts, sweep
from app.db.models import JobRow
from app.queue import QUEUE, Queue
from app.storage import LocalStore
from app.sweeping import Round, Sweeper
from tests.db.conftest import FAILURE, Jobs
from tests.waiting import wait_until


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


def test_a_message_is_sent_again_when_fewer_wait_than_jobs_and_not_otherwise(
    sessions: sessionmaker[Session], broker_url: str, broker: redis.Redis, tmp_path: Path
) -> None:
    queue, made = Queue(broker_url), Jobs(sessions)
    queue.mark()
    jobs = [made.queued() for _ in range(3)]
    round_ = Round(sessions, queue, LocalStore(tmp_path), max_attempts=3, max_running=1)

    def waiting_after_a_round() -> int:
        for job_id in jobs:
            made.past(job_id, "publish_at")
        round_.run()
        return int(broker.llen(QUEUE))

    assert [waiting_after_a_round() for _ in range(3)] == [3, 3, 3]
    broker.rpop(QUEUE)  # by a worker that is killed before it claims
    assert waiting_after_a_round() == 5
    made.running(jobs[0])
    broker.ltrim(QUEUE, 0, 0)
    assert waiting_after_a_round() == 3
    queue.close()


def test_a_step_that_fails_each_time_keeps_no_other_from_its_turn(
    sessions: sessionmaker[Session],
    broker_url: str,
    broker: redis.Redis,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue, made = Queue(broker_url), Jobs(sessions)
    queue.mark()
    made.sweep()
    ended = made.in_state(Status.FAILED)
    with sessions.begin() as session:  # it cannot be settled
        session.execute(text("""UPDATE jobs SET progress = '{"completed": "some"}' WHERE status = 'waiting'"""))
    left = tmp_path / ended / ".1.partial"
    left.mkdir(parents=True)
    sweeper = Sweeper(Round(sessions, queue, LocalStore(tmp_path), max_attempts=3, max_running=1), interval_seconds=60)

    sweeper.start()
    sweeper.wake()
    wait_until(lambda: not left.exists(), timeout=30, what="its files are in order")
    sweeper.stop()

    assert broker.llen(QUEUE) == 1
    (told,) = [record.exc_info for record in caplog.records if record.exc_info]
    assert isinstance(told[1], ExceptionGroup)
    assert [type(error) for error in told[1].exceptions] == [DataError]
    queue.close()


TENANTS, ROUNDS = 60, 10


def test_sweepers_that_purge_jobs_of_several_tenants_do_not_wait_for_each_other_in_a_circle(
    sessions: sessionmaker[Session], broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the commit each job is taken from its tenant's account."""
    count = 2 * ROUNDS * sweep.SWEEP_BATCH
    _expired_like(sessions, Jobs(sessions).in_state(Status.SUCCEEDED), count)
    queue, both, forget = Queue(broker_url), Barrier(2, timeout=60), sweep.forget
    queue.mark()

    def forget_together(session: Session) -> None:
        forget(session)
        both.wait()  # both have purged, and are about to commit

    monkeypatch.setattr(sweep, "forget", forget_together)

    def sweeps() -> None:
        round_ = Round(sessions, queue, LocalStore(tmp_path), max_attempts=3, max_running=1)
        for _ in range(ROUNDS):
            round_.run()

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(sweeps) for _ in range(2)]:
            each.result(timeout=120)
    with sessions() as session:
        assert session.scalar(text("SELECT count(*) FROM jobs WHERE purged_at IS NOT NULL")) == count
    queue.close()


def _expired_like(sessions: sessionmaker[Session], job_id: str, count: int) -> None:
    """So many jobs like this one, each of some tenant, whose time is over."""
    own = {
        "id": "'job_' || md5(number::text)",
        "tenant": f"'t' || (random() * {TENANTS})::int",
        "expires_at": "clock_timestamp() - random() * interval '1 hour'",
        "tidied_at": "now()",
    }
    columns = [column.name for column in JobRow.__table__.columns]
    chosen = ", ".join(own.get(name, name) for name in columns)
    numbered = f"SELECT {chosen} FROM jobs, generate_series(1, {count}) AS number WHERE id = :id"
    with sessions.begin() as session:
        session.execute(text(f"INSERT INTO jobs ({', '.join(columns)}) {numbered}"), {"id": job_id})
