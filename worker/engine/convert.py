"""A PyTorch file to safetensors, as a program of its own: `python -m worker.engine.convert UPLOAD TARGET LIMITS`.

A `.pt` file is a pickle. Though `weights_only` narrows what it may do, whoever reads one does so in a process that has
nothing to lose: with limits, without the worker's environment, and gone with its parent. It prints one JSON object,
which is empty when TARGET has been written, and else has `code` and `message`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn

from app.contract.checkpoint import NotTheNetwork, TensorFacts, network_of
from worker.engine.archive import refuse_odd_archive
from worker.engine.checkpoint import to_safetensors
from worker.engine.errors import EngineError, InvalidCheckpoint, OutOfMemory, translated

_PR_SET_PDEATHSIG = 1
_EXPECTED = "expected a state dict alone, as torch.save(model.state_dict(), path) writes it"
_DTYPES = {
    **{torch.float32: "F32", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"},
    **{torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"},
}
_GLOBAL = re.compile(r"GLOBAL ([\w.]{1,100})")


class Limits(NamedTuple):
    """Time of the processor and memory are beyond what the process has had when PyTorch is there."""

    cpu_seconds: int
    wall_seconds: float
    memory_bytes: int
    file_bytes: int


def main(upload: Path, target: Path, limits: Limits, parent: int) -> None:
    _end_with(parent)
    _limit(limits)
    told: dict[str, str] = {}
    try:
        with translated():
            target.write_bytes(to_safetensors(read_state(upload)))
    except OutOfMemory:
        told = _of(InvalidCheckpoint("it takes more memory than a file of its size may"))
    except EngineError as error:
        told = _of(error)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        told = _of(
            InvalidCheckpoint("its tensors come to more than the file, since they share memory: save tensor.clone()")
        )
    print(json.dumps(told))  # noqa: T201 - to its parent


def _of(error: EngineError) -> dict[str, str]:
    return {"code": error.code, "message": str(error)}


def _end_with(parent: int) -> None:
    """The parent can kill this process, but not when it is killed itself: from now on the kernel does. One that went
    while PyTorch was being imported is noticed here."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")


def _limit(limits: Limits) -> None:
    """Only now: what importing PyTorch takes is no measure of the file."""
    torch.set_num_threads(1)
    # Of the two limits on time, the first one's signal tells which it was; the second kills.
    _lower(resource.RLIMIT_CPU, math.ceil(time.process_time()) + limits.cpu_seconds, grace=5)
    _lower(resource.RLIMIT_AS, psutil.Process().memory_info().vms + limits.memory_bytes)
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(which: int, limit: int, grace: int = 0) -> None:
    """For good, unless the process has been given less already."""
    _, hard = resource.getrlimit(which)
    most = limit + grace if hard == resource.RLIM_INFINITY else min(limit + grace, hard)
    resource.setrlimit(which, (min(limit, most), most))


def read_state(upload: Path) -> dict[str, Tensor]:
    """The state dict in the file. Raises `InvalidCheckpoint`."""
    refuse_odd_archive(upload)
    state = _loaded(upload)
    if not isinstance(state, dict):
        raise InvalidCheckpoint(f"the file holds a {type(state).__name__}: {_EXPECTED}")
    for name, value in state.items():
        _refuse_no_tensor(name, value)
    try:
        # Before anything is copied: a shape costs nothing, and its copy all that it says.
        network_of({name: TensorFacts(_word(each.dtype), tuple(each.shape)) for name, each in state.items()})
    except NotTheNetwork as error:
        raise InvalidCheckpoint(str(error)) from error
    for name, tensor in state.items():
        _refuse_scattered(name, tensor)
    return state


def _loaded(upload: Path) -> Any:
    try:
        return torch.load(upload, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle brings up whatever the unpickler trips over
        if found := _GLOBAL.search(str(error)):
            raise InvalidCheckpoint(f"the file wants {found[1]}, which no state dict does: {_EXPECTED}") from error
        first = str(error).strip().partition("\n")[0][:200]
        raise InvalidCheckpoint(f"PyTorch cannot read it: {first or type(error).__name__}") from error


def _refuse_no_tensor(name: object, value: object) -> None:
    if not isinstance(name, str):
        raise InvalidCheckpoint(f"the file's dict has a name of type {type(name).__name__}: {_EXPECTED}")
    if type(value) not in (Tensor, nn.Parameter):
        raise InvalidCheckpoint(
            f"{name[:64]!r} in the file is of type {type(value).__name__} and no tensor: {_EXPECTED}"
        )
    assert isinstance(value, Tensor)
    if value.layout is not torch.strided or value.device.type != "cpu":
        raise InvalidCheckpoint(f"{name[:64]!r} is a {value.layout} tensor on {value.device}: expected a dense one")


def _refuse_scattered(name: str, tensor: Tensor) -> None:
    """Lest one number stand for a million: of a stride of 0, none of the others have been uploaded."""
    if not tensor.is_contiguous() and not (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    ):
        raise InvalidCheckpoint(
            f"{name} has shape {list(tensor.shape)} and is not contiguous (strides {list(tensor.stride())}): save "
            "tensor.contiguous()"
        )


def _word(dtype: torch.dtype) -> str:
    return _DTYPES.get(dtype, str(dtype))


def command(upload: Path, target: Path, limits: Limits) -> list[str]:
    """What runs this program for the process that calls. `-P`: what lies where it is started must not hide ours."""
    here = [sys.executable, "-P", "-m", __name__]
    return [*here, str(upload), str(target), json.dumps(limits), str(os.getpid())]


def environment(parents: Mapping[str, str]) -> dict[str, str]:
    """What the program needs of its parent's environment, and no key or password."""
    kept = {name: parents[name] for name in ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH") if name in parents}
    path = os.pathsep.join(filter(None, sys.path))
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Limits(*json.loads(sys.argv[3])), int(sys.argv[4]))
