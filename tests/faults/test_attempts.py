"""What happens to attempts: job processes and workers that are killed, frozen or told to go."""

from __future__ import annotations

import json
import time

import psutil
import pytest

from tests.faults.cluster import (
    ENDLESS,
    FIVE_EPOCHS,
    LEASE_SECONDS,
    STEPS,
    Cluster,
    stopped,
    training,
    undisturbed_model,
)
from tests.specs import ended, finished, submit, train_spec
from tests.waiting import wait_until
from worker.engine.resume import load

SLOW = pytest.mark.chaos
"""For CI and on request."""


@pytest.mark.parametrize(
    ("epoch", "epochs"), [(1, 2), *(pytest.param(epoch, 5, marks=SLOW) for epoch in (1, 2, 3, 4, 5))]
)
def test_killed_in_any_epoch_while_the_api_is_frozen_a_training_gives_the_same_bits(
    cluster: Cluster, epoch: int, epochs: int
) -> None:
    job_id = cluster.at_work(training(epochs), epochs=epoch)
    job_process = cluster.process_of(job_id)
    with stopped(psutil.Process(cluster.stack.children["api"].pid)):
        said = cluster.log_of_workers().count('"action": "requeued"')
        job_process.kill()
        wait_until(
            lambda: cluster.log_of_workers().count('"action": "requeued"') > said, timeout=6, what="a worker swept it"
        )
    job = ended(cluster.http, job_id)

    assert cluster.model_sha256(job) == undisturbed_model(training(epochs))
    assert job["attempt"] == 2
    receipt = json.loads(cluster.artifact(job, "manifest.json"))["receipt"]
    assert receipt["attempt"] == 2
    assert [resume["attempt"] for resume in receipt["resumes"]] == [2]
    assert receipt["resumes"][0]["step"] >= STEPS * (epoch - 1)
    metrics = cluster.artifact(job, "metrics.jsonl").splitlines()
    assert [json.loads(line)["epoch"] for line in metrics] == list(range(1, epochs + 1))
    cluster.wait_until_tidy(job)


@SLOW
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(cluster: Cluster, undisturbed: str) -> None:
    job_id = cluster.at_work(FIVE_EPOCHS, epochs=3)
    with stopped(cluster.process_of(job_id)):
        newest, before = cluster.checkpoints(job_id)
        newest.write_bytes(newest.read_bytes()[:-1])
        whole = load(before)
        cluster.process_of(job_id).kill()
    job = ended(cluster.http, job_id)

    assert cluster.model_sha256(job) == undisturbed
    [resume] = json.loads(cluster.artifact(job, "manifest.json"))["receipt"]["resumes"]
    assert resume["step"] == whole.epoch * STEPS + whole.step > 0
    said = [line for line in cluster.log_of_workers().splitlines() if "checkpoint passed over" in line]
    assert len([line for line in said if job_id in line and newest.name in line]) == 1


@pytest.mark.alone
def test_a_killed_job_process_costs_its_job_six_seconds_at_most(cluster: Cluster) -> None:
    job_id = cluster.at_work()
    began = time.monotonic()
    cluster.process_of(job_id).kill()
    wait_until(lambda: "requeued" in cluster.types(job_id), timeout=6, what="the job is free")
    # Long before the lease would have run out: its worker has seen the process go.
    assert time.monotonic() - began < LEASE_SECONDS / 2
    cluster.wait_for_training(job_id, 2, timeout=began + 6 - time.monotonic())
    assert [event["data"] for event in cluster.events(job_id) if event["type"] == "requeued"] == [
        {"reason": "lease_expired"}
    ]
    assert "resumed" in cluster.types(job_id)
    job = cluster.cancel(job_id)
    assert job["status"] == "cancelled"
    cluster.wait_until_tidy(job)


@SLOW
def test_a_killed_worker_loses_its_job_to_another_when_the_lease_is_over(cluster: Cluster, undisturbed: str) -> None:
    job_id = cluster.at_work(FIVE_EPOCHS, epochs=1)
    cluster.worker_of(job_id).kill()
    job = ended(cluster.http, job_id, timeout=LEASE_SECONDS + 30)
    assert cluster.model_sha256(job) == undisturbed
    assert job["attempt"] == 2
    cluster.wait_until_tidy(job)


@pytest.mark.alone
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
        until = time.monotonic() + LEASE_SECONDS + 4
        cluster.wait_for_training(job_id, 2, timeout=LEASE_SECONDS + 10)
        wait_until(lambda: time.monotonic() > until, timeout=60, what="the lease has been over for a while")
    wait_until(lambda: _outcomes(cluster, job_id).get(1) == "fenced", timeout=10, what="the zombie has found out")
    assert not (cluster.folder(job_id) / ".1.partial").exists()
    job = ended(cluster.http, job_id)
    assert cluster.model_sha256(job) == undisturbed
    assert job["attempt"] == 2
    cluster.wait_until_tidy(job)
    assert cluster.types(job_id).count("succeeded") == 1


def _outcomes(cluster: Cluster, job_id: str) -> dict[int, str]:
    """What the workers' log says became of each attempt."""
    told = [json.loads(line) for line in cluster.log_of_workers().splitlines() if "attempt ended" in line]
    return {line["attempt"]: line["outcome"] for line in told if line["job_id"] == job_id}


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


@SLOW
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
    ends = [kind for kind in cluster.types(job_id) if kind in ("failed", "succeeded", "cancelled")]
    assert ends == ["failed", "succeeded"]
    assert cluster.http.post(f"/v1/jobs/{job_id}/retry").json()["code"] == "job_not_retryable"
    cluster.wait_until_tidy(job)


@SLOW
def test_what_nobody_swept_for_half_a_minute_the_first_sweep_frees(cluster: Cluster) -> None:
    job_id = cluster.at_work()
    job_process, api = cluster.process_of(job_id), psutil.Process(cluster.stack.children["api"].pid)
    with stopped(api, *cluster.workers()):
        job_process.kill()
        until = time.monotonic() + 30
        wait_until(lambda: time.monotonic() > until, timeout=60, what="half a minute has passed")
    cluster.wait_for_training(job_id, 2, timeout=10)
    cluster.cancel(job_id)
