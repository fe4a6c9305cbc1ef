"""What a run reads of other jobs: found in the database, and checked before the engine sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from app.contract.artifacts import DATASET, MANIFEST
from app.contract.spec import CompareSpec, StoredSpec, SweepSpec, checkpoints
from app.contract.status import Status
from app.contract.uploads import UploadSpec
from app.db import jobs
from app.db.attempts import Claim
from app.db.models import ArtifactRow
from app.storage import ArtifactStore, is_intact
from worker.engine.errors import InvalidInput
from worker.engine.frontier import REPORT, MemberJob

COMPARED_FILES = ("report.json", "histogram.json", MANIFEST)

DELETED = "deleted"
"""What has become of a member that is gone."""

Needs = Mapping[str, Sequence[str]]
"""Names of files, by job."""


def members(session: Session, claim: Claim) -> Sequence[MemberJob]:
    """Of a sweep, what has become of each by now; of any other job, nothing."""
    if claim.spec["kind"] != "sweep":
        return ()
    rows = [row for row in jobs.by_ids(session, claim.sources, claim.tenant) if row.purged_at is None]
    known = {row.id: MemberJob(row.id, row.status, row.error["code"] if row.error else None) for row in rows}
    return [known.get(job_id, MemberJob(job_id, DELETED)) for job_id in claim.sources]


def needs(spec: StoredSpec, found: Sequence[MemberJob]) -> Needs:
    """Which files the engine is going to read; `found` are a sweep's members."""
    if isinstance(spec, SweepSpec):
        return {job.job_id: [REPORT] for job in found if job.status == Status.SUCCEEDED}
    if isinstance(spec, CompareSpec):
        return dict.fromkeys(spec.jobs, COMPARED_FILES)
    needed: dict[str, list[str]] = {}
    if isinstance(spec, UploadSpec):
        return needed
    for ref in checkpoints(spec):
        needed.setdefault(ref.job_id, []).append(ref.artifact)
    if spec.dataset is not None and spec.dataset.id is not None:
        needed[spec.dataset.id] = [DATASET, MANIFEST]
    return needed


def records(session: Session, tenant: str, job_id: str) -> Mapping[str, ArtifactRow]:
    """What a job of this tenant published, by name."""
    owned = jobs.get(session, job_id, tenant) is not None
    return {record.name: record for record in jobs.artifacts(session, job_id)} if owned else {}


def folder(store: ArtifactStore, job_id: str, names: Sequence[str], published: Mapping[str, ArtifactRow]) -> Path:
    """Where these files of a job lie, which are what was published. Raises InvalidInput."""
    for name in names:
        record = published.get(name)
        path = store.folder(job_id, record.attempt) / name if record else None
        if record is None or path is None or not is_intact(path, size=record.size, sha256=record.sha256):
            raise InvalidInput(f"{name} of {job_id} is gone or damaged: run that job again, then submit this one anew")
    return store.folder(job_id, published[names[0]].attempt)
