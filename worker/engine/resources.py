"""Whether a run fits: a rough sum of what it needs, held against what is free, before it starts.

A training that is too large would otherwise be ended by the kernel, with the worker and without a word.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from app.contract.network import KERNELS, MNIST_SHAPE, POOLED, DataShape
from app.contract.spec import ModelSpec
from worker.engine import evaluate
from worker.engine.convolve import shares
from worker.engine.errors import DiskFull, OutOfMemory
from worker.engine.plan import Course, Stage

FLOAT = 4
COPIES = 20
"""Of all parameters: weights, gradients, the optimizer's two moments, and every form of the network that is published;
16.7 were measured while LAMP scores were ranked, 19.5 while files were made."""

OVERHEAD = 256 << 20
"""Code, kernels' scratch memory and the allocator's slack: 0.2 GB was measured with the smallest network."""

CHECKPOINTS = 3
"""That lie on disk at most at one time; each holds weights, two moments, and what the plan keeps."""

PUBLISHED = 7
"""The model twice, the dense one, the compact one, two ONNX models, and the packed non-zeros with their places."""

IMPORT_COPIES = 6
"""Of an uploaded file in memory, while the two forms in which it is published are made; also the most that converting
one may take."""

IMPORT_OVERHEAD = 512 << 20

IMPORT_PUBLISHED = 2
"""The model, twice."""

DISK_RESERVE = 32 << 20

_CGROUP = Path("/sys/fs/cgroup")


def refuse_what_does_not_fit(
    model: ModelSpec,
    stages: Sequence[Stage],
    device: torch.device,
    out: Path,
    shape: DataShape = MNIST_SHAPE,
    copied: int = 0,
    teachers: Sequence[ModelSpec] = (),
) -> None:
    """`shape` is that of the data set, `copied` are bytes that are copied out of it. Raises OutOfMemory or DiskFull,
    with what is needed and what is free."""
    or_teacher = ", a smaller teacher" if teachers else ""
    hint = f"take a smaller batch_size{or_teacher} or smaller widths, or submit again when less is running there"
    needed = memory_needed(model, stages, teachers, shape, captured=device.type == "cuda")
    _refuse_memory(needed + copied, device, hint)
    states = PUBLISHED + (CHECKPOINTS * (3 + _kept(stages)) if any(isinstance(each, Course) for each in stages) else 0)
    _refuse_disk(states * FLOAT * model.parameters(shape.ends), out)


def refuse_import_that_does_not_fit(size: int, out: Path) -> None:
    """Of an uploaded file of `size` bytes. Raises OutOfMemory or DiskFull, with what is needed and what is free."""
    hint = "upload it again when less is running there"
    _refuse_memory(IMPORT_OVERHEAD + IMPORT_COPIES * size, torch.device("cpu"), hint)
    _refuse_disk(IMPORT_PUBLISHED * size, out)


def refuse_dataset_that_does_not_fit(path: Path, device: torch.device) -> None:
    """Of an uploaded data set, as it is kept: as it is read and once more, and for a GPU as floats on the way there.
    Raises OutOfMemory."""
    hint = "take a smaller data set, or submit again when less is running there"
    times = 2 if device.type == "cpu" else 2 + FLOAT
    _refuse_memory(OVERHEAD + times * path.stat().st_size, torch.device("cpu"), hint)


def _refuse_memory(needed: int, device: torch.device, hint: str) -> None:
    if needed > (free := memory_free(device)):
        place = "GPU" if device.type == "cuda" else "worker"
        raise OutOfMemory(
            f"the job needs about {_gigabytes(needed)} of memory and the {place} has {_gigabytes(free)} free: {hint}"
        )


def _refuse_disk(needed: int, out: Path) -> None:
    needed, free = DISK_RESERVE + needed, shutil.disk_usage(out).free
    if needed > free:
        raise DiskFull(
            f"the job needs about {_gigabytes(needed)} of disk and the artifact folder has {_gigabytes(free)} free: "
            "free space there, then retry"
        )


def _kept(stages: Sequence[Stage]) -> int:
    """Whole networks that the plan keeps beside the one that it works on: the dense, the early, the best."""
    courses = [each for each in stages if isinstance(each, Course)]
    return (
        any(not isinstance(each, Course) or each.gradual is not None for each in stages)
        + any(each.keep_epoch is not None for each in courses)
        + any(each.settings.select == "best" for each in courses)
    )


def memory_needed(
    model: ModelSpec,
    stages: Sequence[Stage],
    teachers: Sequence[ModelSpec] = (),
    shape: DataShape = MNIST_SHAPE,
    *,
    captured: bool = False,
) -> int:
    """Bytes, roughly. In training, every activation of a batch is kept for the backward pass, one layer's gradients
    beside; in evaluation, with which every run ends, one layer's input and output. A teacher is its weights, and looks
    at a batch before anything is kept of it. A step that is captured, on a GPU, has memory of its own, beside that of
    the steps ahead of it, and each image's share in the gradient by a layer's weights."""
    batch_size = max((each.settings.batch_size for each in stages if isinstance(each, Course)), default=0)
    activations, largest = _activations(model, shape)
    of_image = activations + largest + model.hidden
    training = batch_size * (2 * (of_image + _shares(model, shape)) if captured else of_image)
    copies = COPIES + 2 * _kept(stages)  # in memory, and on the way to a checkpoint
    looking = [batch_size * _activations(each, shape)[1] for each in teachers]
    weights = copies * model.parameters(shape.ends) + sum(each.parameters(shape.ends) for each in teachers)
    return OVERHEAD + FLOAT * (weights + max(training, evaluate.BATCH * largest, *looking))


def memory_beside(model: ModelSpec, stages: Sequence[Stage], device: torch.device, shape: DataShape) -> int:
    """Bytes, roughly, that a run takes beside others that are trained with it."""
    return memory_needed(model, stages, shape=shape, captured=device.type == "cuda") - OVERHEAD


def most_together(beside: int, device: torch.device) -> int:
    """How many runs that take so much fit on the device at once; at least one, which is refused elsewhere."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what PyTorch keeps of an earlier training is free as well
    return max(1, (memory_free(device) - OVERHEAD) // beside)


def _activations(model: ModelSpec, shape: DataShape) -> tuple[int, int]:
    """Numbers that an image becomes in all layers of convolution together, and in and out of the largest one."""
    height, width, activations, largest = shape.height, shape.width, 0, 0
    for channels, pooled in zip(model.channels, POOLED, strict=True):
        plane = channels * height * width
        height, width = (height // 2, width // 2) if pooled else (height, width)
        layer = 3 * plane + channels * height * width  # convolution, normalization, rectifier, and what goes on
        activations, largest = activations + layer, max(largest, 2 * plane)
    return activations, largest


def _shares(model: ModelSpec, shape: DataShape) -> int:
    """Of the layer with most of them."""
    widths = (shape.channels, *model.channels)
    return max(shares(*each) for each in zip(widths, model.channels, KERNELS, strict=False))


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
