"""Sweeps whose members run on several workers, of which some are killed."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import psutil
import pytest

from tests.faults.cluster import Cluster, undisturbed_model
from tests.specs import Document, ended, submit, sweep_spec, train_spec
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(400)

THREE, FOUR = [1, 2, 3], [1, 2, 3, 4]
"""Seeds."""


def _sweep(seeds: Sequence[int], epochs: int) -> Document:
    return sweep_spec(base=train_spec(training={"epochs": epochs}), grid={"seeds": seeds})


def _alone(seeds: Sequence[int], epochs: int) -> list[str]:
    """sha256 of the model of each member's spec when it is a training by itself and nothing happens."""
    return [undisturbed_model(train_spec(training={"epochs": epochs, "seed": seed})) for seed in seeds]


def _members(cluster: Cluster, sweep_id: str, **filters: str) -> list[Document]:
    answer = cluster.http.get("/v1/jobs", params={"sweep": sweep_id, **filters}).raise_for_status()
    return list(reversed(answer.json()["items"]))


def _log_is_whole(cluster: Cluster, sweep: Document, members: int) -> None:
    events = cluster.events(sweep["id"])
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    told = Counter(event["data"]["member"] for event in events if event["type"] == "member")
    assert told == dict.fromkeys(range(members), 1)
    assert [event["type"] for event in events if event["type"] in ("succeeded", "failed")] == [sweep["status"]]


def test_members_run_on_all_workers_and_one_that_is_killed_costs_nothing(cluster: Cluster) -> None:
    sweep_id = submit(cluster.http, _sweep(THREE, 3))["id"]
    running = wait_until(
        lambda: found if len(found := _members(cluster, sweep_id, status="running")) == 2 else None,
        timeout=60,
        what="two members run",
    )
    # The one that began last has most before it.
    first, last = (cluster.process_of(job["id"]) for job in sorted(running, key=lambda job: str(job["started_at"])))
    assert first.parent() != last.parent()
    last.kill()

    sweep = ended(cluster.http, sweep_id)

    assert (sweep["status"], sweep["result"]["succeeded"]) == ("succeeded", len(THREE))
    members = _members(cluster, sweep_id)
    assert max(member["attempt"] for member in members) == 2
    assert [cluster.model_sha256(member) for member in members] == _alone(THREE, 3)
    _log_is_whole(cluster, sweep, len(THREE))


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_times_lose_no_member_and_tell_each_once(cluster: Cluster, seed: int) -> None:
    chance = random.Random(seed)
    sweep_id = submit(cluster.http, _sweep(FOUR, 4))["id"]
    for _ in range(3):
        moment = time.monotonic() + chance.uniform(0.2, 3)
        wait_until(lambda: time.monotonic() >= moment, timeout=10, what="the moment has come")  # noqa: B023 - at once
        with suppress(psutil.NoSuchProcess):
            chance.choice([*cluster.job_processes(), *cluster.workers()]).kill()

    sweep = ended(cluster.http, sweep_id, timeout=150)

    members = _members(cluster, sweep_id)
    assert (sweep["status"], [member["status"] for member in members]) == ("succeeded", ["succeeded"] * len(FOUR))
    assert [cluster.model_sha256(member) for member in members] == _alone(FOUR, 4)
    _log_is_whole(cluster, sweep, len(FOUR))
    cluster.wait_until_tidy(sweep)


@pytest.mark.chaos
def test_a_cancel_amid_a_sweep_ends_all_of_it(cluster: Cluster) -> None:
    sweep_id = submit(cluster.http, _sweep(FOUR, 1000))["id"]
    wait_until(lambda: len(_members(cluster, sweep_id, status="running")) == 2, timeout=60, what="two members run")
    assert cluster.cancel(sweep_id)["status"] == "cancelled"
    for member in _members(cluster, sweep_id):
        cluster.wait_until_tidy(ended(cluster.http, member["id"], timeout=40))
    assert {member["status"] for member in _members(cluster, sweep_id)} == {"cancelled"}
