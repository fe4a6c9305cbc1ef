"""Artifacts: listed, and downloaded in whole or in parts."""

from __future__ import annotations

import base64
import re

from fastapi import Request, Response
from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from app.api import resources
from app.api.deps import ArtifactReaderDep, PartsDep, ReaderDep, ReadSessionDep, make_router
from app.api.openapi import DOWNLOAD, DOWNLOAD_PARAMETERS, problems
from app.api.schemas import Artifact, Page
from app.core.errors import RangeBeyondEnd
from app.services import artifacts

_ONE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")

router = make_router(prefix="/v1/jobs/{job_id}/artifacts", tags=["artifacts"])


@router.get("", operation_id="list_artifacts", responses=problems(404, 410))
def list_artifacts(job_id: str, who: ReaderDep, session: ReadSessionDep) -> Page[Artifact]:
    """What the job published; empty until it has succeeded."""
    job, records = artifacts.list_artifacts(session, who.tenant, job_id)
    return Page(items=[resources.artifact(record, job) for record in records], next_cursor=None)


@router.head("/{name:path}", operation_id="head_artifact", include_in_schema=False)
@router.get(
    "/{name:path}",
    operation_id="download_artifact",
    response_class=FileResponse,
    openapi_extra=DOWNLOAD_PARAMETERS,
    responses=DOWNLOAD | problems(404, 410, 416),
)
def download_artifact(
    job_id: str, name: str, request: Request, who: ArtifactReaderDep, session: ReadSessionDep, parts: PartsDep
) -> Response:
    """An artifact's bytes. Takes `Range`, `If-Range` and `If-None-Match`; they never change under a name."""
    record, path = artifacts.open_artifact(session, parts.store, who.tenant, job_id, name)
    etag = f'"{record.sha256}"'
    headers = {
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(record.sha256)).decode()}:",
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    if resources.is_among(etag, request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    answer = FileResponse if _wants_part(request, etag, record.size) else _WholeFile
    return answer(path, media_type=record.media_type, headers=headers, filename=f"{job_id}-{record.name}")


class _WholeFile(FileResponse):
    """Ignores `Range`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def _wants_part(request: Request, etag: str, size: int) -> bool:
    """Whether `Range` holds; what is not one range of bytes is ignored (RFC 9110, 14.2). Raises RangeBeyondEnd."""
    found = _ONE_RANGE.fullmatch(request.headers.get("range", ""))
    if found is None or request.headers.get("if-range", etag) != etag:
        return False
    first, last = found.groups()
    if not (first or last) or (first and last and int(last) < int(first)):
        return False
    if int(first) >= size if first else int(last) == 0:
        raise RangeBeyondEnd(size)
    return True
