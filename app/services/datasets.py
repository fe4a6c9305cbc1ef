"""Data sets of clients: files arrive, and become a job that checks them, whose result is a data set that specs name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, NamedTuple, cast, get_args

from sqlalchemy.orm import Session

from app.contract.datasets import DatasetPart, IdxPart
from app.contract.uploads import DatasetImportSpec, UploadedFile
from app.core.errors import DatasetNotFound, InvalidDataset, JobNotFound
from app.db.jobs import Filter
from app.db.models import JobRow
from app.services import jobs, multipart, uploads
from app.services.jobs import JobPage, Terms
from app.services.uploads import Draft
from app.storage import ArtifactStore

KIND: Final = "dataset"

_PARTS = get_args(DatasetPart)
_IDX_PARTS = frozenset(get_args(IdxPart))
_ZIP, _GZIP = b"PK\x03\x04", b"\x1f\x8b"
_IDX_IMAGES, _IDX_LABELS = (b"\0\0\x08\x03", b"\0\0\x08\x04"), (b"\0\0\x08\x01",)
_WANTED = "send one file, an .npz or a zip of class folders, or the four parts " + ", ".join(sorted(_IDX_PARTS))


class Upload(NamedTuple):
    """Files that have arrived and may be a data set, one after the other in the upload of the job of this id."""

    job_id: str
    files: tuple[UploadedFile, ...]
    size: int
    sha256: str


async def receive(store: ArtifactStore, chunks: AsyncIterator[bytes], boundary: bytes | None) -> Upload:
    """Take a data set in: one file, or with a boundary the parts of a form. Whatever ends this ahead of time leaves
    nothing behind. Raises InvalidDataset, StoreFull or Malformed, and what `chunks` raises."""
    async with uploads.arriving(store) as draft:
        sizes = await (_one(draft, chunks) if boundary is None else _parts(draft, chunks, boundary))
        await draft.close()
        await asyncio.to_thread(_refuse_other_files, draft.path, sizes)
        files = tuple(UploadedFile(name=name, size=size) for name, size in sizes.items())
        return Upload(draft.job_id, files, draft.size, draft.sha256)


async def _one(draft: Draft, chunks: AsyncIterator[bytes]) -> dict[DatasetPart, int]:
    async for chunk in chunks:
        await draft.write(chunk)
    return {"file": draft.size}


async def _parts(draft: Draft, chunks: AsyncIterator[bytes], boundary: bytes) -> dict[DatasetPart, int]:
    sizes: dict[DatasetPart, int] = {}
    async for part in multipart.parts(chunks, boundary):
        if part.begins:
            if part.name not in _PARTS or part.name in sizes:
                raise InvalidDataset(f"The part {part.name[:64]!r} is not expected, or comes twice: {_WANTED}.")
            sizes[cast(DatasetPart, part.name)] = 0
        await draft.write(part.content)
        sizes[cast(DatasetPart, part.name)] += len(part.content)
    return sizes


def _refuse_other_files(path: Path, sizes: dict[DatasetPart, int]) -> None:
    """By their names and first bytes; what is in them is for the worker."""
    if set(sizes) not in ({"file"}, _IDX_PARTS):
        raise InvalidDataset(f"There are the parts {', '.join(sizes) or 'none'}: {_WANTED}.")
    at = 0
    with path.open("rb") as file:
        for name, size in sizes.items():
            file.seek(at)
            start = file.read(min(size, 4))
            at += size
            if name == "file" and start != _ZIP:
                raise InvalidDataset(f"The file is no zip, which an .npz is too: {_WANTED}.")
            known = _IDX_IMAGES if name.endswith("images") else _IDX_LABELS
            if name != "file" and start not in known and not start.startswith(_GZIP):
                raise InvalidDataset(
                    f"{name} begins with {start.hex() or 'nothing'}, expected "
                    f"{' or '.join(each.hex() for each in known)} as an IDX file of bytes does, or gzip."
                )


def submit(
    session: Session,
    tenant: str,
    upload: Upload,
    *,
    display_name: str | None,
    labels: dict[str, str],
    terms: Terms,
) -> JobRow:
    """Insert the job that checks an upload. Raises what `jobs.insert` raises."""
    spec = DatasetImportSpec(
        kind=KIND,
        files=upload.files,
        size=upload.size,
        sha256=upload.sha256,
        display_name=display_name,
        labels=labels,
    )
    return jobs.insert(session, upload.job_id, tenant, spec, terms)


def get(session: Session, tenant: str, dataset_id: str) -> JobRow:
    """Raises DatasetNotFound or JobGone."""
    try:
        row = jobs.get(session, tenant, dataset_id)
    except JobNotFound:
        row = None
    if row is None or row.kind != KIND:
        raise DatasetNotFound(dataset_id)
    return row


def page(
    session: Session, tenant: str, *, sha256: str | None, labels: dict[str, str], cursor: str | None, limit: int
) -> JobPage:
    """Raises InvalidCursor."""
    wanted = Filter(kinds=(KIND,), dataset_sha256=sha256, labels=labels)
    return jobs.page(session, tenant, wanted, cursor=cursor, limit=limit)


def delete(session: Session, tenant: str, dataset_id: str) -> None:
    """Take a data set away for good. Raises DatasetNotFound, JobGone, JobNotDone or JobInUse."""
    get(session, tenant, dataset_id)
    jobs.delete(session, tenant, dataset_id)
