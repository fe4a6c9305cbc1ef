"""What must be true of every job when all faults are over. Each violation is one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.faults.cluster import Cluster
from tests.specs import Document

ENDS = {"succeeded", "failed", "cancelled"}


def violations(
    cluster: Cluster, job: Document, expected: Mapping[str, str], *, may_be_cancelled: bool
) -> Iterator[str]:
    """`expected` leads from the name of a variant to the sha256 of its model when nothing happens."""
    if job["status"] != "succeeded" and not (may_be_cancelled and job["status"] == "cancelled"):
        yield f"{job['id']} is {job['status']}: {job['error']}"
        return
    yield from _of_log(cluster, job)
    try:
        cluster.wait_until_tidy(job)
    except AssertionError as error:
        yield f"{job['id']}: {error}"
        return
    if job["status"] == "succeeded":
        yield from _of_files(cluster, job, expected[job["labels"]["variant"]])


def _of_log(cluster: Cluster, job: Document) -> Iterator[str]:
    events = cluster.events(job["id"])
    if [event["seq"] for event in events] != list(range(1, len(events) + 1)):
        yield f"{job['id']}: the log has a gap"
    ends = [event["type"] for event in events if event["type"] in ENDS]
    if ends != [job["status"]] or events[-1]["type"] != job["status"]:
        yield f"{job['id']}: the log ends with {ends}"
    starts = sum(event["type"] == "running" for event in events)
    if starts != job["attempt"]:
        yield f"{job['id']}: {starts} starts and {job['attempt']} attempts"


def _of_files(cluster: Cluster, job: Document, expected: str) -> Iterator[str]:
    folder = cluster.folder(job["id"]) / str(job["attempt"])
    recorded = {each["name"]: each["sha256"] for each in cluster.http.get(job["links"]["artifacts"]).json()["items"]}
    found = {path.name: _sha256(path) for path in folder.iterdir()}
    if found != recorded:
        yield f"{job['id']}: what is in the folder is not what was published"
    if found.get("model.safetensors") != expected:
        yield f"{job['id']}: the model is not that of an uninterrupted run"
    receipt = json.loads((folder / "manifest.json").read_bytes())["receipt"]
    if receipt["attempt"] != job["attempt"]:
        yield f"{job['id']}: attempt {job['attempt']} succeeded with files of attempt {receipt['attempt']}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
