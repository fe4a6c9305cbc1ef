"""Checkpoints from elsewhere: the body is the file, and the answer the job that imports it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.api import resources
from app.api.deps import Parts, PartsDep, UploaderDep
from app.api.openapi import CHECKPOINT_BODY, problems
from app.api.schemas import Job
from app.contract.explain import FieldError
from app.contract.spec import MAX_LABELS, DisplayName, Label
from app.core.errors import InvalidParameter, UnsupportedMediaType
from app.services import checkpoints
from app.services.checkpoints import Upload

PATH = "/v1/checkpoints"
MEDIA_TYPE = "application/octet-stream"

router = APIRouter(tags=["checkpoints"])


@router.post(
    PATH,
    status_code=202,
    operation_id="upload_checkpoint",
    openapi_extra=CHECKPOINT_BODY,
    responses=problems(400, 408, 413, 415, 422),
)
async def upload_checkpoint(
    who: UploaderDep,
    request: Request,
    parts: PartsDep,
    background: BackgroundTasks,
    response: Response,
    display_name: DisplayName | None = None,
    label: Annotated[list[Label], Query(max_length=MAX_LABELS, description="key:value; repeatable.")] = [],  # noqa: B006
) -> Job:
    """Upload a state dict of the cnn architecture, as safetensors or as torch.save writes it. What comes of it is a job
    of kind `import`; once that has succeeded, its `model.safetensors` can be another job's `source` or `initial`."""
    _refuse_other_media_type(request)
    labels = _labels(label)
    upload = await checkpoints.receive(parts.store, request.stream())
    job, retry_after = await run_in_threadpool(_submit, parts, who.tenant, upload, display_name, labels)
    background.add_task(parts.queue.wake, job.id)
    response.headers["Location"] = job.links.self
    response.headers["Retry-After"] = retry_after
    return job


def _submit(
    parts: Parts, tenant: str, upload: Upload, display_name: str | None, labels: dict[str, str]
) -> tuple[Job, str]:
    # Should the commit fail, it may have come through all the same: the file stays for the sweeper to decide on.
    with parts.sessions.begin() as session:
        row = checkpoints.submit(
            session,
            tenant,
            upload,
            display_name=display_name,
            labels=labels,
            retention_days=parts.settings.retention_days,
        )
        return resources.job(row), resources.retry_after(row)


def _refuse_other_media_type(request: Request) -> None:
    given = request.headers.get("content-type", MEDIA_TYPE).partition(";")[0].strip().lower()
    if given != MEDIA_TYPE:
        raise UnsupportedMediaType(f"Send the file itself as {MEDIA_TYPE}, not as {given[:64]!r}.")


def _labels(pairs: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for index, pair in enumerate(pairs):
        key, _, value = pair.partition(":")
        if key in labels:
            detail = f"the label {key!r} is given twice"
            raise InvalidParameter(
                detail, [FieldError(pointer=f"/query/label/{index}", code="label_repeats", detail=detail)]
            )
        labels[key] = value
    return labels
