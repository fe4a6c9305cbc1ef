"""What the process keeps of memory that it has freed."""

from __future__ import annotations

import ctypes
from functools import cache

import torch

KEPT_BLOCK = 64 << 20
"""Blocks of up to so many bytes are kept: all activations of a batch of a thousand images at the default widths."""

KEPT_TOTAL = 1 << 30

# Of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed() -> None:
    """From now on, what is freed stays with the process for the next time.

    A training step allocates and frees what the one before it did. By itself, glibc returns blocks of that size to the
    system at once and asks for them again, to be filled with zeros page by page: a sixth of a step and more.
    Only speed depends on it; on other systems nothing happens.
    """
    library = _glibc()
    if library is not None:
        # Older ones take no more than 32 MB.
        library.mallopt(_MMAP_THRESHOLD, KEPT_BLOCK) or library.mallopt(_MMAP_THRESHOLD, KEPT_BLOCK // 2)
        library.mallopt(_TRIM_THRESHOLD, KEPT_TOTAL)


def give_back() -> None:
    """The system, and other processes on a GPU, have what is free: for when nothing more is to come for a while."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is that one."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None
