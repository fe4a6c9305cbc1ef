"""Checkpoints from elsewhere: the body is the file, and the answer the job that imports it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, BackgroundTasks, Request, Response
from starlette.concurrency import run_in_threadpool

from app.api import resources
from app.api.accepted import accepted
from app.api.deps import IdempotencyKey, LabelPairs, Parts, PartsDep, UploaderDep, labels_of
from app.api.openapi import ACCEPTED, CHECKPOINT_BODY, problems
from app.api.schemas import Job
from app.contract.spec import DisplayName
from app.core.errors import IdempotencyKeyReused, QuotaExceeded, UnsupportedMediaType
from app.services import checkpoints, quotas
from app.services.checkpoints import Upload
from app.services.idempotency import KeyedRequest, is_known

PATH = "/v1/checkpoints"
ROUTE = "upload_checkpoint"
MEDIA_TYPE = "application/octet-stream"

router = APIRouter(tags=["checkpoints"])


@router.post(
    PATH,
    status_code=202,
    response_model=Job,
    operation_id=ROUTE,
    openapi_extra=CHECKPOINT_BODY,
    responses=problems(400, 408, 413, 415, 422) | ACCEPTED,
)
async def upload_checkpoint(
    who: UploaderDep,
    request: Request,
    parts: PartsDep,
    background: BackgroundTasks,
    key: IdempotencyKey = None,
    display_name: DisplayName | None = None,
    label: LabelPairs = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """Upload a state dict of the cnn architecture, as safetensors or as torch.save writes it. What comes of it is a job
    of kind `import`; once that has succeeded, its `model.safetensors` can be another job's `source` or `initial`."""
    _refuse_other_media_type(request)
    labels = labels_of(label)
    announced = int(request.headers.get("content-length", 0))
    await run_in_threadpool(_refuse_early, parts, who.tenant, key, announced)
    upload = await checkpoints.receive(parts.store, request.stream())
    named = {"display_name": display_name, "labels": labels}
    return await run_in_threadpool(_submit, parts, background, who.tenant, key, upload, named)


def _refuse_early(parts: Parts, tenant: str, key: str | None, announced: int) -> None:
    """Before the body is sent, when there is no room for it; unless the request may have been here before."""
    with parts.sessions.begin() as session:
        if not is_known(session, tenant, ROUTE, key):
            quotas.admit(session, tenant, parts.terms.limits, more_bytes=announced)


def _submit(
    parts: Parts, background: BackgroundTasks, tenant: str, key: str | None, upload: Upload, named: dict[str, Any]
) -> Response:
    content = {"size": upload.size, "sha256": upload.sha256, **named}
    try:
        # Should the commit fail, it may have come through all the same: the file stays for the sweeper to decide on.
        with parts.sessions.begin() as session:
            answer = accepted(
                session,
                parts.queue,
                background,
                KeyedRequest(tenant, ROUTE, key, content),
                lambda: checkpoints.submit(session, tenant, upload, **named, terms=parts.terms),
            )
    except (IdempotencyKeyReused, QuotaExceeded):
        parts.store.drop_upload(upload.job_id)
        raise
    if answer.headers["Location"] != resources.job_url(upload.job_id):
        parts.store.drop_upload(upload.job_id)  # the one that came first is kept
    return answer


def _refuse_other_media_type(request: Request) -> None:
    given = request.headers.get("content-type", MEDIA_TYPE).partition(";")[0].strip().lower()
    if given != MEDIA_TYPE:
        raise UnsupportedMediaType(f"Send the file itself as {MEDIA_TYPE}, not as {given[:64]!r}.")
