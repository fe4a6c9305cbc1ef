"""What happens to the broker, and to the messages in it."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import psutil
import pytest

from tests.faults.cluster import LEASE_SECONDS, SWEEP_SECONDS, Cluster, stopped
from tests.speaking import client_of
from tests.specs import ended, finished, read, submit, train_spec
from tests.waiting import wait_until

SLOW = pytest.mark.chaos
"""For CI and on request."""


@pytest.mark.parametrize("seconds", [2 * LEASE_SECONDS, pytest.param(70, marks=SLOW)])
def test_a_frozen_broker_holds_up_neither_a_post_nor_a_running_job(cluster: Cluster, seconds: float) -> None:
    running = cluster.at_work()
    with stopped(psutil.Process(cluster.stack.children["broker"].pid)):
        until = time.monotonic() + seconds
        job_id = _submitted_in_time(cluster)
        ready = cluster.http.get("/readyz").json()
        assert (ready["status"], ready["database"], ready["broker"]) == ("unavailable", True, False)
        before = len(cluster.events(running))
        wait_until(lambda: time.monotonic() > until, timeout=seconds + 30, what="some leases have passed")
        assert read(cluster.http, running)["attempt"] == 1
        assert len(cluster.events(running)) > before
        assert read(cluster.http, job_id)["status"] == "queued"
    cluster.cancel(running)
    assert ended(cluster.http, job_id)["status"] == "succeeded"


def test_while_the_broker_is_frozen_those_who_ask_for_readiness_hold_up_nobody(cluster: Cluster) -> None:
    address, key = urlsplit(cluster.stack.url), cluster.stack.api_key
    with stopped(psutil.Process(cluster.stack.children["broker"].pid)), ExitStack() as asked:
        for _ in range(200):
            probe = asked.enter_context(socket.create_connection((address.hostname, address.port), timeout=30))
            probe.sendall(b"GET /readyz HTTP/1.1\r\nHost: tests\r\n\r\n")
        with client_of(cluster.stack.url, key) as late:  # on a connection that comes after theirs
            began = time.monotonic()
            assert late.get("/v1/jobs").status_code == 200
            assert time.monotonic() - began < 3
        assert b" 503 " in probe.recv(100)


def _submitted_in_time(cluster: Cluster) -> str:
    began = time.monotonic()
    job_id: str = submit(cluster.http, train_spec())["id"]
    assert time.monotonic() - began < 3
    return job_id


@SLOW
def test_a_broker_that_is_killed_and_comes_back_loses_no_job(cluster: Cluster) -> None:
    jobs = [submit(cluster.http, train_spec())["id"] for _ in range(3)]
    broker = cluster.stack.children["broker"]
    os.kill(broker.pid, signal.SIGKILL)
    jobs += [_submitted_in_time(cluster) for _ in range(3)]
    assert {ended(cluster.http, job_id)["status"] for job_id in jobs} == {"succeeded"}


def test_after_flushall_what_is_queued_is_published_again_within_a_sweep(cluster: Cluster) -> None:
    busy = [cluster.at_work(epochs=1) for _ in range(2)]
    waiting = submit(cluster.http, train_spec())["id"]
    wait_until(lambda: cluster.waiting_messages(), timeout=10, what="the message waits")
    with cluster.operator() as operator:
        operator.flushall()
    wait_until(lambda: cluster.waiting_messages(), timeout=SWEEP_SECONDS + 0.5, what="the message is back")
    for job_id in busy:
        cluster.cancel(job_id)
    assert ended(cluster.http, waiting)["status"] == "succeeded"


@SLOW
def test_a_message_that_is_lost_between_broker_and_worker_is_sent_again(cluster: Cluster) -> None:
    job_id = wait_until(lambda: _with_lost_message(cluster), timeout=60, what="a message is lost")
    assert ended(cluster.http, job_id, timeout=60)["status"] == "succeeded"
    assert cluster.types(job_id).count("running") == 1


def _with_lost_message(cluster: Cluster) -> str | None:
    """Submit a job whose message the broker gives to a worker that is killed before it reads it. None when no worker's
    request happened to be with the broker."""
    workers, before = cluster.workers(), cluster.pushes()
    with stopped(*workers):
        job_id: str = submit(cluster.http, train_spec())["id"]
        wait_until(lambda: cluster.pushes() > before, timeout=10, what="the message is sent")
        lost = cluster.waiting_messages() == 0
        for worker in workers if lost else ():
            worker.kill()
    return job_id if lost else None


def test_one_message_five_times_and_again_after_the_end_is_one_run(cluster: Cluster) -> None:
    job_id = submit(cluster.http, train_spec())["id"]
    for _ in range(5):
        assert cluster.queue.wake(job_id)
    job = ended(cluster.http, job_id)
    cluster.wait_until_tidy(job)
    folder = cluster.folder(job_id) / "1"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert cluster.queue.wake(job_id)
    finished(cluster.http, train_spec())  # whatever was sent before has been looked at
    wait_until(lambda: cluster.waiting_messages() == 0, timeout=10, what="every message is taken")
    job = read(cluster.http, job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert cluster.types(job_id).count("running") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
