"""A GPU that the processor emulates: our own kernels' text, compiled as C++, runs there thread by thread, launched by
the same Python code. PyTorch's part alone is replaced.

It finds out more than a GPU does: what is read or written beyond tensors, arrays and shared memory; barriers that not
all threads reach; what is read and nobody wrote, as it is no number; and, where threads and blocks are run in both
orders, what depends on these. It cannot say how fast a kernel is, how many registers it needs, or how a GPU's compiler
rounds.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count, pairwise, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

from worker.engine import kernels


class NotCompiled(Exception):
    """With what the compiler says."""


class NotLaunched(Exception):
    """A GPU would not start it, or PyTorch would give it something else than it takes."""


class Faulty(Exception):
    """It does what no kernel may."""


COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None) if sys.platform == "linux" else None
NO_COMPILER = "there is no C++ compiler here, or no Linux: kernels for GPUs are not run on the processor"
_FOLDER = Path(__file__).parent
_FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    f"-I{_FOLDER}",
    "-nostdinc++",  # C's headers are enough, and sooner read
    "-U_FORTIFY_SOURCE",  # it forbids to jump from stack to stack
    "-fno-strict-aliasing",  # floats are read as float4
    "-ffp-contract=off",
)

MOST_THREADS = 1024
MOST_SHARED_BYTES = 48 * 1024
"""Of a block. Some GPUs give more, but not without being asked."""
MOST_BLOCKS = (2**31 - 1, 65_535, 65_535)
"""In each direction."""

_FAR = 1024 * 1024
"""Bytes ahead of a tensor and behind it: whoever misses one is not to hit another."""


@dataclass
class Gpu:
    """Has as many processors as it says, and begins with the first or with the last of threads and blocks."""

    multi_processor_count: int = 132
    descending: bool = False

    def compile(self, text: str, name: str) -> Kernel:
        return Kernel(_built(text, name), self)


@contextmanager
def in_place_of_cuda() -> Iterator[Gpu]:
    """What PyTorch would compile for a GPU is compiled for the one that is returned; its memory is the processor's, and
    holds no numbers until they are written."""
    gpu, strictness = Gpu(), torch.get_deterministic_debug_mode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_compile_kernel", gpu.compile)
        patch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
        patch.setattr(kernels._thread, "has_context", True, raising=False)
        kernels._compiled.cache_clear()
        torch.set_deterministic_debug_mode("error")  # which fills what is empty
        try:
            yield gpu
        finally:
            torch.set_deterministic_debug_mode(strictness)
            kernels._compiled.cache_clear()


@dataclass(frozen=True)
class Kernel:
    """Called as PyTorch's are."""

    _library: ctypes.CDLL
    _gpu: Gpu

    def __call__(
        self, grid: tuple[int, int, int], block: tuple[int, int, int], args: Sequence[object], shared_mem: int = 0
    ) -> None:
        self._check_sizes(grid, block, shared_mem)
        self._check_arguments(args)
        tensors = [_Apart(each) for each in args if isinstance(each, Tensor)]
        addresses = iter(tensors)
        values = [next(addresses).address if isinstance(each, Tensor) else _number(each) for each in args]
        fault = self._library.emulated_launch(
            (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values)),
            (ctypes.c_void_p * (2 * len(tensors) + 1))(*(end for tensor in tensors for end in tensor.ends)),
            (ctypes.c_int * 3)(*grid),
            (ctypes.c_int * 3)(*block),
            shared_mem,
            self._gpu.descending,
        )
        if fault:
            raise Faulty(fault.decode())
        for tensor in tensors:
            tensor.give_back()

    def _check_sizes(self, grid: Sequence[int], block: Sequence[int], shared_bytes: int) -> None:
        threads, shared_bytes = block[0] * block[1], shared_bytes + self._library.emulated_static_bytes()
        if not all(1 <= blocks <= most for blocks, most in zip(grid, MOST_BLOCKS, strict=True)):
            raise NotLaunched(f"a grid of {grid} blocks")
        if block[2] != 1 or not 1 <= threads <= self._library.emulated_most_threads():
            raise NotLaunched(f"a block of {block} threads, of {self._library.emulated_most_threads()} at most")
        if shared_bytes > MOST_SHARED_BYTES:
            raise NotLaunched(f"{shared_bytes} bytes of shared memory, of {MOST_SHARED_BYTES} at most")

    def _check_arguments(self, given: Sequence[object]) -> None:
        kinds = [_kind(each) for each in given]
        wanted = [kind.decode() for kind in takewhile(bool, map(self._library.emulated_kind, count()))]
        if kinds != wanted:
            raise NotLaunched(f"{kinds} for {wanted}")
        places = [(each.data_ptr(), each.data_ptr() + each.nbytes) for each in given if isinstance(each, Tensor)]
        if any(begin < end for (_, end), (begin, _) in pairwise(sorted(places))):
            raise NotLaunched("two tensors that share some memory, of which each would have a copy")


class _Apart:
    """A copy of a tensor's memory, far from any other's."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._bytes = tensor, tensor.numel() * tensor.element_size()
        self._room = torch.empty(_FAR + self._bytes + _FAR, dtype=torch.uint8)
        begin = self._room.data_ptr() + _FAR
        self.address, self.ends = ctypes.c_void_p(begin), (begin, begin + self._bytes)
        ctypes.memmove(begin, tensor.data_ptr(), self._bytes)

    def give_back(self) -> None:
        ctypes.memmove(self._tensor.data_ptr(), self.address, self._bytes)


def _kind(argument: object) -> str:
    """What a kernel gets for it, as `emulated.h` calls that."""
    if isinstance(argument, Tensor):
        # PyTorch gives no more of it than where it begins.
        return str(argument.dtype) if argument.is_cpu and argument.is_contiguous() else "torn tensor"
    if isinstance(argument, int):
        return "int" if -(2**31) <= argument < 2**31 else "long"
    return "double" if isinstance(argument, float) else type(argument).__name__


def _number(argument: object) -> ctypes.c_int | ctypes.c_double:
    if isinstance(argument, int):
        return ctypes.c_int(argument)
    assert isinstance(argument, float)
    return ctypes.c_double(argument)


@cache
def _built(text: str, name: str) -> ctypes.CDLL:
    """Once for a process: nothing but time tells it from a new one."""
    with TemporaryDirectory() as folder:
        source, compiled, runner, library = (Path(folder) / each for each in ("a.cpp", "a.o", "runner.o", "a.so"))
        source.write_text(_as_cpp(text, name))
        runner.write_bytes(_runner())
        _compile(*_FLAGS, "-fsanitize=thread,bounds,alignment", "-c", str(source), "-o", str(compiled))
        # Not with the sanitizers' own libraries: `emulated.cpp` has what they call.
        _compile("-shared", "-Wl,-Bsymbolic", str(compiled), str(runner), "-o", str(library))
        built = ctypes.CDLL(str(library))
    built.emulated_kind.restype = built.emulated_launch.restype = ctypes.c_char_p
    return built


@cache
def _runner() -> bytes:
    with TemporaryDirectory() as folder:
        compiled = Path(folder) / "runner.o"
        _compile(*_FLAGS, "-O2", "-c", str(_FOLDER / "emulated.cpp"), "-o", str(compiled))
        return compiled.read_bytes()


def _as_cpp(text: str, name: str) -> str:
    bound = re.search(rf"__launch_bounds__\((.*)\) {name}\(", text)
    text = text.replace('extern "C" __global__', "__global__")
    text = re.sub(r"extern __shared__ (\w+) (\w+)\[\];", r"\1 *\2 = (\1 *)emulated::room();", text)
    return f'#include "emulated.h"\n#line 1\n{text}\nEMULATED({name}, ({bound[1] if bound else MOST_THREADS}))\n'


def _compile(*arguments: str) -> None:
    assert COMPILER is not None
    done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise NotCompiled(done.stderr)
