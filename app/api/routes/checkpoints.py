"""Checkpoints from elsewhere: the body is the file, and the answer the job that imports it."""

from __future__ import annotations

from fastapi import Request, Response
from pydantic import JsonValue
from starlette.concurrency import run_in_threadpool

from app.api import resources
from app.api.accepted import Told, accepted_upload, body_of_upload
from app.api.deps import IdempotencyKey, LabelPairs, PartsDep, WriterDep, labels_of, make_router, media_type_of
from app.api.openapi import ACCEPTED, CHECKPOINT_BODY, problems
from app.api.schemas import Job
from app.contract.job import DisplayName
from app.core.errors import UnsupportedMediaType
from app.db.models import JobRow
from app.services import checkpoints
from app.services.idempotency import KeyedRequest

PATH = "/v1/checkpoints"
ROUTE = "upload_checkpoint"
MEDIA_TYPE = "application/octet-stream"

router = make_router(tags=["checkpoints"])


@router.post(
    PATH,
    status_code=202,
    response_model=Job,
    operation_id=ROUTE,
    openapi_extra=CHECKPOINT_BODY,
    responses=problems(400, 408, 413, 415, 422) | ACCEPTED,
)
async def upload_checkpoint(
    who: WriterDep,
    request: Request,
    parts: PartsDep,
    key: IdempotencyKey = None,
    display_name: DisplayName | None = None,
    label: LabelPairs = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """Upload a state dict of the cnn architecture, as safetensors or as torch.save writes it. What comes of it is a job
    of kind `import`; once that has succeeded, its `model.safetensors` can be another job's `source` or `initial`."""
    _refuse_other_media_type(request)
    labels = labels_of(label)
    async with body_of_upload(parts, who.tenant, ROUTE, key, request) as pieces:
        upload = await checkpoints.receive(parts.store, pieces)
    content: JsonValue = {
        "size": upload.size,
        "sha256": upload.sha256,
        "display_name": display_name,
        "labels": {**labels},
    }
    return await run_in_threadpool(
        accepted_upload,
        parts,
        KeyedRequest(who.tenant, ROUTE, key, content),
        upload.job_id,
        lambda session: _told(
            checkpoints.submit(session, who.tenant, upload, display_name=display_name, labels=labels, terms=parts.terms)
        ),
    )


def _told(row: JobRow) -> Told:
    return Told(row, resources.job(row))


def _refuse_other_media_type(request: Request) -> None:
    given = media_type_of(request, unless_told=MEDIA_TYPE)
    if given != MEDIA_TYPE:
        raise UnsupportedMediaType(f"Send the file itself as {MEDIA_TYPE}, not as {given[:64]!r}.")
