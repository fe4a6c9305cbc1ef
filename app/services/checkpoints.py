"""Networks that were trained elsewhere: a file arrives, is looked at as far as that needs no PyTorch, and becomes an
import job, whose result is a checkpoint like any other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sqlalchemy.orm import Session

from app.contract.explain import MOST_ERRORS, FieldError, pointer_of
from app.contract.uploads import ImportSpec, UploadFormat
from app.core.errors import InvalidCheckpoint
from app.db.models import JobRow
from app.services import jobs, uploads
from app.storage import ArtifactStore

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_LONGEST_START = 16
_LONGEST_NAME = 256
"""Of a tensor that an answer points at."""


class Upload(NamedTuple):
    """A file that has arrived and may be a checkpoint, in place for the job of this id."""

    job_id: str
    format: UploadFormat
    size: int
    sha256: str


async def receive(store: ArtifactStore, chunks: AsyncIterator[bytes]) -> Upload:
    """Take a file in, piece by piece, none of them held. Whatever ends this ahead of time leaves nothing behind.

    Raises InvalidCheckpoint or StoreFull, and what `chunks` raises.
    """
    async with uploads.arriving(store) as draft:
        async for chunk in chunks:
            await draft.write(chunk)
        await draft.close()
        format = await asyncio.to_thread(_format, draft.path, draft.size)
        return Upload(draft.job_id, format, draft.size, draft.sha256)


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
        faults = error.faults or {"": str(error)}
        found = [
            FieldError(pointer=_pointer(tensor), code="tensor_misfit", detail=said) for tensor, said in faults.items()
        ]
        raise InvalidCheckpoint(f"{error}.", found[:MOST_ERRORS]) from error


def _pointer(tensor: str) -> str:
    """To the whole where no tensor is named, or by a name beyond all measure, which nobody is sent back."""
    return pointer_of([tensor]) if 0 < len(tensor) <= _LONGEST_NAME else ""


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
    """Insert the import job of an upload. Raises QuotaExceeded."""
    spec = ImportSpec(
        kind="import",
        format=upload.format,
        size=upload.size,
        sha256=upload.sha256,
        display_name=display_name,
        labels=labels,
    )
    return jobs.insert(session, upload.job_id, tenant, spec, terms)
