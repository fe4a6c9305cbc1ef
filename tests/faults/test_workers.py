"""Workers that hang, choke, or do not stop: somebody ends them, and somebody starts them again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import redis

from app.contract.status import Status
from app.queue import QUEUE, worker_command
from tests.faults.cluster import ENDLESS, Cluster, stopped
from tests.specs import ended, finished, read, submit, train_spec
from tests.waiting import wait_until

HANGS = """
from threading import Event
from celery.signals import worker_ready
from worker.main import celery

@worker_ready.connect(weak=False)
def hang(**_):
    Event().wait()  # alive, its threads run, and it never takes a message
"""

AN_HOUR_AHEAD = """
import datetime, time
_time = time.time
time.time = lambda: _time() + 3600
class Ahead(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(hours=1)
datetime.datetime = Ahead
"""


@pytest.mark.chaos
def test_a_job_that_does_not_hear_of_its_cancel_is_ended_with_its_process(cluster: Cluster) -> None:
    job_id = cluster.at_work()
    deaf, worker = cluster.process_of(job_id), cluster.worker_of(job_id)
    before = cluster.log_of_workers().count('"signal": "SIGKILL"')
    with stopped(deaf):  # as one that hangs in a native call
        # Five seconds of grace, two from the polite signal to SIGKILL, and the lease's end does not wait for that.
        assert cluster.cancel(job_id)["status"] == "cancelled"
        wait_until(lambda: not deaf.is_running() or deaf.status() == "zombie", timeout=15, what="the process is ended")

    def is_well() -> bool:
        """The worker's next job process has told that it is there."""
        rows = cluster.http.get("/v1/system").json()["workers"]
        return any(f":{worker.pid}:" in row["id"] and row["alive"] and not row["busy"] for row in rows)

    wait_until(lambda: is_well() and len(cluster.job_processes()) == 2, timeout=30, what="there is a new job process")
    assert {finished(cluster.http, train_spec())["status"] for _ in range(4)} == {"succeeded"}
    assert cluster.log_of_workers().count('"signal": "SIGKILL"') == before + 1


def test_a_message_that_is_garbage_harms_no_job(cluster: Cluster) -> None:
    with redis.Redis.from_url(cluster.stack.redis_url) as broker:
        broker.lpush(QUEUE, "garbage", "{}", '{"body": "x"}')
    assert {finished(cluster.http, train_spec())["status"] for _ in range(2)} == {"succeeded"}
    wait_until(lambda: cluster.waiting_messages() == 0, timeout=60, what="the garbage is gone")


@pytest.mark.chaos
def test_a_worker_that_takes_no_messages_ends_itself(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGS)
    with _only_worker(cluster, tmp_path, app="hanging:celery", SECATEUR_WATCHDOG_SECONDS="3") as process:
        submit(cluster.http, train_spec())
        assert process.wait(timeout=60) == 70
    assert "ending this worker: messages wait and this worker takes none" in (tmp_path / "log").read_text()


@pytest.mark.chaos
def test_a_worker_whose_job_processes_cannot_be_set_up_fails_no_job_and_ends_itself(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text(
        "raise ImportError('broken')"
    )  # the process that receives messages has no need of it
    with _only_worker(cluster, tmp_path, SECATEUR_WATCHDOG_SECONDS="3") as process:
        job_id = submit(cluster.http, train_spec())["id"]
        assert process.wait(timeout=120) == os.EX_SOFTWARE
    log = (tmp_path / "log").read_text()
    assert "a job process could not be set up" in log
    assert "ending this worker: a message was taken and no attempt comes of it" in log
    job = ended(cluster.http, job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)


@pytest.mark.chaos
def test_a_workers_wrong_clock_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(AN_HOUR_AHEAD)
    with _only_worker(cluster, tmp_path) as process:
        job_id = submit(cluster.http, train_spec(training={"epochs": 3}))["id"]
        job = ended(cluster.http, job_id)
    assert (job["status"], job["attempt"]) == (Status.SUCCEEDED, 1)
    assert f":{process.pid}:" in next(e["data"]["worker"] for e in cluster.events(job_id) if e["type"] == "running")
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert (tmp_path / "log").read_text().count('"outcome": "succeeded"') == 1


@contextmanager
def _only_worker(
    cluster: Cluster, folder: Path, *, app: str = "worker.main:celery", **settings: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Another worker of the same service, while the others are stopped; killed at the end."""
    command = [word.replace("worker.main:celery", app) for word in worker_command()]
    paths = os.pathsep.join([str(folder), str(Path.cwd())])
    environment = {**cluster.stack.environment, **settings, "PYTHONPATH": paths, "REMAP_SIGTERM": "SIGQUIT"}
    with stopped(*cluster.workers()), (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.chaos
def test_a_job_process_goes_with_the_worker_that_started_it(cluster: Cluster, tmp_path: Path) -> None:
    with _only_worker(cluster, tmp_path) as process:
        job_id = cluster.at_work(ENDLESS)
        job_process = cluster.process_of(job_id)
        process.kill()  # alone, and nobody kills the rest of its group
        process.wait()
        wait_until(lambda: not job_process.is_running(), timeout=5, what="no orphan is left")
    cluster.wait_for_training(job_id, 2, timeout=30)
    cluster.cancel(job_id)


@pytest.mark.chaos
def test_a_worker_alone_hands_its_job_back_on_sigterm(cluster: Cluster, tmp_path: Path) -> None:
    with _only_worker(cluster, tmp_path) as process:
        job_id = cluster.at_work(ENDLESS)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)  # to it alone, as `docker stop` does
        wait_until(lambda: read(cluster.http, job_id)["status"] == "queued", timeout=5, what="the job is back")
        process.wait(timeout=20)
        assert time.monotonic() - began < 20
    cluster.wait_for_training(job_id, 2, timeout=30)
    cluster.cancel(job_id)


@pytest.mark.chaos
def test_a_worker_ends_on_sigterm_while_its_broker_is_frozen(cluster: Cluster, tmp_path: Path) -> None:
    with _only_worker(cluster, tmp_path) as process:
        job_id = cluster.at_work(ENDLESS)
        with stopped(psutil.Process(cluster.stack.children["broker"].pid)):
            until = time.monotonic() + 8
            wait_until(lambda: time.monotonic() > until, timeout=20, what="it has met the frozen broker")
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: read(cluster.http, job_id)["status"] == "queued", timeout=10, what="the job is back")
            process.wait(timeout=25)  # within the thirty seconds that containers are given
    cluster.wait_for_training(job_id, 2, timeout=30)
    cluster.cancel(job_id)
