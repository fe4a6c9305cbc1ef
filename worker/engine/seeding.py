"""Randomness by name, and arithmetic that comes out the same every time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose: streams of one seed do not depend on how much another has drawn."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's default CPU generator, which initial weights are drawn from, starts at `seed`; restored afterwards."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic kernels; the previous state, and number of threads, returns afterwards.

    The same input gives the same bits (same device, versions and threads). On CUDA, cuBLAS and cuDNN are held to
    deterministic sums, without TF32; what PyTorch has no deterministic kernel for is refused by it.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or PyTorch refuses it
    strictness = torch.get_deterministic_debug_mode()
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    threads = torch.get_num_threads()
    # Not `use_deterministic_algorithms`, which tells PyTorch's compiler too, and imports it for that.
    torch.set_deterministic_debug_mode("error")
    # Nothing here reads memory before writing it, and to fill it costs a tenth of a training step.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.set_deterministic_debug_mode(strictness)
