"""Data sets of clients: upload, read, list and delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response
from pydantic import JsonValue
from starlette.concurrency import run_in_threadpool

from app.api import resources
from app.api.accepted import Told, accepted_upload, body_of_upload
from app.api.deps import (
    IdempotencyKey,
    LabelPairs,
    PartsDep,
    ReaderDep,
    ReadSessionDep,
    SessionDep,
    WriterDep,
    labels_of,
    make_router,
    media_type_of,
)
from app.api.openapi import ACCEPTED, DATASET_BODY, PAGE, problems, with_headers
from app.api.routes.jobs import MOST, Limit, link_next
from app.api.schemas import Dataset, Page
from app.contract import patterns
from app.contract.job import DisplayName
from app.core.errors import UnsupportedMediaType
from app.db.models import JobRow
from app.services import datasets
from app.services.idempotency import KeyedRequest
from app.services.multipart import boundary_of

PATH = "/v1/datasets"
ROUTE = "upload_dataset"
_FORM = "multipart/form-data"
_FILE = ("application/octet-stream", "application/zip")

router = make_router(prefix=PATH, tags=["datasets"])


@router.post(
    "",
    status_code=202,
    response_model=Dataset,
    operation_id="upload_dataset",
    openapi_extra=DATASET_BODY,
    responses=problems(400, 408, 413, 415, 422) | ACCEPTED,
)
async def upload_dataset(
    who: WriterDep,
    request: Request,
    parts: PartsDep,
    key: IdempotencyKey = None,
    name: DisplayName | None = None,
    label: LabelPairs = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """Upload a data set: an .npz, a zip of class folders, or the four IDX files as parts of a form. A worker checks it;
    once it is `ready`, a spec may name it as `{"dataset": {"id": …}}`."""
    labels = labels_of(label)
    boundary = _boundary(request)
    async with body_of_upload(parts, who.tenant, ROUTE, key, request) as pieces:
        upload = await datasets.receive(parts.store, pieces, boundary)
    files = [file.model_dump(mode="json") for file in upload.files]
    content: JsonValue = {"files": [*files], "sha256": upload.sha256, "display_name": name, "labels": {**labels}}
    return await run_in_threadpool(
        accepted_upload,
        parts,
        KeyedRequest(who.tenant, ROUTE, key, content),
        upload.job_id,
        lambda session: _told(
            datasets.submit(session, who.tenant, upload, display_name=name, labels=labels, terms=parts.terms)
        ),
        resources.dataset_url,
    )


def _told(row: JobRow) -> Told:
    return Told(row, resources.dataset(row))


def _boundary(request: Request) -> bytes | None:
    """Of a form; None of a file alone."""
    media_type = media_type_of(request, unless_told=_FILE[0])
    if media_type == _FORM:
        return boundary_of(request.headers["content-type"])
    if media_type not in _FILE:
        raise UnsupportedMediaType(f"Send {' or '.join((*_FILE, _FORM))}, not {media_type[:64]!r}.")
    return None


@router.get("", operation_id="list_datasets", responses=problems(400, 422) | PAGE)
def list_datasets(
    who: ReaderDep,
    session: ReadSessionDep,
    request: Request,
    response: Response,
    sha256: Annotated[
        str | None, Query(pattern=patterns.SHA256, description="Only those of this content (`dataset_sha256`).")
    ] = None,
    label: LabelPairs = [],  # noqa: B006
    cursor: Annotated[str | None, Query(description="Of the page before; it brings that one's filters along.")] = None,
    limit: Limit = 20,
) -> Page[Dataset]:
    """Your data sets, newest first. Those that need no upload are in `/v1/options`."""
    page = datasets.page(
        session, who.tenant, sha256=sha256, labels=labels_of(label), cursor=cursor, limit=min(limit, MOST)
    )
    link_next(request, response, cursor=page.next_cursor)
    return Page(items=[resources.dataset(row) for row in page.items], next_cursor=page.next_cursor)


@router.get(
    "/{dataset_id}", operation_id="get_dataset", responses=problems(404, 410) | with_headers(200, "Retry-After")
)
def get_dataset(dataset_id: str, who: ReaderDep, session: ReadSessionDep, response: Response) -> Dataset:
    """A data set, ready or not. While it is checked, `Retry-After` says when to ask again."""
    row = datasets.get(session, who.tenant, dataset_id)
    found = resources.dataset(row)
    if found.status == "checking":
        response.headers["Retry-After"] = resources.retry_after(row.queued_at)
    return found


@router.delete("/{dataset_id}", status_code=204, operation_id="delete_dataset", responses=problems(404, 409, 410))
def delete_dataset(dataset_id: str, who: WriterDep, session: SessionDep) -> None:
    """Delete a data set for good: not while it is checked (cancel that job first), nor while a job needs it."""
    datasets.delete(session, who.tenant, dataset_id)
