"""Whether a run fits: a rough sum of what it needs, held against what is free, before it starts.

A training that is too large would otherwise be ended by the kernel, with the worker and without a word.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import torch

from app.contract.network import POOLED
from app.contract.spec import ModelSpec
from worker.engine import evaluate
from worker.engine.errors import DiskFull, OutOfMemory

FLOAT = 4
COPIES = 8
"""Of all parameters: weights, gradients, Adam's two moments, and states on their way to a file."""

OVERHEAD = 256 << 20
"""Code, kernels' scratch memory and the allocator's slack: 0.2 GB was measured with the smallest network."""

STATES_ON_DISK = 10
"""Parameters' sizes that a run writes at most: two or three training checkpoints of three each, two models twice."""

DISK_RESERVE = 32 << 20

_CGROUP = Path("/sys/fs/cgroup")


def refuse_what_does_not_fit(model: ModelSpec, batch_size: int | None, device: torch.device, out: Path) -> None:
    """Of a training in such batches, or of a run without one. Raises OutOfMemory or DiskFull, with what is needed and
    what is free."""
    needed, free = memory_needed(model, batch_size), memory_free(device)
    if needed > free:
        place = "GPU" if device.type == "cuda" else "worker"
        raise OutOfMemory(
            f"the job needs about {_gigabytes(needed)} of memory and the {place} has {_gigabytes(free)} free: "
            "take a smaller batch_size or smaller widths, or submit again when less is running there"
        )
    needed, free = DISK_RESERVE + STATES_ON_DISK * FLOAT * model.parameters, shutil.disk_usage(out).free
    if needed > free:
        raise DiskFull(
            f"the job needs about {_gigabytes(needed)} of disk and the artifact folder has {_gigabytes(free)} free: "
            "free space there, then retry"
        )


def memory_needed(model: ModelSpec, batch_size: int | None) -> int:
    """Bytes, roughly. In training, every activation of a batch is kept for the backward pass, one layer's gradients
    beside; in evaluation, with which every run ends, one layer's input and output."""
    side, activations, largest = 28, 0, 0
    for channels, pooled in zip(model.channels, POOLED, strict=True):
        plane = channels * side * side
        side = side // 2 if pooled else side
        layer = 3 * plane + channels * side * side  # convolution, normalization, rectifier, and what goes on
        activations, largest = activations + layer, max(largest, 2 * plane)
    training = (batch_size or 0) * (activations + largest + model.hidden)
    return OVERHEAD + FLOAT * (COPIES * model.parameters + max(training, evaluate.BATCH * largest))


def memory_free(device: torch.device) -> int:
    """Bytes that a process may still take; in a container, of the container's share."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        told = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such files, or a limit of `max`
        return free
    # What caches files is given up when it is needed.
    return min(free, limit - used + int(told.get("inactive_file", 0)))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
