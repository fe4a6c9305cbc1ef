"""A zip is looked at before PyTorch sees it."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from tests.engine.uploads import pickled, rewritten, state_dict, torch_file, written
from worker.engine.archive import MAX_PICKLE_BYTES, refuse_odd_archive
from worker.engine.errors import InvalidCheckpoint

WHOLE = torch_file(state_dict())


def test_what_pytorch_saves_is_let_through(tmp_path: Path) -> None:
    refuse_odd_archive(written(tmp_path, WHOLE))
    path = tmp_path / "my model (1).pth"  # whose name becomes the folder's
    torch.save(state_dict(), path)
    refuse_odd_archive(path)


def _added(name: str, data: bytes) -> bytes:
    out = io.BytesIO(WHOLE)
    with warnings.catch_warnings(), zipfile.ZipFile(out, "a", zipfile.ZIP_STORED) as archive:
        warnings.simplefilter("ignore")  # a name that is there already
        archive.writestr(name, data)
    return out.getvalue()


def _overlapping() -> bytes:
    """Ten entries of the directory for the same megabyte."""
    out = io.BytesIO(WHOLE)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data/900", bytes(1 << 20))
        member = archive.getinfo("archive/data/900")
        for number in range(901, 910):
            copy = zipfile.ZipInfo(f"archive/data/{number}")
            copy.header_offset, copy.CRC = member.header_offset, member.CRC
            copy.file_size = copy.compress_size = member.file_size
            archive.filelist.append(copy)
    return out.getvalue()


ODD: dict[str, tuple[bytes, str]] = {
    "no zip": (b"PK\x03\x04 and then nothing", "cannot be read as a zip"),
    "cut off": (WHOLE[: len(WHOLE) // 2], "cannot be read as a zip"),
    "compressed": (rewritten(WHOLE, compression=zipfile.ZIP_DEFLATED), "is compressed or encrypted"),
    "a bomb": (rewritten(_added("archive/data/900", bytes(1 << 22)), compression=zipfile.ZIP_DEFLATED), "compressed"),
    "a large pickle": (pickled("x" * MAX_PICKLE_BYTES), f"more than the {MAX_PICKLE_BYTES}"),
    "a note twice": (_added("archive/.format_version", b"1" * 10), "twice"),
    "a member twice": (_added("archive/data/0", b""), "twice"),
    "overlapping members": (_overlapping(), "more than the file has"),
    "code": (_added("archive/code/__torch__.py", b""), "which is no part of a state dict"),
    "a path": (_added("archive/data/../../x", b""), "which is no part of a state dict"),
    "another folder": (_added("elsewhere/data/7", b""), "which is no part of a state dict"),
    "no pickle": (rewritten(WHOLE, lambda name, data: None if "pkl" in name else data), "has no data.pkl"),
    "a zip of something else": (rewritten(WHOLE, lambda *_: None), "has no data.pkl"),
}


@pytest.mark.parametrize(("content", "said"), ODD.values(), ids=ODD)
def test_what_pytorch_never_writes_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(InvalidCheckpoint) as caught:
        refuse_odd_archive(written(tmp_path, content))

    assert said in str(caught.value)
