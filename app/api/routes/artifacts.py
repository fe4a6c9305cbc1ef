"""Artifacts: listed, and downloaded in whole or in parts."""

from __future__ import annotations

import base64

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from app.api import resources
from app.api.deps import ArtifactReaderDep, PartsDep, ReaderDep, SessionDep
from app.api.openapi import DOWNLOAD, problems
from app.api.schemas import Artifact, Page
from app.services import artifacts

router = APIRouter(prefix="/v1/jobs/{job_id}/artifacts", tags=["artifacts"])


@router.get("", operation_id="list_artifacts", responses=problems(404))
def list_artifacts(job_id: str, who: ReaderDep, session: SessionDep) -> Page[Artifact]:
    """What the job published; empty until it has succeeded."""
    job, records = artifacts.list_artifacts(session, who.tenant, job_id)
    return Page(items=[resources.artifact(record, job) for record in records], next_cursor=None)


@router.head("/{name:path}", operation_id="head_artifact", include_in_schema=False)
@router.get(
    "/{name:path}",
    operation_id="download_artifact",
    response_class=FileResponse,
    responses=DOWNLOAD | problems(404, 416),
)
def download_artifact(
    job_id: str, name: str, request: Request, who: ArtifactReaderDep, session: SessionDep, parts: PartsDep
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
    if _names(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    return FileResponse(path, media_type=record.media_type, headers=headers, filename=f"{job_id}-{record.name}")


def _names(if_none_match: str, etag: str) -> bool:
    candidates = [candidate.strip().removeprefix("W/") for candidate in if_none_match.split(",")]
    return etag in candidates or candidates == ["*"]
