from __future__ import annotations

import httpx

from app.contract.spec import ModelSpec
from tests.api.conftest import published
from tests.specs import FEW, Document, compare_spec, finished, prune_spec, submit, train_spec

MODEL = ModelSpec(channels=(2, 2, 4), hidden=8)


def _edges(lineage: Document) -> set[tuple[str, str, str]]:
    return {(edge["from"], edge["to"], edge["relation"]) for edge in lineage["edges"]}


def _lineage(http: httpx.Client, job: Document) -> Document:
    answer = http.get(f"{job['links']['self']}/lineage")
    assert answer.status_code == 200, answer.text
    lineage: Document = answer.json()
    return lineage


def test_a_lineage_goes_back_to_the_beginning_and_one_step_on(http: httpx.Client, trained: Document) -> None:
    root, other = trained, published(http, MODEL)
    taught = {"epochs": 1, "distillation": {"teacher": {"job_id": other["id"]}}}
    middle = finished(http, prune_spec(root["id"], dataset=FEW, fine_tuning=taught))
    again = http.post(middle["links"]["rerun"]).json()
    http.post(again["links"]["cancel"]).raise_for_status()
    last = finished(http, compare_spec(root["id"], middle["id"]))

    lineage = _lineage(http, middle)

    assert [job["id"] for job in lineage["jobs"]] == [each["id"] for each in (root, other, middle, again, last)]
    assert lineage["jobs"][0]["display_name"] == "trained"
    assert _edges(lineage) == {
        (root["id"], middle["id"], "source"),
        (other["id"], middle["id"], "teacher"),
        (middle["id"], again["id"], "rerun"),
        (middle["id"], last["id"], "compared"),
    }
    assert not lineage["truncated"]
    (source,) = (edge for edge in lineage["edges"] if edge["relation"] == "source")
    files = http.get(root["links"]["artifacts"]).json()["items"]
    assert source["sha256"] == {each["name"]: each["sha256"] for each in files}[source["artifact"]]

    assert _edges(_lineage(http, last)) == {
        (root["id"], last["id"], "compared"),
        (middle["id"], last["id"], "compared"),
        (root["id"], middle["id"], "source"),
        (other["id"], middle["id"], "teacher"),
    }


def test_what_was_deleted_is_named_and_no_more(http: httpx.Client) -> None:
    root = published(http, MODEL)
    job = finished(http, {**prune_spec(root["id"], dataset=FEW), "source": {"job_id": root["id"]}})
    assert http.delete(root["links"]["self"]).status_code == 204

    lineage = _lineage(http, job)

    assert [each["id"] for each in lineage["jobs"]] == [job["id"]]
    assert _edges(lineage) == {(root["id"], job["id"], "source")}


def test_anothers_lineage_is_nobodys_business(newcomer: httpx.Client, idle_http: httpx.Client) -> None:
    job = submit(idle_http, train_spec())
    assert newcomer.get(f"{job['links']['self']}/lineage").status_code == 404


def test_reports_side_by_side_are_the_published_ones(http: httpx.Client, trained: Document, pruned: Document) -> None:
    answer = http.get("/v1/compare", params={"jobs": f"{pruned['id']},{trained['id']}"})

    assert answer.status_code == 200, answer.text
    items = answer.json()["items"]
    assert [item["job"] for item in items] == [pruned, trained]
    for item in items:
        its_own = http.get(f"{item['job']['links']['artifacts']}/report.json").json()
        assert item["report"] == its_own


def test_what_cannot_be_compared_is_told(http: httpx.Client, trained: Document) -> None:
    cancelled = submit(http, train_spec(training={"epochs": 1000}))
    http.post(cancelled["links"]["cancel"])
    imported = f"job_{'0' * 32}"

    def code(*jobs: str) -> tuple[int, str]:
        answer = http.get("/v1/compare", params={"jobs": ",".join(jobs)})
        return answer.status_code, answer.json()["code"]

    assert code(trained["id"], cancelled["id"]) == (409, "job_has_no_report")
    assert code(trained["id"], imported) == (404, "job_not_found")
    assert code(trained["id"]) == (422, "invalid_parameter")
    assert code(*[trained["id"]] * 9) == (422, "invalid_parameter")


def test_a_job_is_not_compared_with_itself(http: httpx.Client, trained: Document) -> None:
    answer = http.get("/v1/compare", params={"jobs": f"{trained['id']},{trained['id']}"})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["code"]) == ("/query/jobs", "job_repeats")
    assert trained["id"] in error["detail"]
