"""Files as PyTorch writes them, and as it never would."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.contract.spec import ModelSpec
from worker.engine.model import fresh

MODEL = ModelSpec(channels=(2, 3, 4), hidden=5)


def state_dict(**changes: Any) -> dict[str, Any]:
    """A small network's, with `__` in a change's name for a dot; None leaves the entry out."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    state: dict[str, Any] = {**fresh(MODEL, seed=1).state_dict(), **named}
    return {name: value for name, value in state.items() if value is not None}


def torch_file(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


Change = Callable[[str, bytes], bytes | None]


def rewritten(content: bytes, change: Change = lambda _, data: data, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """The zip with each member's data changed, or left out where the change gives None."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for member in old.infolist():
            data = change(member.filename, old.read(member))
            if data is not None:
                new.writestr(member.filename, data)
    return out.getvalue()


def with_pickle(program: bytes) -> bytes:
    """A file whose pickle is this one."""
    return rewritten(torch_file({}), lambda name, data: program if name.endswith("data.pkl") else data)


def endless() -> bytes:
    """A file whose pickle has a tuple for a key, of one tuple twice, of one tuple twice, and so on: its hash takes 2^60
    steps."""
    twice = b"q\x00h\x00\x86"
    return with_pickle(b"\x80\x02}(K\x01" + 60 * twice + b"K\x01u.")


def pickled(value: object) -> bytes:
    return with_pickle(pickle.dumps(value, protocol=2))


def written(folder: Path, content: bytes) -> Path:
    path = folder / "upload"
    path.write_bytes(content)
    return path


def expanded(*shape: int) -> Tensor:
    """One number that claims to be as many as the shape says."""
    return torch.zeros(1).as_strided(shape, [0] * len(shape))
