"""Lawful specs, small enough to run in a second, without a picture; a test names only what it is about."""

from __future__ import annotations

from typing import Any

import httpx

from tests.waiting import wait_until

Document = dict[str, Any]

FEW: Document = {"name": "digits", "validation_images": 1_137}
"""Of which 300 images are left to train on."""


def train_spec(**overrides: Any) -> Document:
    return {
        "kind": "train",
        "dataset": {"name": "digits"},
        "model": {"architecture": "cnn", "channels": [4, 4, 8], "hidden": 16},
        "training": {"epochs": 1},
        "pruning": {"method": "threshold", "threshold": 0.01},
        "histogram": {"tensors": []},
        **overrides,
    }


def prune_spec(source: str, **overrides: Any) -> Document:
    return {
        "kind": "prune",
        "source": {"job_id": source, "artifact": "dense.safetensors"},
        "pruning": {"method": "threshold", "threshold": 0.05},
        "histogram": {"tensors": []},
        **overrides,
    }


def compare_spec(*jobs: str) -> Document:
    return {"kind": "compare", "jobs": list(jobs)}


def sweep_spec(**overrides: Any) -> Document:
    """Of two members, unless the grid is another."""
    return {"kind": "sweep", "base": train_spec(), "grid": {"thresholds": [0.01, 0.05]}, **overrides}


def submit(http: httpx.Client, spec: Document) -> Document:
    """The accepted job."""
    answer = http.post("/v1/jobs", json=spec)
    assert answer.status_code == 202, answer.text
    job: Document = answer.json()
    return job


def read(http: httpx.Client, job_id: str) -> Document:
    answer = http.get(f"/v1/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    job: Document = answer.json()
    return job


def ended(http: httpx.Client, job_id: str, *, timeout: float = 120) -> Document:
    """The job, once it is done, whatever became of it."""

    def look() -> Document | None:
        job = read(http, job_id)
        return job if job["done"] else None

    return wait_until(look, timeout=timeout, what=f"{job_id} is done")


def finished(http: httpx.Client, spec: Document) -> Document:
    """A job of this spec that has succeeded."""
    job = ended(http, submit(http, spec)["id"])
    assert job["status"] == "succeeded", job["error"]
    return job
