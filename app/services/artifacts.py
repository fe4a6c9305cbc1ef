"""Reading what a job published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.contract.artifacts import ARTIFACTS
from app.contract.status import Status
from app.core.errors import ArtifactNotFound, ArtifactUnavailable, JobHasNoReport
from app.db import jobs
from app.db.models import ArtifactRow, JobRow
from app.services.jobs import get
from app.storage import ArtifactStore, is_intact


class OpenArtifact(NamedTuple):
    record: ArtifactRow
    path: Path


def list_artifacts(session: Session, tenant: str, job_id: str) -> tuple[JobRow, Sequence[ArtifactRow]]:
    job = get(session, tenant, job_id)
    return job, jobs.artifacts(session, job_id)


def open_artifact(session: Session, store: ArtifactStore, tenant: str, job_id: str, name: str) -> OpenArtifact:
    """An artifact's record and its file, checked against each other. Raises ArtifactNotFound, ArtifactUnavailable."""
    _, records = list_artifacts(session, tenant, job_id)
    record = next((record for record in records if record.name == name and name in ARTIFACTS), None)
    if record is None:
        names = ", ".join(record.name for record in records)
        known = f"it has {names}" if names else "it has none: they are there once a job has succeeded"
        raise ArtifactNotFound(f"The job {job_id} has no artifact {name[:64]!r}; {known}.")
    path = store.folder(job_id, record.attempt) / record.name
    if not is_intact(path, size=record.size, sha256=record.sha256):
        raise ArtifactUnavailable(
            f"The bytes of {name} are missing or no longer match their sha256: run the job again."
        )
    return OpenArtifact(record, path)


def reports(
    session: Session, store: ArtifactStore, tenant: str, job_ids: Sequence[str]
) -> Sequence[tuple[JobRow, dict[str, Any]]]:
    """Jobs with their reports. Raises as `get` and `open_artifact` do, and JobHasNoReport."""
    return [_with_report(session, store, tenant, job_id) for job_id in job_ids]


def _with_report(session: Session, store: ArtifactStore, tenant: str, job_id: str) -> tuple[JobRow, dict[str, Any]]:
    row = get(session, tenant, job_id)
    if row.status != Status.SUCCEEDED or row.kind not in ("train", "prune"):
        raise JobHasNoReport(f"{job_id} is a {row.kind} job and {row.status}: name train or prune jobs that succeeded.")
    path = open_artifact(session, store, tenant, job_id, "report.json").path
    report: dict[str, Any] = json.loads(path.read_bytes())
    return row, report
