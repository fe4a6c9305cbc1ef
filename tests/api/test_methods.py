"""Every way to train and prune that the options name is reached by a spec, through the service."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.contract.network import macs_per_image, parameter_count
from app.contract.spec import ModelSpec
from tests.api.conftest import published
from tests.specs import FEW, Document, ended, finished, prune_spec, submit, train_spec

AMOUNT = {"sparsity": 0.5}
PRUNINGS: dict[str, Document] = {
    "threshold": {},
    "std": {},
    "magnitude": AMOUNT,
    "bn-folded": AMOUNT,
    "taylor": {**AMOUNT, "images": 100},
    "snip": {**AMOUNT, "images": 100},
    "random": AMOUNT,
    "n:m": {"tensors": ["fc1.weight"]},
    "channels": AMOUNT,
}


def test_every_pruning_method_is_reached_by_a_spec(http: httpx.Client, trained: Document) -> None:
    assert set(http.get("/v1/options").json()["pruning_methods"]) == set(PRUNINGS)
    jobs = [
        submit(http, prune_spec(trained["id"], pruning={"method": method, **more}))["id"]
        for method, more in PRUNINGS.items()
    ]
    for job_id, method in zip(jobs, PRUNINGS, strict=True):
        job = _succeeded(http, job_id)
        assert job["result"]["nonzero_after"] < job["result"]["nonzero_before"], method
        report = http.get(f"{job['links']['artifacts']}/report.json").json()
        assert report["method"] == method


COURSES: list[Document] = [
    {"training": {"epochs": 1, "optimizer": {"name": "adamw"}}, "regularization": {"penalty": "l2"}},
    {
        "training": {"epochs": 1, "optimizer": {"name": "sgd"}, "label_smoothing": 0.1},
        "regularization": {"penalty": "elastic-net"},
        "pruning": {"method": "snip", **AMOUNT, "schedule": {"name": "one-shot", "when": "before-training"}},
    },
    {
        "training": {"epochs": 1, "random_shift": 1, "warmup_epochs": 1},
        "regularization": {"penalty": "l1-proximal"},
        "sensitivity": {"sparsities": [0.5]},
        "pruning": {"method": "magnitude", **AMOUNT, "schedule": {"name": "gradual", "end_epoch": 1}},
    },
    {
        "regularization": {"penalty": "group-lasso"},
        "pruning": {
            "method": "magnitude",
            **AMOUNT,
            "schedule": {"name": "iterative", "rounds": 2, "rewind_epoch": 1},
        },
        "fine_tuning": {"epochs": 1, "learning_rate_schedule": "cosine", "select": "best"},
    },
    {
        "regularization": {"penalty": "l1"},
        "pruning": {"method": "magnitude", **AMOUNT, "scope": "layer", "recalibrate_batchnorm": True},
    },
]


def test_every_optimizer_penalty_and_schedule_is_reached_by_a_spec(http: httpx.Client) -> None:
    options = http.get("/v1/options").json()
    reached = [train_spec(**{"dataset": FEW, **course}) for course in COURSES]
    assert set(options["optimizers"]) == {_in(each, "training", "optimizer", "name") or "adam" for each in reached}
    assert set(options["penalties"]) == {_in(each, "regularization", "penalty") for each in reached}
    assert set(options["pruning_schedules"]) == {
        _in(each, "pruning", "schedule", "name") or "one-shot" for each in reached
    }
    jobs = [submit(http, spec)["id"] for spec in reached]
    for job_id, spec in zip(jobs, reached, strict=True):
        job = _succeeded(http, job_id)
        epochs = [event for event in _events(http, job_id) if event["type"] == "epoch"]
        tuning = 2 if _in(spec, "fine_tuning") else 0  # two rounds
        assert len(epochs) == 1 + tuning
        assert job["result"]["nonzero_after"] < job["result"]["parameters"]
        report = http.get(f"{job['links']['artifacts']}/report.json").json()
        schedule = _in(spec, "pruning", "schedule") or {"name": "one-shot"}
        assert report["penalty"] == spec["regularization"]["penalty"]
        assert report["schedule"] == schedule.get("when", schedule["name"])
        assert (http.get(f"{job['links']['artifacts']}/sensitivity.json").status_code == 200) == ("sensitivity" in spec)


def _in(spec: Document, *path: str) -> Any:
    found: Any = spec
    for step in path:
        found = found.get(step) if isinstance(found, dict) else None
    return found


def _succeeded(http: httpx.Client, job_id: str) -> Document:
    job = ended(http, job_id)
    assert job["status"] == "succeeded", job["error"]
    return job


def _events(http: httpx.Client, job_id: str) -> list[Document]:
    items: list[Document] = http.get(f"/v1/jobs/{job_id}/events", params={"limit": 100}).json()["items"]
    return items


@pytest.mark.parametrize(
    ("pruning", "field", "words"),
    [
        (
            {"method": "magnitude", "keep": 1_000_000},
            "keep",
            f"only {parameter_count((4, 4, 8), 16)} entries are eligible",
        ),
        (
            {"method": "n:m", "m": 5, "n": 1, "tensors": ["fc1.weight"]},
            "m",
            "does not divide the 392 inputs of fc1.weight",
        ),
        (
            {"method": "channels", "keep": {"channels": [4, 4, 9], "hidden": 16}},
            "keep",
            "the network has (4, 4, 8, 16)",
        ),
    ],
)
def test_what_the_source_does_not_allow_is_told_at_submission(
    http: httpx.Client, trained: Document, pruning: Document, field: str, words: str
) -> None:
    answer = http.post("/v1/jobs", json=prune_spec(trained["id"], pruning=pruning))

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_spec")
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["code"]) == (f"/pruning/{field}", "misfit")
    assert words in error["detail"]


def test_what_a_prune_job_costs_is_told_ahead(http: httpx.Client, trained: Document) -> None:
    spec = prune_spec(trained["id"], fine_tuning={"epochs": 2})

    answer = http.post("/v1/jobs", params={"validate_only": True}, json=spec)

    estimate = answer.json()["estimate"]
    assert estimate["parameters"] == parameter_count((4, 4, 8), 16)
    assert estimate["training_macs"] == 3 * macs_per_image((4, 4, 8), 16) * 1_437 * 2


def test_a_continued_training_is_held_against_the_widths_of_its_checkpoint(http: httpx.Client) -> None:
    wide = published(http, ModelSpec(channels=(20, 4, 4), hidden=8))
    spec = train_spec(initial={"job_id": wide["id"]}, pruning={"method": "channels", "keep": KEPT})
    del spec["model"]

    assert http.post("/v1/jobs", params={"validate_only": True}, json=spec).status_code == 200
    spec["pruning"] = {"method": "channels", "keep": {**KEPT, "channels": [21, 4, 4]}}
    answer = http.post("/v1/jobs", params={"validate_only": True}, json=spec)
    assert answer.json()["errors"][0]["code"] == "misfit"
    assert "the network has (20, 4, 4, 8)" in answer.json()["errors"][0]["detail"]


KEPT = {"channels": [18, 4, 4], "hidden": 8}
"""More than a network of the default widths has."""


def test_a_prune_job_fine_tunes_what_it_leaves(http: httpx.Client, trained: Document) -> None:
    spec = prune_spec(
        trained["id"], dataset=FEW, pruning={"method": "magnitude", "sparsity": 0.8}, fine_tuning={"epochs": 1}
    )

    job = finished(http, spec)

    report = http.get(f"{job['links']['artifacts']}/report.json").json()
    assert report["accuracy_pruned"] is not None
    phases = [event["data"]["phase"] for event in _events(http, job["id"]) if event["type"] == "phase"]
    assert "fine_tuning" in phases
