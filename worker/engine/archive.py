"""The zip that torch.save writes, looked at without PyTorch: what is no such file, or would grow, is not loaded."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from worker.engine.errors import InvalidCheckpoint

MAX_MEMBERS = 10_000
MAX_PICKLE_BYTES = 1 << 20
"""The architecture's own has 2,400. All tensors' data lie beside it."""

_PICKLE_PATH = re.compile(r"([^/]*/)data\.pkl")
_DATA = re.compile(r"data/[0-9]{1,9}")
_SMALL = {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
_ENCRYPTED = 0x1
_SAVE_AGAIN = "save it again with torch.save(model.state_dict(), path)"


def refuse_odd_archive(path: Path) -> None:
    """Raises `InvalidCheckpoint` unless the file is a zip of the members that torch.save writes, each of them once, as
    it is and not larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise InvalidCheckpoint(f"it cannot be read as a zip, which torch.save writes: {error}") from error
    if len(members) > MAX_MEMBERS:
        raise InvalidCheckpoint(f"the zip has {len(members)} members, more than the {MAX_MEMBERS} that it may have")
    _refuse_other_layout([member.filename for member in members])
    for member in members:
        _refuse_growing(member)
    if (total := sum(member.file_size for member in members)) > path.stat().st_size:
        raise InvalidCheckpoint(f"the members of the zip come to {total} bytes, more than the file has")


def _refuse_other_layout(names: Sequence[str]) -> None:
    """All are in one folder, whose name is whatever the file was called when it was saved."""
    folder = next((found[1] for found in map(_PICKLE_PATH.fullmatch, names) if found), None)
    if folder is None:
        raise InvalidCheckpoint(f"the zip has no data.pkl in a folder, so torch.save did not write it: {_SAVE_AGAIN}")
    seen: set[str] = set()
    for name in names:
        inner = name.removeprefix(folder)
        if inner == name or (inner not in _SMALL and not _DATA.fullmatch(inner)):
            raise InvalidCheckpoint(f"the zip holds {name[:64]!r}, which is no part of a state dict: {_SAVE_AGAIN}")
        if name in seen:
            raise InvalidCheckpoint(f"the zip holds {name[:64]!r} twice")
        seen.add(name)


def _refuse_growing(member: zipfile.ZipInfo) -> None:
    name = member.filename[:64]
    stored = member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size
    if not stored or member.flag_bits & _ENCRYPTED:
        raise InvalidCheckpoint(f"{name!r} in the zip is compressed or encrypted, which torch.save never does")
    if "/data/" not in member.filename and member.file_size > MAX_PICKLE_BYTES:
        raise InvalidCheckpoint(
            f"{name!r} in the zip has {member.file_size} bytes, more than the {MAX_PICKLE_BYTES} that it may have: "
            f"{_SAVE_AGAIN}"
        )
