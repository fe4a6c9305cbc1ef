"""From rows to the resources that clients see."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from app.api.schemas import (
    Artifact,
    Dataset,
    DatasetLinks,
    Delivery,
    Event,
    Job,
    Links,
    Progress,
    Queue,
    Quota,
    Quotas,
    Webhook,
    WebhookWithSecret,
)
from app.contract.failure import Failure
from app.contract.result import RESULT, DatasetResult
from app.contract.spec import StoredSpec, parse_stored
from app.contract.status import Status
from app.core.limits import UNLIMITED
from app.db.models import ArtifactRow, DeliveryRow, EventRow, JobRow, WebhookRow
from app.services.jobs import Place
from app.services.quotas import Quotas as Found


def job_url(job_id: str) -> str:
    return f"/v1/jobs/{job_id}"


def job(row: JobRow, place: Place | None = None, spec: StoredSpec | None = None) -> Job:
    """`spec` is the row's, where it is at hand."""
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
        parent_job_id=row.parent_job_id,
        sweep_id=row.sweep_id,
        attempt=row.attempt,
        queue=place and _queue(place),
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
        spec=spec or parse_stored(row.spec),
        links=Links(self=url, **{name: f"{url}/{name}" for name in Links.model_fields if name != "self"}),
    )


def _queue(place: Place) -> Queue:
    return Queue(position=place.position, ahead_seconds_estimate=place.ahead_seconds, waits_for=place.waits_for)


def quotas(tenant: str, found: Found) -> Quotas:
    limits, use, requests = found
    return Quotas(
        tenant=tenant,
        queued_jobs=_quota(limits.max_queued, use.queued),
        running_jobs=_quota(limits.max_running, use.running),
        stored_bytes=_quota(limits.max_stored_bytes, use.stored_bytes),
        requests_per_minute=_quota(limits.requests_per_minute, requests),
    )


def _quota(limit: int, in_use: int | None) -> Quota:
    return Quota(limit=None if limit == UNLIMITED else limit, in_use=in_use)


def dataset_url(dataset_id: str) -> str:
    return f"/v1/datasets/{dataset_id}"


def dataset(row: JobRow) -> Dataset:
    result = RESULT.validate_python(row.result) if row.result else None
    found = result if isinstance(result, DatasetResult) else None
    status, job = Status(row.status), job_url(row.id)
    return Dataset(
        id=row.id,
        name=row.display_name,
        labels=row.labels,
        status="checking" if not status.is_terminal else "ready" if found else "rejected",
        job_id=row.id,
        error=Failure.model_validate(row.error) if row.error else None,
        format=found and found.format,
        shape=found and found.facts.shape,
        class_names=found and found.class_names,
        train_images=found and found.facts.train_images,
        test_images=found and found.facts.test_images,
        sha256=found and found.dataset_sha256,
        size=row.spec["size"],
        created_at=row.created_at,
        expires_at=row.expires_at,
        links=DatasetLinks(self=dataset_url(row.id), job=job, events=f"{job}/events"),
    )


def etag(revision: int, position: int | None = None) -> str:
    """Weak: what it stands for may be spelt in many ways. A place in the queue changes without the job's doing."""
    return f'W/"{revision}"' if position is None else f'W/"{revision}.{position}"'


def revisions(if_match: str | None) -> set[int] | None:
    """Which revisions of a job an `If-Match` allows; None allows every one. What is no tag of ours matches none
    (RFC 9110, 13.1.1)."""
    if if_match is None or if_match.strip() == "*":
        return None
    tags = (re.fullmatch(r'(?:W/)?"([0-9]{1,18})(?:\.[0-9]{1,18})?"', tag.strip()) for tag in if_match.split(","))
    return {int(tag[1]) for tag in tags if tag}


def is_among(etag: str, if_none_match: str) -> bool:
    """Whether `If-None-Match` names a copy, by the weak comparison: `W/` does not count (RFC 9110, 13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag.removeprefix("W/") in tags or tags == ["*"]


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


def webhook_url(webhook_id: str) -> str:
    return f"/v1/webhooks/{webhook_id}"


def webhook(row: WebhookRow) -> Webhook:
    return Webhook.model_validate(_webhook(row))


def webhook_with_secret(row: WebhookRow) -> WebhookWithSecret:
    return WebhookWithSecret.model_validate(_webhook(row) | {"secret": row.secret})


def _webhook(row: WebhookRow) -> dict[str, Any]:
    fields = {name: getattr(row, name) for name in Webhook.model_fields if name != "enabled"}
    return fields | {"enabled": row.disabled_reason is None}


def delivery(row: DeliveryRow) -> Delivery:
    return Delivery.model_validate(row)


SOON = 2


def retry_after(queued_at: datetime, turn: float = 0.0) -> str:
    """Seconds until a client should look again: soon at a young job, later at one that takes its time; and not before
    its `turn` comes in so many seconds."""
    age = (datetime.now(UTC) - queued_at).total_seconds()
    return str(max(SOON if age < 60 else 5 if age < 600 else 15, math.ceil(turn)))
