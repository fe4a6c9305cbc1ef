"""Reads a network that somebody else trained. A PyTorch file is converted by a process of its own, see `convert`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from app.contract.checkpoint import Network
from app.contract.spec import ImportSpec
from worker.engine import checkpoint, convert
from worker.engine.convert import Limits
from worker.engine.errors import DiskFull, EngineError, InvalidCheckpoint, OutOfMemory
from worker.engine.observer import Observer
from worker.engine.resources import IMPORT_COPIES, IMPORT_OVERHEAD

UPLOAD = "the uploaded file"

CPU_SECONDS, WALL_SECONDS = 120, 300
_POLL_SECONDS = 0.1
_RAISED: dict[str, type[EngineError]] = {each.code: each for each in (InvalidCheckpoint, DiskFull)}
# What reading the file may bring down: the limit on the processor, and the reader's own end.
_BY_ITS_CONTENT = {signal.SIGXCPU, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


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
    """Convert a PyTorch file in another process, which ends with this call, however that ends. Raises
    `InvalidCheckpoint`, `OutOfMemory` or `DiskFull`, or what `check` raises, which is asked all the while."""
    until = time.monotonic() + limits.wall_seconds
    with subprocess.Popen(  # noqa: S603
        convert.command(upload, target, limits),
        env=convert.environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # signals to the worker's group are for the worker to answer
    ) as child:
        try:
            said, log = _ended(child, until, check)
        finally:
            child.kill()
    _raise_what_it_said(child.returncode, said, log)


def _ended(child: subprocess.Popen[bytes], until: float, check: Callable[[], None]) -> tuple[bytes, bytes]:
    while True:
        check()
        try:
            return child.communicate(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if time.monotonic() > until:
                raise InvalidCheckpoint(f"{UPLOAD} takes longer to read than a file of its size may") from None


def _raise_what_it_said(code: int, said: bytes, log: bytes) -> None:
    if -code in _BY_ITS_CONTENT:
        raise InvalidCheckpoint(
            f"{UPLOAD} takes more to read than a file of its size may ({signal.Signals(-code).name})"
        )
    if -code == signal.SIGKILL:  # by the kernel, since it was not by us
        raise OutOfMemory(f"{UPLOAD} could not be read in the memory that the worker has: upload it again later")
    if code != 0:
        raise RuntimeError(f"the converter ended with {code}: {log[-2000:].decode(errors='replace')}")
    told = json.loads(said)
    if told:
        raise _RAISED[told["code"]](f"{UPLOAD}: {told['message']}")
