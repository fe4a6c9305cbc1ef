"""Sweeps over HTTP: one request, many jobs, and one place that tells what has become of them."""

from __future__ import annotations

import csv
import io
from typing import Any, NamedTuple

import httpx
import pytest

from app.contract.frontier import Frontier
from app.db.session import session_scope
from app.local import Stack
from app.services import quotas
from tests.api.conftest import sqlalchemy_url
from tests.specs import FEW, Document, ended, finished, read, submit, sweep_spec, train_spec
from tests.waiting import wait_until

WIDE, NARROW = {"channels": [8, 8, 8], "hidden": 20}, {"channels": [2, 2, 2], "hidden": 4}


def _members(http: httpx.Client, sweep_id: str, **filters: Any) -> list[Document]:
    """In the grid's order."""
    answer = http.get("/v1/jobs", params={"sweep": sweep_id, "limit": 100, **filters})
    assert answer.status_code == 200, answer.text
    return list(reversed(answer.json()["items"]))


def _refused(answer: httpx.Response, status: int = 422) -> list[Document]:
    assert answer.status_code == status, answer.text
    errors: list[Document] = answer.json()["errors"]
    return errors


class Followed(NamedTuple):
    """A sweep that has ended, and how many members had, each time that whoever waited for a change was told of one."""

    job: Document
    seen: set[int]


@pytest.fixture(scope="session")
def followed(http: httpx.Client) -> Followed:
    """Of four members."""
    grid = {"thresholds": [0.01, 0.1], "seeds": [1, 2]}
    spec = sweep_spec(base=train_spec(dataset=FEW), grid=grid, display_name="how far", labels={"team": "a"})
    now = submit(http, spec)
    seen, etag = set(), ""
    while not now["done"]:
        answer = http.get(now["links"]["self"], params={"wait": 30}, headers={"If-None-Match": etag})
        etag, now = answer.headers["ETag"], answer.json()
        if now["progress"] and now["progress"]["unit"] == "members":
            seen.add(now["progress"]["completed"])
    return Followed(now, seen)


@pytest.fixture(scope="session")
def swept(followed: Followed) -> Document:
    """A sweep of four members that has succeeded."""
    assert followed.job["status"] == "succeeded", followed.job["error"]
    return followed.job


def test_a_sweep_is_accepted_with_its_members_in_the_queue(idle_http: httpx.Client) -> None:
    answer = idle_http.post("/v1/jobs", json=sweep_spec(base=train_spec(labels={"part": "member"})))
    job = answer.json()
    assert (answer.status_code, job["kind"], job["status"], job["phase"]) == (202, "sweep", "waiting", "waiting")
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert job["sweep_id"] is None
    assert job["progress"]["unit"] == "members"
    assert (job["progress"]["completed"], job["progress"]["total"], job["progress"]["fraction"]) == (0, 2, 0)
    assert read(idle_http, job["id"])["queue"] is None
    found = _members(idle_http, job["id"])
    assert [member["spec"]["pruning"]["threshold"] for member in found] == [0.01, 0.05]
    for member in found:
        assert (member["kind"], member["status"], member["sweep_id"]) == ("train", "queued", job["id"])
        assert member["labels"] == {"part": "member"}
        assert member["parent_job_id"] is None
        assert read(idle_http, member["id"])["queue"]["position"] >= 1


def test_a_finished_sweep_has_its_frontier_and_leads_to_its_members(http: httpx.Client, swept: Document) -> None:
    assert swept["result"]["members"] == swept["result"]["succeeded"] == 4
    items = http.get(swept["links"]["artifacts"]).json()["items"]
    assert [item["name"] for item in items] == ["frontier.csv", "frontier.json", "frontier.png", "manifest.json"]
    frontier = Frontier.model_validate(http.get(f"{swept['links']['artifacts']}/frontier.json").json())
    assert frontier.axes == ("threshold", "seed")
    for member, job in zip(frontier.members, _members(http, swept["id"]), strict=True):
        assert (member.job_id, member.status) == (job["id"], job["status"])
        assert member.outcome is not None
        assert member.outcome.nonzero == job["result"]["nonzero_after"]
        assert member.outcome.accuracy_after == job["result"]["accuracy_after"]
        assert (member.settings.threshold, member.settings.seed) == (
            job["spec"]["pruning"]["threshold"],
            job["spec"]["training"]["seed"],
        )
    table = http.get(f"{swept['links']['artifacts']}/frontier.csv")
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    assert [row["job_id"] for row in csv.DictReader(io.StringIO(table.text))] == [m.job_id for m in frontier.members]
    schema = http.get("/v1/schemas/frontier").json()
    assert set(schema["properties"]) == set(Frontier.model_fields)


def test_its_log_tells_of_every_member(http: httpx.Client, swept: Document) -> None:
    events = http.get(swept["links"]["events"], params={"limit": 100}).json()["items"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["type"] == "waiting"
    assert sorted(e["data"]["member"] for e in events if e["type"] == "member") == [0, 1, 2, 3]


def test_a_lineage_has_the_members(http: httpx.Client, swept: Document) -> None:
    lineage = http.get(f"{swept['links']['self']}/lineage").json()
    ids = [member["id"] for member in _members(http, swept["id"])]
    assert [(edge["from"], edge["to"], edge["relation"]) for edge in lineage["edges"]] == [
        (job_id, swept["id"], "member") for job_id in ids
    ]
    assert all(edge["artifact"] == "report.json" and edge["sha256"] for edge in lineage["edges"])
    of_member = http.get(f"/v1/jobs/{ids[0]}/lineage").json()
    assert (ids[0], swept["id"]) in [(edge["from"], edge["to"]) for edge in of_member["edges"]]


def test_progress_counts_members_and_wakes_whoever_waits(followed: Followed) -> None:
    assert followed.job["status"] == "succeeded"
    assert followed.seen & {1, 2, 3}  # who is slow may miss one


def test_a_cancel_ends_a_sweep_with_its_members(http: httpx.Client) -> None:
    job = submit(http, sweep_spec(base=train_spec(training={"epochs": 1000}), grid={"seeds": [1, 2, 3]}))
    wait_until(
        lambda: any(member["status"] == "running" for member in _members(http, job["id"])), timeout=60, what="one runs"
    )
    answer = http.post(job["links"]["cancel"])
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert http.post(job["links"]["cancel"]).status_code == 200
    for member in _members(http, job["id"]):
        assert ended(http, member["id"])["status"] == "cancelled"
    assert http.get(job["links"]["artifacts"]).json()["items"] == []


def test_the_frontier_is_of_those_that_succeeded(http: httpx.Client) -> None:
    busy = submit(http, train_spec(training={"epochs": 1000}))
    job = submit(http, sweep_spec(base=train_spec(dataset=FEW), grid={"seeds": [1, 2]}))
    last = _members(http, job["id"])[-1]
    assert http.post(last["links"]["cancel"]).status_code == 202
    http.post(busy["links"]["cancel"]).raise_for_status()
    done = ended(http, job["id"])
    assert done["status"] == "succeeded"
    assert {name: done["result"][name] for name in ("members", "succeeded", "failed", "cancelled", "unfinished")} == {
        "members": 2,
        "succeeded": 1,
        "failed": 0,
        "cancelled": 1,
        "unfinished": 0,
    }


def test_the_same_request_makes_one_sweep(idle_http: httpx.Client) -> None:
    keyed: dict[str, Any] = {"json": sweep_spec(), "headers": {"Idempotency-Key": "one-sweep"}}
    first, again = idle_http.post("/v1/jobs", **keyed), idle_http.post("/v1/jobs", **keyed)
    assert again.content == first.content
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(_members(idle_http, first.json()["id"])) == 2


def test_a_sweep_is_rerun_as_another_one_and_a_member_as_a_job_of_its_own(idle_http: httpx.Client) -> None:
    job = submit(idle_http, sweep_spec())
    again = idle_http.post(job["links"]["rerun"]).json()
    assert (again["parent_job_id"], again["spec"]) == (job["id"], job["spec"])
    assert len(_members(idle_http, again["id"])) == 2
    member = _members(idle_http, job["id"])[0]
    alone = idle_http.post(member["links"]["rerun"]).json()
    assert (alone["parent_job_id"], alone["sweep_id"], alone["spec"]) == (member["id"], None, member["spec"])


def test_a_sweep_goes_when_it_is_done_and_its_members_stay(newcomer: httpx.Client) -> None:
    job = submit(newcomer, sweep_spec())
    member = _members(newcomer, job["id"])[0]
    newcomer.post(member["links"]["cancel"])
    in_use = newcomer.delete(member["links"]["self"])
    assert (in_use.status_code, in_use.json()["code"]) == (409, "job_in_use")
    assert newcomer.delete(job["links"]["self"]).status_code == 409
    newcomer.post(job["links"]["cancel"])
    assert newcomer.delete(job["links"]["self"]).status_code == 204
    assert newcomer.get(job["links"]["self"]).status_code == 410
    assert [each["status"] for each in _members(newcomer, job["id"])] == ["cancelled", "cancelled"]
    assert newcomer.delete(member["links"]["self"]).status_code == 204


def test_a_queue_takes_all_members_or_none(idle_service: Stack, newcomer: httpx.Client) -> None:
    tenant = newcomer.get("/v1/quotas").json()["tenant"]
    with session_scope(sqlalchemy_url(idle_service)) as session:
        quotas.set_limits(session, tenant, {"max_queued": 3})
    submit(newcomer, sweep_spec())  # two members, and the sweep itself is in no queue
    problem = newcomer.post("/v1/jobs", json=sweep_spec())
    assert (problem.status_code, problem.json()["code"]) == (429, "quota_exceeded")
    assert "this is 2 more" in problem.json()["detail"]
    assert newcomer.get("/v1/quotas").json()["queued_jobs"] == {"limit": 3, "in_use": 2}
    submit(newcomer, sweep_spec(grid={"seeds": [1]}))


def test_validating_tells_what_all_members_ask_for_and_stores_nothing(newcomer: httpx.Client) -> None:
    def estimate(spec: Document) -> Document:
        answer = newcomer.post("/v1/jobs", params={"validate_only": True}, json=spec)
        assert answer.status_code == 200, answer.text
        found: Document = answer.json()["estimate"]
        return found

    both = estimate(sweep_spec(grid={"widths": [WIDE, NARROW]}))
    wide, narrow = (estimate(train_spec(model=model)) for model in (WIDE, NARROW))
    assert both == {
        "members": 2,
        "parameters": wide["parameters"],
        "macs_per_image": wide["macs_per_image"],
        "training_macs": wide["training_macs"] + narrow["training_macs"],
        "checkpoint_bytes": wide["checkpoint_bytes"] + narrow["checkpoint_bytes"],
    }
    assert wide["members"] is None
    assert newcomer.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    ("spec", "pointer", "code", "said"),
    [
        (
            sweep_spec(
                base=train_spec(pruning={"method": "magnitude", "sparsity": 0.5}),
                grid={"widths": [WIDE, NARROW], "keeps": [5000]},
            ),
            "/grid/keeps/0",
            "misfit",
            "member 1 (widths 2×2×2+4, keep 5000): pruning.keep is 5000, but only",
        ),
        (
            sweep_spec(
                base=train_spec(pruning={"method": "magnitude", "keep": 5}), grid={"keeps": [100, 1_000_000_000]}
            ),
            "/grid/keeps/1",
            "misfit",
            "member 1 (keep 1000000000): pruning.keep is 1000000000, but only",
        ),
        (
            sweep_spec(
                base=train_spec(dataset={"name": "mnist"}, training={"epochs": 1000}, model={}),
                grid={"seeds": [*range(256)]},
            ),
            "/grid",
            "too_much_work",
            "of a sweep",
        ),
        (
            sweep_spec(base=train_spec(initial={"job_id": "job_" + "0" * 32})),
            "/base/initial/job_id",
            "source_not_found",
            "there is no job",
        ),
        (
            sweep_spec(base=train_spec(dataset={"id": "job_" + "0" * 32})),
            "/base/dataset/id",
            "source_not_found",
            "there is no data set",
        ),
    ],
    ids=["a member alone", "a value", "all together", "the checkpoint", "the data set"],
)
def test_what_no_member_could_do_is_refused_with_its_place_in_the_sweep(
    newcomer: httpx.Client, spec: Document, pointer: str, code: str, said: str
) -> None:
    [error] = _refused(newcomer.post("/v1/jobs", json=spec))
    assert (error["pointer"], error["code"]) == (pointer, code)
    assert said in error["detail"]
    assert newcomer.get("/v1/jobs").json()["items"] == []


def test_members_begin_with_the_checkpoint_of_the_base(http: httpx.Client, trained: Document) -> None:
    base = train_spec(dataset=FEW, initial={"job_id": trained["id"]})
    del base["model"]
    job = finished(http, sweep_spec(base=base, grid={"seeds": [1]}))
    assert job["spec"]["base"]["model"] == trained["spec"]["model"]
    (member,) = _members(http, job["id"])
    edges = http.get(f"/v1/jobs/{member['id']}/lineage").json()["edges"]
    assert (trained["id"], "initial") in [(edge["from"], edge["relation"]) for edge in edges]


def test_a_sweep_cannot_be_built_upon(http: httpx.Client, swept: Document) -> None:
    for spec, code in (
        (train_spec(initial={"job_id": swept["id"]}), "source_has_no_network"),
        ({"kind": "compare", "jobs": [swept["id"], swept["result"]["front"][0]]}, "source_has_no_report"),
    ):
        assert [error["code"] for error in _refused(http.post("/v1/jobs", json=spec))] == [code]


def test_as_many_members_as_there_may_be_are_let_in_at_once(newcomer: httpx.Client) -> None:
    job = submit(newcomer, sweep_spec(grid={"seeds": [*range(256)]}))
    assert job["progress"]["total"] == 256
    assert newcomer.get("/v1/quotas").json()["queued_jobs"]["in_use"] == 256
    assert newcomer.post(job["links"]["cancel"]).json()["status"] == "cancelled"
    assert newcomer.get("/v1/quotas").json()["queued_jobs"]["in_use"] == 0


def test_strangers_see_neither_a_sweep_nor_its_members(idle_http: httpx.Client, stranger: httpx.Client) -> None:
    job = submit(idle_http, sweep_spec())
    assert stranger.get(job["links"]["self"]).status_code == 404
    assert stranger.post(job["links"]["cancel"]).status_code == 404
    assert _members(stranger, job["id"]) == []
    assert {member["status"] for member in _members(idle_http, job["id"])} == {"queued"}
