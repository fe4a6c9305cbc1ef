"""What a client sent is read by a program of its own: with limits, in a sandbox, without the worker's environment, and
gone with its parent. It prints one JSON object, which is empty when all went well, and else has `code` and `message`.

`run` is the parent's side, `carry_out` the program's.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from worker.engine import sandbox
from worker.engine.errors import DiskFull, EngineError, InvalidCheckpoint, InvalidDataset, OutOfMemory, translated

UPLOAD = "the uploaded file"

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.1
_RAISED: dict[str, type[EngineError]] = {
    each.code: each for each in (InvalidCheckpoint, InvalidDataset, DiskFull, OutOfMemory)
}
# What reading the file may bring down: the limit on the processor, and the reader's own end.
_BY_ITS_CONTENT = {signal.SIGXCPU, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


class Limits(NamedTuple):
    """Time of the processor and memory are beyond what the process has had when its libraries are there."""

    cpu_seconds: int
    wall_seconds: float
    memory_bytes: int
    file_bytes: int


def run(
    module: str, arguments: list[str], limits: Limits, check: Callable[[], None], invalid: type[EngineError]
) -> None:
    """Run a program in another process, which ends with this call, however that ends. The first two arguments are the
    file that it reads, and the one that it writes. Raises what the program found, `invalid` when it went beyond its
    limits, OutOfMemory, or what `check` raises, which is asked all the while."""
    until = time.monotonic() + limits.wall_seconds
    # `-P`: what lies where it is started must not hide ours.
    command = [sys.executable, "-P", "-m", module, json.dumps(limits), str(os.getpid()), *arguments]
    with subprocess.Popen(  # noqa: S603
        command,
        env=environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # signals to the worker's group are for the worker to answer
    ) as child:
        try:
            said, log = _ended(child, until, check, invalid)
        finally:
            child.kill()
    _raise_what_it_said(child.returncode, said, log, invalid)


def environment(parents: Mapping[str, str], also: Sequence[str] = ()) -> dict[str, str]:
    """What the program needs of its parent's environment, and no key or password."""
    names = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", *also)
    kept = {name: parents[name] for name in names if name in parents}
    path = os.pathsep.join(filter(None, sys.path))
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _ended(
    child: subprocess.Popen[bytes], until: float, check: Callable[[], None], invalid: type[EngineError]
) -> tuple[bytes, bytes]:
    while True:
        check()
        try:
            return child.communicate(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if time.monotonic() > until:
                raise invalid(f"{UPLOAD} takes longer to read than a file of its size may") from None


def _raise_what_it_said(code: int, said: bytes, log: bytes, invalid: type[EngineError]) -> None:
    if -code in _BY_ITS_CONTENT:
        raise invalid(f"{UPLOAD} takes more to read than a file of its size may ({signal.Signals(-code).name})")
    if -code == signal.SIGKILL:  # by the kernel, since it was not by us
        raise OutOfMemory(f"{UPLOAD} could not be read in the memory that the worker has: upload it again later")
    if code != 0:
        raise RuntimeError(f"the reader ended with {code}: {log[-2000:].decode(errors='replace')}")
    told = json.loads(said)
    if told:
        raise _RAISED[told["code"]](f"{UPLOAD}: {told['message']}")


def carry_out(work: Callable[[list[str]], None], invalid: type[EngineError]) -> None:
    """Do the program's work, on the arguments that are its own."""
    limits, parent, *arguments = sys.argv[1:]
    upload, target = map(Path, arguments[:2])
    end_with(int(parent))
    _limit(Limits(*json.loads(limits)))
    sandbox.enter(read=upload, write=target.parent)
    told: dict[str, str] = {}
    try:
        with translated():
            work(arguments)
    except OutOfMemory:
        told = _of(invalid("it takes more memory than a file of its size may"))
    except EngineError as error:
        told = _of(error)
    print(json.dumps(told))  # noqa: T201 - to its parent


def _of(error: EngineError) -> dict[str, str]:
    return {"code": error.code, "message": str(error)}


def end_with(parent: int) -> None:
    """The parent can kill this process, but not when it is killed itself: from now on the kernel does. One that went
    while libraries were being imported is noticed here."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")


def _limit(limits: Limits) -> None:
    """Only now: what importing PyTorch takes is no measure of the file."""
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
