"""One fault at a time, on real processes, with what must come of it and within which time."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.faults.cluster import ENDLESS, FIVE_EPOCHS, LEASE_SECONDS, SWEEP_SECONDS, Cluster, go_on, stop
from tests.specs import Document, ended, finished, read, submit, train_spec
from tests.waiting import wait_until


@contextmanager
def stopped(*processes: psutil.Process) -> Iterator[None]:
    """SIGSTOP until the end of the block."""
    for process in processes:
        stop(process)
    try:
        yield
    finally:
        for process in processes:
            go_on(process)


def _types(cluster: Cluster, job_id: str) -> list[str]:
    return [event["type"] for event in cluster.events(job_id)]


SLOW = pytest.mark.chaos
"""For CI and on request: what it covers, its neighbours cover nearly."""


@pytest.mark.parametrize("epoch", [1, *(pytest.param(epoch, marks=SLOW) for epoch in (2, 3, 4)), 5])
def test_killed_in_any_epoch_a_training_gives_the_same_bits(cluster: Cluster, undisturbed: str, epoch: int) -> None:
    job_id = cluster.at_work(FIVE_EPOCHS, epochs=epoch)
    cluster.process_of(job_id).kill()
    job = ended(cluster.http, job_id)

    assert cluster.model_sha256(job) == undisturbed
    assert job["attempt"] == 2
    receipt = json.loads(cluster.artifact(job, "manifest.json"))["receipt"]
    assert receipt["attempt"] == 2
    assert [resume["attempt"] for resume in receipt["resumes"]] == [2]
    assert receipt["resumes"][0]["step"] >= 15 * (epoch - 1)  # an epoch of digits has 15 steps
    metrics = cluster.artifact(job, "metrics.jsonl").splitlines()
    assert [json.loads(line)["epoch"] for line in metrics] == [1, 2, 3, 4, 5]
    cluster.wait_until_tidy(job)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(cluster: Cluster, undisturbed: str) -> None:
    job_id = cluster.at_work(FIVE_EPOCHS, epochs=3)
    job_process = cluster.process_of(job_id)
    stop(job_process)
    for path in (cluster.folder(job_id) / ".checkpoints").glob("1-[!1].pt"):
        path.write_bytes(path.read_bytes()[:-1])  # all but the first, if that is still there
    job_process.kill()
    job = ended(cluster.http, job_id)
    assert cluster.model_sha256(job) == undisturbed
    assert "checkpoint passed over" in cluster.log_of_workers()


def test_a_killed_job_process_costs_its_job_six_seconds_at_most(cluster: Cluster) -> None:
    job_id = cluster.at_work()
    cluster.process_of(job_id).kill()
    cluster.wait_for_training(job_id, 2, timeout=6)
    assert [event["data"] for event in cluster.events(job_id) if event["type"] == "requeued"] == [
        {"reason": "lease_expired"}
    ]
    assert "resumed" in _types(cluster, job_id)
    job = cluster.cancel(job_id)
    assert job["status"] == "cancelled"
    cluster.wait_until_tidy(job)


def test_a_killed_worker_loses_its_job_to_another_when_the_lease_is_over(cluster: Cluster, undisturbed: str) -> None:
    job_id = cluster.at_work(FIVE_EPOCHS, epochs=1)
    cluster.worker_of(job_id).kill()
    job = ended(cluster.http, job_id, timeout=LEASE_SECONDS + 30)
    assert cluster.model_sha256(job) == undisturbed
    assert job["attempt"] == 2
    cluster.wait_until_tidy(job)


def test_sigterm_to_a_worker_moves_its_job_elsewhere_within_three_seconds(cluster: Cluster) -> None:
    job_id = cluster.at_work()
    worker = cluster.worker_of(job_id)
    worker.terminate()
    cluster.wait_for_training(job_id, 2, timeout=3)
    assert [event["data"] for event in cluster.events(job_id) if event["type"] == "requeued"] == [
        {"reason": "worker_shutdown"}
    ]
    wait_until(lambda: not worker.is_running() or worker.status() == "zombie", timeout=20, what="the worker has ended")
    cluster.cancel(job_id)


@SLOW
def test_a_zombie_attempt_is_fenced_and_leaves_nothing(cluster: Cluster, undisturbed: str) -> None:
    job_id = cluster.at_work(FIVE_EPOCHS, epochs=1)
    zombie = cluster.process_of(job_id)
    with stopped(zombie):
        # Elsewhere the job goes on and ends while the first attempt still believes that it holds the lease.
        job = ended(cluster.http, job_id, timeout=LEASE_SECONDS + 20)
    assert cluster.model_sha256(job) == undisturbed
    assert job["attempt"] == 2
    wait_until(
        lambda: not zombie.is_running() or f'"{job_id}", "attempt": 1, "outcome": "fenced"' in cluster.log_of_workers(),
        timeout=10,
        what="the zombie has found out, or was ended",
    )
    cluster.wait_until_tidy(job)
    assert sum(kind == "succeeded" for kind in _types(cluster, job_id)) == 1


@SLOW
def test_a_broker_that_is_killed_and_comes_back_loses_no_job(cluster: Cluster) -> None:
    jobs = [submit(cluster.http, train_spec())["id"] for _ in range(3)]
    broker = cluster.stack.children["broker"]
    os.kill(broker.pid, signal.SIGKILL)
    jobs += [submit(cluster.http, train_spec())["id"] for _ in range(3)]
    assert {ended(cluster.http, job_id)["status"] for job_id in jobs} == {"succeeded"}


def test_a_frozen_broker_holds_up_neither_a_post_nor_a_running_job(cluster: Cluster) -> None:
    running = cluster.at_work()
    with stopped(psutil.Process(cluster.stack.children["broker"].pid)):
        began = time.monotonic()
        job_id = submit(cluster.http, train_spec())["id"]
        assert time.monotonic() - began < 3
        assert cluster.http.get("/readyz").json() == {"status": "unavailable", "database": True, "broker": False}
        before = len(cluster.events(running))
        until = time.monotonic() + 2 * LEASE_SECONDS
        wait_until(lambda: time.monotonic() > until, timeout=60, what="two leases have passed")
        assert read(cluster.http, running)["attempt"] == 1
        assert len(cluster.events(running)) > before
        assert read(cluster.http, job_id)["status"] == "queued"
    assert ended(cluster.http, job_id)["status"] == "succeeded"
    cluster.cancel(running)


def test_after_flushall_what_is_queued_is_published_again_within_a_sweep(cluster: Cluster) -> None:
    busy = [cluster.at_work(epochs=1) for _ in range(2)]
    waiting = submit(cluster.http, train_spec())["id"]
    wait_until(lambda: cluster.waiting_messages(), timeout=10, what="the message waits")
    with cluster.operator() as operator:
        operator.flushall()
    wait_until(lambda: cluster.waiting_messages(), timeout=SWEEP_SECONDS + 1, what="the message is back")
    for job_id in busy:
        cluster.cancel(job_id)
    assert ended(cluster.http, waiting)["status"] == "succeeded"


def test_a_message_that_is_lost_between_broker_and_worker_is_sent_again(cluster: Cluster) -> None:
    workers = cluster.workers()
    for worker in workers:
        stop(worker)  # idle, its request for the next message is with the broker
    job_id = submit(cluster.http, train_spec())["id"]
    wait_until(lambda: cluster.queue.look(), timeout=10, what="the broker answers")
    for worker in workers:
        worker.kill()
    assert ended(cluster.http, job_id, timeout=60)["status"] == "succeeded"
    assert _types(cluster, job_id).count("running") == 1


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
    assert _types(cluster, job_id).count("running") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@SLOW
def test_a_job_that_kills_its_process_each_time_fails_and_the_queue_moves_on(cluster: Cluster) -> None:
    poison = submit(cluster.http, ENDLESS)["id"]
    for attempt in (1, 2, 3):
        cluster.wait_for_training(poison, attempt, timeout=30)
        cluster.process_of(poison).kill()
    job = ended(cluster.http, poison, timeout=30)
    assert (job["status"], job["error"]["code"], job["error"]["attempt"]) == ("failed", "worker_lost", 3)
    assert job["error"]["details"]["phase"] == "training"
    finished(cluster.http, train_spec())


def test_a_failed_job_is_retried_from_where_it_was(cluster: Cluster, undisturbed: str) -> None:
    job_id = submit(cluster.http, FIVE_EPOCHS)["id"]
    for attempt in (1, 2, 3):
        cluster.wait_for_training(job_id, attempt, timeout=30)
        cluster.wait_for_epochs(job_id, 1, attempt=attempt)
        cluster.process_of(job_id).kill()
    assert ended(cluster.http, job_id, timeout=30)["status"] == "failed"

    answer = cluster.http.post(f"/v1/jobs/{job_id}/retry")

    assert (answer.status_code, answer.json()["status"], answer.json()["error"]) == (202, "queued", None)
    job = ended(cluster.http, job_id)
    assert cluster.model_sha256(job) == undisturbed
    assert job["attempt"] == 4
    resumes = json.loads(cluster.artifact(job, "manifest.json"))["receipt"]["resumes"]
    assert [resume["attempt"] for resume in resumes] == [2, 3, 4]
    ends = [kind for kind in _types(cluster, job_id) if kind in ("failed", "succeeded", "cancelled")]
    assert ends == ["failed", "succeeded"]
    assert cluster.http.post(f"/v1/jobs/{job_id}/retry").json()["code"] == "job_not_retryable"
    cluster.wait_until_tidy(job)


def test_without_the_apis_sweeper_the_workers_own_do_its_work(cluster: Cluster) -> None:
    job_id = cluster.at_work()
    job_process = cluster.process_of(job_id)
    with stopped(psutil.Process(cluster.stack.children["api"].pid)):
        said = cluster.log_of_workers().count('"action": "requeued"')
        job_process.kill()
        wait_until(
            lambda: cluster.log_of_workers().count('"action": "requeued"') > said, timeout=6, what="a worker swept it"
        )
    cluster.wait_for_training(job_id, 2, timeout=20)
    cluster.cancel(job_id)


def test_a_database_that_is_killed_and_comes_back_interrupts_no_job(cluster: Cluster, undisturbed: str) -> None:
    job_id = cluster.at_work(FIVE_EPOCHS, epochs=1)
    postgres = cluster.stack.children["postgres"]
    before = postgres.pid
    os.kill(before, signal.SIGKILL)
    answer = cluster.http.get(f"/v1/jobs/{job_id}")
    if answer.status_code != 200:  # it may be back already
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert int(answer.headers["Retry-After"]) > 0

    def answers() -> Document | None:
        answer = cluster.http.get(f"/v1/jobs/{job_id}")
        job: Document = answer.json()
        return job if answer.status_code == 200 and job["done"] else None

    job = wait_until(answers, timeout=60, what="the job is done")
    assert postgres.pid != before
    assert cluster.model_sha256(job) == undisturbed
    seqs = [event["seq"] for event in cluster.events(job_id)]
    assert seqs == list(range(1, len(seqs) + 1))
