"""From rows to the resources that clients see."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote

from app.api.schemas import Artifact, Event, Job, Links, Progress
from app.contract.failure import Failure
from app.contract.result import RESULT
from app.contract.spec import parse_stored
from app.contract.status import Status
from app.db.models import ArtifactRow, EventRow, JobRow


def job_url(job_id: str) -> str:
    return f"/v1/jobs/{job_id}"


def job(row: JobRow) -> Job:
    url, status = job_url(row.id), Status(row.status)
    return Job(
        id=row.id,
        kind=row.kind,
        status=status,
        done=status.is_terminal,
        phase=row.phase,
        display_name=row.display_name,
        labels=row.labels,
        revision=row.revision,
        attempt=row.attempt,
        progress=Progress.model_validate(row.progress) if row.progress else None,
        estimated_finish_at=row.progress["estimated_finish_at"] if row.progress and not status.is_terminal else None,
        result=RESULT.validate_python(row.result) if row.result else None,
        error=Failure.model_validate(row.error) if row.error else None,
        created_at=row.created_at,
        queued_at=row.queued_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        updated_at=row.updated_at,
        expires_at=row.expires_at,
        spec=parse_stored(row.spec),
        links=Links(self=url, **{name: f"{url}/{name}" for name in ("events", "artifacts", "cancel", "retry")}),
    )


def event(row: EventRow) -> Event:
    return Event.model_validate(row)


def artifact(row: ArtifactRow, owner: JobRow) -> Artifact:
    return Artifact(
        name=row.name,
        role=row.role,
        media_type=row.media_type,
        size=row.size,
        sha256=row.sha256,
        created_at=row.created_at,
        expires_at=owner.expires_at,
        href=f"{job_url(row.job_id)}/artifacts/{quote(row.name)}",
    )


def retry_after(row: JobRow) -> str:
    """Seconds until a client should look again: soon for a young job, later for one that takes its time."""
    age = (datetime.now(UTC) - row.created_at).total_seconds()
    return "2" if age < 60 else "5" if age < 600 else "15"
