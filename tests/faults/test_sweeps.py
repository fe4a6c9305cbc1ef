"""Sweeps whose members run on several workers, of which some are killed."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import suppress

import psutil
import pytest

from tests.faults.cluster import Cluster
from tests.specs import Document, ended, submit, sweep_spec, train_spec
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(400)

SEEDS = [1, 2, 3, 4]
EPOCHS = 4
BASE = train_spec(training={"epochs": EPOCHS})
SWEEP = sweep_spec(base=BASE, grid={"seeds": SEEDS})


def _members(cluster: Cluster, sweep_id: str, **filters: str) -> list[Document]:
    answer = cluster.http.get("/v1/jobs", params={"sweep": sweep_id, **filters}).raise_for_status()
    return list(reversed(answer.json()["items"]))


@pytest.fixture(scope="session")
def alone(shared_cluster: Cluster) -> list[str]:
    """sha256 of the model of each member's spec when it is a job by itself and nothing happens."""
    jobs = [submit(shared_cluster.http, {**BASE, "training": {"epochs": EPOCHS, "seed": seed}}) for seed in SEEDS]
    return [shared_cluster.model_sha256(ended(shared_cluster.http, job["id"])) for job in jobs]


def _log_is_whole(cluster: Cluster, sweep: Document) -> None:
    events = cluster.events(sweep["id"])
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    told = Counter(event["data"]["member"] for event in events if event["type"] == "member")
    assert told == dict.fromkeys(range(len(SEEDS)), 1)
    assert [event["type"] for event in events if event["type"] in ("succeeded", "failed")] == [sweep["status"]]


def test_members_run_on_all_workers_and_one_that_is_killed_costs_nothing(cluster: Cluster, alone: list[str]) -> None:
    sweep_id = submit(cluster.http, SWEEP)["id"]
    running = wait_until(
        lambda: found if len(found := _members(cluster, sweep_id, status="running")) == 2 else None,
        timeout=60,
        what="two members run",
    )
    first, second = (cluster.process_of(job["id"]) for job in running)
    assert first.parent() != second.parent()
    first.kill()

    sweep = ended(cluster.http, sweep_id)

    assert (sweep["status"], sweep["result"]["succeeded"]) == ("succeeded", len(SEEDS))
    members = _members(cluster, sweep_id)
    assert max(member["attempt"] for member in members) == 2
    assert [cluster.model_sha256(member) for member in members] == alone
    _log_is_whole(cluster, sweep)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_times_lose_no_member_and_tell_each_once(cluster: Cluster, alone: list[str], seed: int) -> None:
    chance = random.Random(seed)
    sweep_id = submit(cluster.http, SWEEP)["id"]
    for _ in range(3):
        moment = time.monotonic() + chance.uniform(0.2, 3)
        wait_until(lambda: time.monotonic() >= moment, timeout=10, what="the moment has come")  # noqa: B023 - at once
        with suppress(psutil.NoSuchProcess):
            chance.choice([*cluster.job_processes(), *cluster.workers()]).kill()

    sweep = ended(cluster.http, sweep_id, timeout=150)

    members = _members(cluster, sweep_id)
    assert (sweep["status"], [member["status"] for member in members]) == ("succeeded", ["succeeded"] * len(SEEDS))
    assert [cluster.model_sha256(member) for member in members] == alone
    _log_is_whole(cluster, sweep)
    cluster.wait_until_tidy(sweep)


@pytest.mark.chaos
def test_a_cancel_amid_a_sweep_ends_all_of_it(cluster: Cluster) -> None:
    sweep_id = submit(cluster.http, sweep_spec(base=train_spec(training={"epochs": 1000}), grid={"seeds": SEEDS}))["id"]
    wait_until(lambda: len(_members(cluster, sweep_id, status="running")) == 2, timeout=60, what="two members run")
    assert cluster.cancel(sweep_id)["status"] == "cancelled"
    for member in _members(cluster, sweep_id):
        cluster.wait_until_tidy(ended(cluster.http, member["id"], timeout=40))
    assert {member["status"] for member in _members(cluster, sweep_id)} == {"cancelled"}
