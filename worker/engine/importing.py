"""Reads a network that somebody else trained. A PyTorch file is converted by a process of its own, see `convert`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from app.contract.checkpoint import Network
from app.contract.uploads import ImportSpec
from worker.engine import apart, checkpoint
from worker.engine.apart import UPLOAD, Limits
from worker.engine.errors import InvalidCheckpoint
from worker.engine.observer import Observer
from worker.engine.resources import IMPORT_COPIES, IMPORT_OVERHEAD

CPU_SECONDS, WALL_SECONDS = 120, 300


def limits_for(size: int) -> Limits:
    """For a file of so many bytes, of which what is written holds no more than the tensors."""
    return Limits(CPU_SECONDS, WALL_SECONDS, IMPORT_OVERHEAD + IMPORT_COPIES * size, size + (1 << 20))


def read_upload(spec: ImportSpec, upload: Path, out: Path, observer: Observer) -> tuple[Network, dict[str, Tensor]]:
    """The uploaded network's sizes and state. Raises `InvalidCheckpoint`, or what `observer.check` raises.

    `out` is where a converted file may be put.
    """
    if spec.format == "torch":
        converted = out / "model.safetensors"
        convert_apart(upload, converted, limits_for(spec.size), observer.check)
        upload = converted
    return checkpoint.load(upload, called=UPLOAD)


def convert_apart(upload: Path, target: Path, limits: Limits, check: Callable[[], None]) -> None:
    """Convert a PyTorch file in another process. Raises `InvalidCheckpoint`, `OutOfMemory` or `DiskFull`, or what
    `check` raises, which is asked all the while."""
    apart.run("worker.engine.convert", [str(upload), str(target)], limits, check, InvalidCheckpoint)
