from __future__ import annotations

import httpx
import pytest

from tests.specs import FEW, Document, compare_spec, ended, finished, read, submit, sweep_spec, train_spec
from tests.waiting import wait_until


def _ids(page: Document) -> list[str]:
    return [job["id"] for job in page["items"]]


def test_a_newcomer_sees_no_jobs_of_others(newcomer: httpx.Client, idle_http: httpx.Client) -> None:
    job = submit(idle_http, train_spec())

    assert newcomer.get("/v1/jobs").json() == {"items": [], "next_cursor": None}
    assert newcomer.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert newcomer.post(f"/v1/jobs/{job['id']}/cancel").status_code == 404
    assert read(idle_http, job["id"])["status"] == "queued"


def test_pages_hold_every_job_once_newest_first(newcomer: httpx.Client) -> None:
    submitted = [submit(newcomer, train_spec())["id"] for _ in range(5)]

    first = newcomer.get("/v1/jobs", params={"limit": 2})
    second = newcomer.get(first.links["next"]["url"])
    third = newcomer.get("/v1/jobs", params={"limit": 2, "cursor": second.json()["next_cursor"]})

    assert _ids(first.json()) + _ids(second.json()) + _ids(third.json()) == submitted[::-1]
    assert third.json()["next_cursor"] is None
    assert "Link" not in third.headers


def test_a_job_that_comes_meanwhile_does_not_shift_the_pages(newcomer: httpx.Client) -> None:
    submitted = [submit(newcomer, train_spec())["id"] for _ in range(3)]
    first = newcomer.get("/v1/jobs", params={"limit": 2}).json()

    submit(newcomer, train_spec())
    second = newcomer.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()

    assert _ids(first) + _ids(second) == submitted[::-1]


def test_a_list_can_be_narrowed_by_status_and_kind(newcomer: httpx.Client) -> None:
    kept, ended_early = (submit(newcomer, train_spec())["id"] for _ in range(2))
    newcomer.post(f"/v1/jobs/{ended_early}/cancel")

    def listed(**narrowed: str | list[str]) -> list[str]:
        return _ids(newcomer.get("/v1/jobs", params=narrowed).json())

    assert listed(status="queued") == [kept]
    assert listed(status=["queued", "cancelled"]) == [ended_early, kept]
    assert listed(kind="train", status="cancelled") == [ended_early]
    assert listed(kind="prune") == []


def test_a_page_never_has_more_than_a_hundred(newcomer: httpx.Client) -> None:
    submit(newcomer, sweep_spec(grid={"seeds": [*range(100)]}))  # a hundred members, and itself

    page = newcomer.get("/v1/jobs", params={"limit": 1_000_000}).json()
    rest = newcomer.get("/v1/jobs", params={"cursor": page["next_cursor"]}).json()

    assert (len(page["items"]), len(rest["items"]), rest["next_cursor"]) == (100, 1, None)
    assert len({*_ids(page), *_ids(rest)}) == 101


def test_a_queued_job_is_cancelled_at_once_and_only_once(idle_http: httpx.Client) -> None:
    job = submit(idle_http, train_spec())

    first = idle_http.post(job["links"]["cancel"])
    again = idle_http.post(job["links"]["cancel"])

    assert (first.status_code, first.json()["status"], first.json()["done"]) == (202, "cancelled", True)
    assert first.json()["revision"] > job["revision"]
    assert first.json()["finished_at"] is not None
    assert (again.status_code, again.json()) == (200, first.json())


def test_cancel_of_a_succeeded_job_is_refused(http: httpx.Client, trained: Document) -> None:
    answer = http.post(trained["links"]["cancel"])

    assert (answer.status_code, answer.json()["code"]) == (409, "job_not_cancellable")
    assert f"succeeded at {trained['finished_at']}: " in answer.json()["detail"]
    assert read(http, trained["id"]) == trained


def test_a_running_job_stops_when_cancelled(http: httpx.Client) -> None:
    job = submit(http, train_spec(training={"epochs": 1000}))
    _until_training(http, job["id"])

    answer = http.post(job["links"]["cancel"])

    assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
    last = ended(http, job["id"])
    assert (last["status"], last["result"], last["error"]) == ("cancelled", None, None)
    assert http.get(last["links"]["artifacts"]).json()["items"] == []


def _until_training(http: httpx.Client, job_id: str) -> None:
    def training() -> bool:
        job = read(http, job_id)
        assert not job["done"], job
        return job["phase"] == "training" and job["progress"] is not None

    wait_until(training, timeout=60, what=f"{job_id} trains")


def test_a_running_job_tells_how_far_it_is(http: httpx.Client) -> None:
    job = submit(http, train_spec(training={"epochs": 1000}))
    _until_training(http, job["id"])

    running = read(http, job["id"])
    http.post(job["links"]["cancel"])

    progress = running["progress"]
    assert (running["status"], running["attempt"], running["done"]) == ("running", 1, False)
    assert (progress["phase"], progress["unit"], progress["total"]) == ("training", "steps", 15_000)
    assert 0 < progress["completed"] <= 15_000
    assert progress["fraction"] == pytest.approx(progress["completed"] / 15_000, abs=1e-4)
    assert ended(http, job["id"])["status"] == "cancelled"


def test_a_succeeded_job_tells_its_result(trained: Document) -> None:
    result = trained["result"]

    assert (trained["status"], trained["done"], trained["phase"], trained["error"]) == ("succeeded", True, None, None)
    assert trained["created_at"] <= trained["started_at"] <= trained["finished_at"] <= trained["expires_at"]
    assert result["kind"] == "train"
    assert result["parameters"] > result["nonzero_after"] > 0
    assert result["sparsity"] == pytest.approx(1 - result["nonzero_after"] / result["parameters"])
    assert 0 < result["accuracy_after"] <= 1


def test_the_log_of_a_job_has_no_gap(http: httpx.Client, trained: Document) -> None:
    events = http.get(trained["links"]["events"], params={"limit": 100}).json()["items"]

    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    assert events[0]["type"] == "queued"
    assert events[-1]["type"] == "succeeded"
    assert [event["data"]["epoch"] for event in events if event["type"] == "epoch"] == [1]


def test_the_log_is_read_on_where_one_stopped(http: httpx.Client, trained: Document) -> None:
    whole = http.get(trained["links"]["events"], params={"limit": 100}).json()["items"]

    page = http.get(trained["links"]["events"], params={"after": 2, "limit": 2})

    assert page.json()["items"] == whole[2:4]
    assert page.json()["next_cursor"] == "4"
    assert http.get(page.links["next"]["url"]).json()["items"] == whole[4:6]


def test_a_pruning_of_a_finished_job(trained: Document, pruned: Document) -> None:
    assert pruned["spec"]["dataset"] == {"name": "digits", "id": None, "validation_images": 0}
    assert pruned["result"]["nonzero_after"] < trained["result"]["nonzero_after"]
    assert pruned["result"]["accuracy_before"] == trained["result"]["accuracy_before"]


def test_a_training_that_goes_on_from_a_checkpoint(http: httpx.Client, trained: Document) -> None:
    initial = {"job_id": trained["id"], "artifact": "dense.safetensors"}
    spec = train_spec(initial=initial)
    del spec["model"]

    job = finished(http, spec)

    assert job["result"]["accuracy_before"] > trained["result"]["accuracy_before"]


def test_a_comparison_of_finished_jobs(http: httpx.Client, trained: Document, pruned: Document) -> None:
    job = finished(http, compare_spec(trained["id"], pruned["id"]))

    names = {artifact["name"] for artifact in http.get(job["links"]["artifacts"]).json()["items"]}
    assert names == {"comparison.json", "comparison.png", "manifest.json"}
    comparison = http.get(f"{job['links']['artifacts']}/comparison.json").json()
    assert [entry["job_id"] for entry in comparison["jobs"]] == [trained["id"], pruned["id"]]


def test_a_data_set_that_is_not_there_fails_its_job_alone(http: httpx.Client) -> None:
    job = ended(http, submit(http, train_spec(dataset={"name": "kmnist"}))["id"])

    assert (job["status"], job["error"]["code"]) == ("failed", "dataset_unavailable")
    assert "KMNIST/raw" in job["error"]["message"]
    assert "train-images-idx3-ubyte" in job["error"]["message"]
    finished(http, train_spec(dataset=FEW))


def test_a_failed_job_is_retried_as_its_next_attempt(http: httpx.Client) -> None:
    failed = ended(http, submit(http, train_spec(dataset={"name": "kmnist"}))["id"])

    answer = http.post(failed["links"]["retry"])

    job = answer.json()
    assert (answer.status_code, job["status"], job["done"], job["error"]) == (202, "queued", False, None)
    assert job["revision"] > failed["revision"]
    again = ended(http, job["id"])
    assert (again["status"], again["attempt"], again["error"]["attempt"]) == ("failed", 2, 2)
    events = http.get(again["links"]["events"], params={"limit": 100}).json()["items"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    kinds = [event["type"] for event in events if event["type"] != "phase"]
    assert kinds == ["queued", "running", "failed", "requeued", "running", "failed"]


def test_only_a_failed_job_of_ones_own_is_retried(
    idle_http: httpx.Client, stranger: httpx.Client, trained: Document, http: httpx.Client
) -> None:
    waiting = submit(idle_http, train_spec())

    refused = idle_http.post(waiting["links"]["retry"])
    assert (refused.status_code, refused.json()["code"]) == (409, "job_not_retryable")
    assert "wait for its end" in refused.json()["detail"]
    assert "rerun it as a new job" in http.post(trained["links"]["retry"]).json()["detail"]
    assert stranger.post(waiting["links"]["retry"]).status_code == 404
