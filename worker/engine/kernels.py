"""Kernels of our own for a GPU: CUDA, compiled when they are first needed, by what comes with PyTorch."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TRUSTED = threading.Event()
"""Cleared in a process where they were tried and fell through."""
TRUSTED.set()

_thread = threading.local()
_FOLDER = Path(__file__).parent


def usable(images: Tensor) -> bool:
    """Whether they can compute on these, with gradients."""
    return (
        images.is_cuda
        and images.dtype == torch.float32
        and torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
        and at_hand()
    )


def at_hand() -> bool:
    """Whether this process uses them on a GPU."""
    return hasattr(torch.cuda, "_compile_kernel") and TRUSTED.is_set()  # it is not promised to stay


def launch(
    files: tuple[str, ...],
    name: str,
    grid: tuple[int, int, int],
    threads: tuple[int, int],
    arguments: Sequence[object],
    *,
    shared_bytes: int = 0,
    **constants: int,
) -> None:
    """The kernel of that name in these files beside this one, read as one, with its constants defined, on the current
    stream."""
    if not hasattr(_thread, "has_context"):
        # The driver, which launches them, wants the device's context to be the thread's. PyTorch makes it that with the
        # first thing that it does there itself; autograd's threads may come here before.
        torch.zeros(1, device="cuda")
        _thread.has_context = True
    kernel = _compiled(files, name, tuple(constants.items()))
    kernel(grid=grid, block=(*threads, 1), args=list(arguments), shared_mem=shared_bytes)


@cache
def _compiled(files: tuple[str, ...], name: str, constants: tuple[tuple[str, int], ...]) -> Any:
    defined = "".join(f"#define {constant} {value}\n" for constant, value in constants)
    text = "".join((_FOLDER / file).read_text() for file in files)
    return build(defined + _needed(text, name), name)


def _needed(text: str, name: str) -> str:
    """What a kernel needs of a text that has several: what stands ahead of them all, and itself. The others would take
    as long again to compile."""
    ahead, *each = re.split(r'^(?=extern "C")', text, flags=re.MULTILINE)
    (own,) = (kernel for kernel in each if re.search(rf"\b{name}\(", kernel.partition("{")[0]))
    return ahead + own


def build(text: str, name: str) -> Any:
    """The kernel of that name in this text, which includes no other."""
    from torch.utils import cpp_extension  # a tenth of a second that a process without a GPU need not wait for

    # PyTorch looks for CUDA's headers and ends where there are none, as in a container; ours go without.
    cpp_extension.CUDA_HOME = cpp_extension.CUDA_HOME or str(_FOLDER)
    return torch.cuda._compile_kernel(text, name)
