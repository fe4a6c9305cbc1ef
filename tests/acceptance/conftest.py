"""The source's experiment, run through the service: on MNIST where TEST_DATA_DIR has it, on digits otherwise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.specs import Document, compare_spec, ended, submit

PATIENCE_SECONDS = 900


class Finished(NamedTuple):
    """A job and the folder with all that it published."""

    job: Document
    folder: Path

    def document(self, name: str) -> Document:
        found: Document = json.loads((self.folder / name).read_bytes())
        return found


Experiment = Mapping[str, Finished]
"""By name: plain, l1, comparison."""


@pytest.fixture(scope="session")
def dataset(mnist_dir: Path | None) -> str:
    return "mnist" if mnist_dir else "digits"


@pytest.fixture(scope="session")
def experiment(http: httpx.Client, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Trained without and with L1, both pruned at the source's θ = 0.01, and compared."""
    root = tmp_path_factory.mktemp("experiment")
    penalties = {"plain": None, "l1": {"penalty": "l1", "strength": 0.001}}
    submitted = {name: submit(http, _spec(dataset, penalty))["id"] for name, penalty in penalties.items()}
    done = {name: _fetch(http, job_id, root / name) for name, job_id in submitted.items()}
    comparison = submit(http, compare_spec(*submitted.values()))["id"]
    return {**done, "comparison": _fetch(http, comparison, root / "comparison")}


def _spec(dataset: str, penalty: Document | None) -> Document:
    # An epoch of digits has 15 steps, one of MNIST 600.
    return {
        "kind": "train",
        "dataset": {"name": dataset},
        "training": {"epochs": 5 if dataset == "mnist" else 20},
        "regularization": penalty,
        "pruning": {"method": "threshold"},
    }


def _fetch(http: httpx.Client, job_id: str, folder: Path) -> Finished:
    job = ended(http, job_id, timeout=PATIENCE_SECONDS)
    assert job["status"] == "succeeded", job["error"]
    folder.mkdir()
    for artifact in http.get(job["links"]["artifacts"]).json()["items"]:
        (folder / artifact["name"]).write_bytes(http.get(artifact["href"]).content)
    return Finished(job, folder)
