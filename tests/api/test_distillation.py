"""A network learns from another one, through the service; and what no teacher can be is refused at submission."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.contract.network import macs_per_image, parameter_count
from app.contract.spec import ModelSpec
from tests.api.conftest import published
from tests.specs import FEW, Document, compare_spec, finished, prune_spec, submit, train_spec

ABSENT = "job_" + "0" * 32
IMAGES = 1_437
WIDE = ((512, 512, 512), 1)


def _taught(course: str, job_id: str, **teacher: Any) -> Document:
    """A spec of which one course has a teacher."""
    return train_spec(**{course: {"epochs": 1, "distillation": {"teacher": {"job_id": job_id, **teacher}}}})


@pytest.fixture(scope="module")
def wide(http: httpx.Client) -> Document:
    """An import of widths that cost a lot."""
    return published(http, ModelSpec(channels=WIDE[0], hidden=WIDE[1]))


@pytest.fixture(scope="module")
def taught(http: httpx.Client, trained: Document) -> Document:
    """A smaller network that has learned from `trained`."""
    return finished(
        http, {**_taught("training", trained["id"]), "dataset": FEW, "model": {"channels": [2, 3, 4], "hidden": 5}}
    )


def _refused(answer: httpx.Response, status: int, code: str) -> Document:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    (error,) = answer.json()["errors"]
    found: Document = error
    return found


def test_a_network_learns_from_teachers_in_training_and_after_pruning(
    http: httpx.Client, trained: Document, taught: Document
) -> None:
    tuning = {"epochs": 1, "distillation": {"teacher": {"job_id": trained["id"], "artifact": "dense.safetensors"}}}

    second = finished(http, prune_spec(taught["id"], fine_tuning=tuning))

    manifest = http.get(f"{second['links']['artifacts']}/manifest.json").json()
    assert manifest["receipt"]["inputs"].keys() == {
        f"{taught['id']}/dense.safetensors",
        f"{trained['id']}/dense.safetensors",
    }
    assert second["spec"]["fine_tuning"]["distillation"]["temperature"] == 3.0
    assert second["result"]["parameters"] == parameter_count((2, 3, 4), 5) < trained["result"]["parameters"]


@pytest.mark.parametrize("course", ["training", "fine_tuning"])
def test_a_job_that_is_missing_cannot_teach(idle_http: httpx.Client, course: str) -> None:
    error = _refused(idle_http.post("/v1/jobs", json=_taught(course, ABSENT)), 422, "invalid_spec")

    assert (error["pointer"], error["code"]) == (f"/{course}/distillation/teacher/job_id", "source_not_found")
    assert ABSENT in error["detail"]


def test_a_job_that_has_not_succeeded_cannot_teach(idle_http: httpx.Client) -> None:
    job = submit(idle_http, train_spec())
    error = _refused(idle_http.post("/v1/jobs", json=_taught("training", job["id"])), 409, "source_not_finished")
    assert error["pointer"] == "/training/distillation/teacher/job_id"

    idle_http.post(job["links"]["cancel"]).raise_for_status()
    error = _refused(idle_http.post("/v1/jobs", json=_taught("training", job["id"])), 409, "source_has_no_result")
    assert error["pointer"] == "/training/distillation/teacher/job_id"


def test_another_tenants_job_looks_like_a_missing_one(idle_http: httpx.Client, stranger: httpx.Client) -> None:
    job_id = submit(idle_http, train_spec())["id"]

    theirs = _refused(stranger.post("/v1/jobs", json=_taught("training", job_id)), 422, "invalid_spec")
    missing = _refused(stranger.post("/v1/jobs", json=_taught("training", ABSENT)), 422, "invalid_spec")

    assert {**theirs, "detail": theirs["detail"].replace(job_id, ABSENT)} == missing


def test_what_has_no_such_network_cannot_teach(
    http: httpx.Client, trained: Document, taught: Document, wide: Document
) -> None:
    compared = finished(http, compare_spec(trained["id"], taught["id"]))
    dense = {"artifact": "dense.safetensors"}
    tuned = prune_spec(trained["id"], fine_tuning=_taught("fine_tuning", wide["id"], **dense)["fine_tuning"])
    refused = [
        (_taught("training", compared["id"]), "/training/distillation/teacher/job_id", "source_has_no_network"),
        (tuned, "/fine_tuning/distillation/teacher/artifact", "source_has_no_such_artifact"),
    ]
    for spec, pointer, code in refused:
        error = _refused(http.post("/v1/jobs", json=spec), 422, "invalid_spec")
        assert (error["pointer"], error["code"]) == (pointer, code)


def test_the_estimate_has_what_teachers_compute(http: httpx.Client, trained: Document, wide: Document) -> None:
    spec = prune_spec(trained["id"], fine_tuning={**_taught("fine_tuning", wide["id"])["fine_tuning"], "epochs": 2})

    answer = http.post("/v1/jobs", params={"validate_only": True}, json=spec)

    student = 3 * macs_per_image((4, 4, 8), 16)
    assert answer.json()["estimate"]["training_macs"] == 2 * IMAGES * (student + macs_per_image(*WIDE))


def test_a_teacher_that_is_too_much_work_is_refused_at_its_field(http: httpx.Client, wide: Document) -> None:
    spec = {**_taught("training", wide["id"]), "dataset": {"name": "mnist"}}
    spec["training"]["epochs"] = 100
    for asked in ({"validate_only": True}, {}):
        error = _refused(http.post("/v1/jobs", params=asked, json=spec), 422, "invalid_spec")
        assert (error["pointer"], error["code"]) == ("/training/distillation/teacher", "too_much_work")
        assert "take fewer epochs or a smaller teacher" in error["detail"]
    del spec["training"]["distillation"]
    assert http.post("/v1/jobs", params={"validate_only": True}, json=spec).status_code == 200
