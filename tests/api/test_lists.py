"""Filters and cursors; what a page is, `test_jobs` tells."""

from __future__ import annotations

import base64
from unittest.mock import ANY

import httpx
import pytest

from tests.specs import Document, read, submit, train_spec


def _listed(http: httpx.Client, **query: object) -> list[str]:
    answer = http.get("/v1/jobs", params=query)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["items"]]


def test_labels_must_all_hold(newcomer: httpx.Client) -> None:
    both = submit(newcomer, train_spec(labels={"team": "a", "run": "x:1"}))["id"]
    one = submit(newcomer, train_spec(labels={"team": "a"}))["id"]
    submit(newcomer, train_spec(labels={"team": "b", "run": "x:1"}))

    assert _listed(newcomer, label="team:a") == [one, both]
    assert _listed(newcomer, label=["team:a", "run:x:1"]) == [both]
    assert _listed(newcomer, label="team:") == []


def test_times_bound_a_list_on_both_sides(newcomer: httpx.Client) -> None:
    jobs = [submit(newcomer, train_spec()) for _ in range(3)]
    first, middle, last = (job["created_at"] for job in jobs)

    assert _listed(newcomer, created_after=first, created_before=last) == [jobs[1]["id"]]
    assert _listed(newcomer, created_after=middle) == [jobs[2]["id"]]
    assert _listed(newcomer, created_before="0001-01-01T00:00:00+14:00") == []


def test_the_reruns_of_a_job_are_listed_by_their_parent(newcomer: httpx.Client) -> None:
    job = submit(newcomer, train_spec(display_name="first", labels={"team": "a"}))
    reruns = [newcomer.post(job["links"]["rerun"]).json() for _ in range(2)]

    assert _listed(newcomer, parent=job["id"]) == [reruns[1]["id"], reruns[0]["id"]]
    assert {rerun["parent_job_id"] for rerun in reruns} == {job["id"]}
    assert job["parent_job_id"] is None
    assert [rerun["spec"] for rerun in reruns] == [job["spec"]] * 2
    assert reruns[0]["labels"] == {"team": "a"}


def test_a_rerun_is_called_what_its_job_is_called_by_then(newcomer: httpx.Client) -> None:
    job = submit(newcomer, train_spec(display_name="first", labels={"team": "a"}))
    newcomer.patch(job["links"]["self"], json={"display_name": "best", "labels": {"team": None, "keep": "yes"}})

    rerun = newcomer.post(job["links"]["rerun"]).json()

    called = {"display_name": "best", "labels": {"keep": "yes"}}
    assert {name: rerun[name] for name in called} == called
    assert rerun["spec"] == job["spec"] | called


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"created_after": "yesterday"}, "/query/created_after"),
        ({"created_after": "2026-01-01T00:00:00"}, "/query/created_after"),
        ({"created_after": "2026-01-01"}, "/query/created_after"),
        ({"created_before": "0.5"}, "/query/created_before"),
        ({"created_before": "1767225600"}, "/query/created_before"),
        ({"parent": "x"}, "/query/parent"),
        ({"label": "team"}, "/query/label/0"),
        ({"label": ["team:a", "team:b"]}, "/query/label/1"),
        ({"kind": "bake"}, "/query/kind/0"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(newcomer: httpx.Client, query: Document, pointer: str) -> None:
    answer = newcomer.get("/v1/jobs", params=query)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_a_cursor_brings_its_filters_along(newcomer: httpx.Client) -> None:
    wanted = [submit(newcomer, train_spec(labels={"team": "a"}))["id"] for _ in range(3)]
    submit(newcomer, train_spec())
    first = newcomer.get("/v1/jobs", params={"label": "team:a", "limit": 2}).json()

    assert _listed(newcomer, cursor=first["next_cursor"]) == wanted[:1]
    assert _listed(newcomer, cursor=first["next_cursor"], label="team:a") == wanted[:1]
    other = newcomer.get("/v1/jobs", params={"cursor": first["next_cursor"], "label": "team:b"})
    assert (other.status_code, other.json()["code"]) == (400, "invalid_cursor")


def test_a_cursor_is_signed_for_its_tenant(newcomer: httpx.Client, idle_http: httpx.Client) -> None:
    for _ in range(2):
        submit(newcomer, train_spec())
    cursor = newcomer.get("/v1/jobs", params={"limit": 1}).json()["next_cursor"]
    signed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    turned = signed[:-2] + bytes([signed[-2] ^ 1]) + signed[-1:]

    for http, sent in ((idle_http, cursor), (newcomer, base64.urlsafe_b64encode(turned).decode().rstrip("="))):
        answer = http.get("/v1/jobs", params={"cursor": sent})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")


# PATCH


def test_name_and_labels_change_by_a_merge_patch(newcomer: httpx.Client) -> None:
    job = submit(newcomer, train_spec(display_name="old", labels={"team": "a", "stage": "x"}))
    url = job["links"]["self"]

    answer = newcomer.patch(
        url,
        json={"labels": {"team": "b", "stage": None, "new": "1"}},
        headers={"Content-Type": "application/merge-patch+json"},
    )

    changed = answer.json()
    assert (answer.status_code, changed["labels"]) == (200, {"team": "b", "new": "1"})
    assert changed["display_name"] == "old"
    assert changed["revision"] == job["revision"] + 1
    assert answer.headers["ETag"] == newcomer.get(url).headers["ETag"]
    assert newcomer.patch(url, json={"display_name": None}).json()["display_name"] is None
    assert _listed(newcomer, label="team:b") == [job["id"]]


def test_null_removes_all_labels_and_nothing_else(newcomer: httpx.Client) -> None:
    job = submit(newcomer, train_spec(display_name="old", labels={"team": "a", "stage": "x"}))

    answer = newcomer.patch(job["links"]["self"], json={"labels": None})

    assert answer.status_code == 200, answer.text
    assert (answer.json()["labels"], answer.json()["display_name"]) == ({}, "old")
    assert _listed(newcomer, label="team:a") == []
    assert newcomer.patch(job["links"]["self"], json={"labels": None}).json() == read(newcomer, job["id"])


def test_a_patch_that_changes_nothing_is_no_change(newcomer: httpx.Client) -> None:
    job = submit(newcomer, train_spec(labels={"team": "a"}))
    assert newcomer.patch(job["links"]["self"], json={"labels": {"team": "a"}}).json() == read(newcomer, job["id"])
    assert newcomer.patch(job["links"]["self"], json={}).json() == read(newcomer, job["id"]) == job | {"queue": ANY}


def test_a_patch_for_an_older_copy_is_refused(newcomer: httpx.Client) -> None:
    job = submit(newcomer, train_spec())
    url, etag = job["links"]["self"], newcomer.get(job["links"]["self"]).headers["ETag"]

    first = newcomer.patch(url, json={"display_name": "mine"}, headers={"If-Match": etag})
    second = newcomer.patch(url, json={"display_name": "theirs"}, headers={"If-Match": etag})

    assert (first.status_code, second.status_code) == (200, 412)
    assert (second.json()["code"], second.json()["retryable"]) == ("job_changed", True)
    assert newcomer.get(url).json()["display_name"] == "mine"
    again = newcomer.patch(url, json={"display_name": "theirs"}, headers={"If-Match": first.headers["ETag"]})
    assert again.status_code == 200
    assert newcomer.patch(url, json={"display_name": "x"}, headers={"If-Match": "*"}).status_code == 200
    either = f'"0", {newcomer.get(url).headers["ETag"]}'
    assert newcomer.patch(url, json={"display_name": "y"}, headers={"If-Match": either}).status_code == 200


@pytest.mark.parametrize(
    ("patch", "pointer"),
    [
        ({"label": {}}, "/label"),
        ({"display_name": ""}, "/display_name"),
        ({"labels": {"Team": "a"}}, "/labels/Team"),
        ({"labels": {"team": 1}}, "/labels/team"),
        ({"labels": {f"l{index}": "" for index in range(17)}}, "/labels"),
        ([], ""),
    ],
)
def test_a_wrong_patch_is_refused_with_its_place(newcomer: httpx.Client, patch: object, pointer: str) -> None:
    job = submit(newcomer, train_spec())
    answer = newcomer.patch(job["links"]["self"], json=patch)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_patch")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert newcomer.get(job["links"]["self"]).json() | {"queue": None} == job


@pytest.mark.parametrize("condition", ["0", "one", '"x"', '"1e1"', "", '"' + 40 * "9" + '"'])
def test_an_if_match_that_is_no_tag_of_the_job_matches_nothing(newcomer: httpx.Client, condition: str) -> None:
    url = submit(newcomer, train_spec())["links"]["self"]
    answer = newcomer.patch(url, json={"display_name": "x"}, headers={"If-Match": condition})
    assert (answer.status_code, answer.json()["code"]) == (412, "job_changed")
    assert newcomer.get(url).json()["display_name"] is None


def test_a_wrong_body_is_refused(newcomer: httpx.Client) -> None:
    url = submit(newcomer, train_spec())["links"]["self"]
    assert newcomer.patch(url, content=b"{").json()["code"] == "malformed_request"
    assert newcomer.patch(url, content=b'{"display_name": "\\ud800"}').json()["code"] == "malformed_request"
    assert newcomer.patch(url, content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415
