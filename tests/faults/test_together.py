"""Members that one worker trains together, when its process is killed or told to go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest

from app.local import stack
from tests.faults.cluster import SETTINGS, Cluster
from tests.faults.conftest import client_of
from tests.specs import Document, ended, read, submit, sweep_spec, train_spec
from tests.waiting import wait_until

# Long trainings, at many times the work of others: beside another process of tests they would not be done in time.
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

SEEDS = [1, 2, 3, 4]
EPOCHS = 40
SGD = {"optimizer": {"name": "sgd"}, "learning_rate": 0.02}
SWEEP = sweep_spec(base=train_spec(training={"epochs": EPOCHS, **SGD}), grid={"seeds": SEEDS})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One worker, which trains members together, though it has no GPU."""
    state = tmp_path_factory.mktemp("together") / "state"
    env = SETTINGS | {"SECATEUR_WORKER_TOGETHER": "16", "SECATEUR_WORKER_TOGETHER_ON": "any"}
    with (
        stack(state_dir=state, workers=1, durable=False, env=env, notify=lambda _: None) as running,
        client_of(running) as http,
    ):
        cluster = Cluster(running, http)
        cluster.wait_until_ready(workers=1)
        yield cluster
        cluster.queue.close()


def _at_work(cluster: Cluster) -> tuple[str, Sequence[str]]:
    """A sweep whose members are all trained at this moment, by one process; and the members."""
    cluster.wait_until_ready(workers=1)
    sweep_id = submit(cluster.http, SWEEP)["id"]
    found = cluster.http.get("/v1/jobs", params={"sweep": sweep_id}).raise_for_status().json()["items"]
    members = [job["id"] for job in reversed(found)]
    for job_id in members:
        cluster.wait_for_epochs(job_id, 2)
    assert len({cluster.process_of(job_id).pid for job_id in members}) == 1
    return sweep_id, members


def _receipts(cluster: Cluster, members: Sequence[str]) -> list[Document]:
    texts = [cluster.artifact(ended(cluster.http, job_id), "manifest.json") for job_id in members]
    return [json.loads(text)["receipt"] for text in texts]


def _all_is_well(cluster: Cluster, sweep_id: str, members: Sequence[str]) -> None:
    """Each has gone on where it was, and come to its end once."""
    sweep = ended(cluster.http, sweep_id)
    assert (sweep["status"], sweep["result"]["succeeded"]) == ("succeeded", len(SEEDS))
    for job_id, receipt in zip(members, _receipts(cluster, members), strict=True):
        job = read(cluster.http, job_id)
        assert (job["status"], job["attempt"], receipt["together"]) == ("succeeded", 2, len(SEEDS))
        assert [resume["attempt"] for resume in receipt["resumes"]] == [2]
        metrics = cluster.artifact(job, "metrics.jsonl").splitlines()
        assert [json.loads(line)["epoch"] for line in metrics] == list(range(1, EPOCHS + 1))
        assert cluster.types(job_id).count("succeeded") == 1
        cluster.wait_until_tidy(job)


def test_a_killed_process_costs_each_member_an_attempt_and_each_goes_on(cluster: Cluster) -> None:
    sweep_id, members = _at_work(cluster)

    cluster.process_of(members[0]).kill()

    for job_id in members:
        # Long before the leases would have run out: the worker has seen the process go.
        wait_until(lambda: "requeued" in cluster.types(job_id), timeout=6, what=f"{job_id} is free")  # noqa: B023
    _all_is_well(cluster, sweep_id, members)


def test_a_worker_that_is_told_to_go_hands_all_members_back(cluster: Cluster) -> None:
    sweep_id, members = _at_work(cluster)

    cluster.worker_of(members[0]).terminate()

    for job_id in members:
        wait_until(lambda: "requeued" in cluster.types(job_id), timeout=6, what=f"{job_id} is back")  # noqa: B023
        [event] = [event for event in cluster.events(job_id) if event["type"] == "requeued"]
        assert event["data"] == {"reason": "worker_shutdown"}
    _all_is_well(cluster, sweep_id, members)


def test_one_that_is_cancelled_leaves_and_the_others_go_on_in_the_same_process(cluster: Cluster) -> None:
    sweep_id, members = _at_work(cluster)
    before = cluster.process_of(members[0])

    assert cluster.cancel(members[0])["status"] == "cancelled"

    sweep = ended(cluster.http, sweep_id)
    assert (sweep["result"]["succeeded"], sweep["result"]["cancelled"]) == (3, 1)
    assert [read(cluster.http, job_id)["attempt"] for job_id in members] == [1] * 4
    assert before.is_running()
