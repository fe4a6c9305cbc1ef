"""Networks that were trained elsewhere: a file arrives, is looked at as far as that needs no PyTorch, and becomes an
import job, whose result is a checkpoint like any other."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sqlalchemy.orm import Session

from app.contract.explain import FieldError
from app.contract.spec import ImportSpec, UploadFormat
from app.core.errors import InvalidCheckpoint, StoreFull
from app.core.ids import new_job_id
from app.db.models import JobRow
from app.services import jobs
from app.storage import ArtifactStore

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_LONGEST_START = 16


class Upload(NamedTuple):
    """A file that has arrived and may be a checkpoint, in place for the job of this id."""

    job_id: str
    format: UploadFormat
    size: int
    sha256: str


async def receive(store: ArtifactStore, chunks: AsyncIterator[bytes]) -> Upload:
    """Take a file in, piece by piece, none of them held. Whatever ends this ahead of time leaves nothing behind.

    Raises InvalidCheckpoint or StoreFull, and what `chunks` raises. All that touches the disk happens on threads.
    """
    job_id = new_job_id()
    try:
        with _room_wanted():
            draft = await asyncio.to_thread(store.incoming, job_id)
            size, sha256 = await _written(draft, chunks)
            format = await asyncio.to_thread(_format, draft, size)
            await asyncio.to_thread(store.accept, job_id)
    except BaseException:
        await asyncio.to_thread(store.drop_upload, job_id)
        raise
    return Upload(job_id, format, size, sha256)


@contextmanager
def _room_wanted() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull from error
        raise


async def _written(draft: Path, chunks: AsyncIterator[bytes]) -> tuple[int, str]:
    """Size and sha256 of what came."""
    size, digest = 0, hashlib.sha256()

    def write(chunk: bytes) -> None:
        file.write(chunk)
        digest.update(chunk)

    file = await asyncio.to_thread(draft.open, "wb")
    try:
        async for chunk in chunks:
            await asyncio.to_thread(write, chunk)
            size += len(chunk)
    finally:
        await asyncio.to_thread(file.close)
    return size, digest.hexdigest()


def _format(path: Path, size: int) -> UploadFormat:
    """What the file is, by its content. Raises InvalidCheckpoint; the tensors of a PyTorch file are for the worker."""
    # Imported here: nothing else in the API reads them.
    from app.contract.header import begins_header

    with path.open("rb") as file:
        start = file.read(_LONGEST_START)
        if start.startswith(_ZIP):
            return "torch"
        if begins_header(start, size):
            file.seek(0)
            _refuse_other_network(file, size)
            return "safetensors"
    raise _unknown(start)


def _refuse_other_network(file: BinaryIO, size: int) -> None:
    from app.contract.checkpoint import NotTheNetwork, network_of
    from app.contract.header import BadHeader, read_header

    try:
        network_of(read_header(file, size))
    except BadHeader as error:
        raise InvalidCheckpoint(f"The file is no whole safetensors file: {error}.") from error
    except NotTheNetwork as error:
        detail = f"{error}."
        pointer = f"/{error.tensor}" if error.tensor else ""
        raise InvalidCheckpoint(detail, [FieldError(pointer=pointer, code="tensor_misfit", detail=detail)]) from error


def _unknown(start: bytes) -> InvalidCheckpoint:
    if not start:
        return InvalidCheckpoint("The body is empty: send the file itself, as curl --data-binary @FILE does.")
    if start.startswith(_PICKLE):
        return InvalidCheckpoint(
            "The file is a bare pickle, as PyTorch wrote them before 1.6: save it again with "
            "torch.save(model.state_dict(), path) of PyTorch 1.6 or newer, or as safetensors."
        )
    return InvalidCheckpoint(
        "The file is neither whole safetensors nor a zip as torch.save(model.state_dict(), path) writes it."
    )


def submit(
    session: Session,
    tenant: str,
    upload: Upload,
    *,
    display_name: str | None,
    labels: dict[str, str],
    terms: jobs.Terms,
) -> JobRow:
    """Insert the import job of an upload. Raises QueueFull or StorageFull."""
    spec = ImportSpec(
        kind="import",
        format=upload.format,
        size=upload.size,
        sha256=upload.sha256,
        display_name=display_name,
        labels=labels,
    )
    return jobs.insert(session, upload.job_id, tenant, spec, terms)
