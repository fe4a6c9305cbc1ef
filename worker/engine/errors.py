"""What can go wrong in the engine. Each error knows the code that clients see; its message says what to do.

EngineError
├── DatasetUnavailable    files missing, broken, or not to be fetched
├── InvalidDataset        an uploaded data set that is none, or goes beyond its bounds
├── InvalidCheckpoint     an input checkpoint that is not the network that it should be
├── PruningImpossible     the network has not the shapes that the pruning needs
├── InvalidInput          an input document missing or broken, or of a job that cannot be compared
├── NoMemberSucceeded     a sweep that has nothing to put side by side
├── NonFiniteLoss         training or evaluation left the range of finite numbers
├── DeviceUnavailable     the device asked for is not there
├── OutOfMemory           translated from PyTorch's and Python's own errors, see `translated`
└── DiskFull              likewise
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from app.contract.failure import FailureCode


class EngineError(Exception):
    """Base of all that the engine raises knowingly; anything else that comes out of it is a bug or the observer's."""

    code: ClassVar[FailureCode] = FailureCode.INTERNAL_ERROR


class DatasetUnavailable(EngineError):
    code = FailureCode.DATASET_UNAVAILABLE


class InvalidDataset(EngineError):
    code = FailureCode.INVALID_DATASET


class InvalidCheckpoint(EngineError):
    code = FailureCode.INVALID_CHECKPOINT


class PruningImpossible(EngineError):
    code = FailureCode.PRUNING_IMPOSSIBLE


class InvalidInput(EngineError):
    code = FailureCode.ARTIFACT_CORRUPT


class NoMemberSucceeded(EngineError):
    code = FailureCode.NO_MEMBER_SUCCEEDED


class NonFiniteLoss(EngineError):
    code = FailureCode.NON_FINITE_LOSS

    @classmethod
    def at_step(cls, step: int, what: str = "loss") -> NonFiniteLoss:
        """`what` a training met at its `step`-th step."""
        return cls(
            f"{what} is not a finite number at training step {step}: take a smaller learning_rate, "
            "a weaker penalty, or another initial checkpoint or teacher"
        )


class DeviceUnavailable(EngineError):
    code = FailureCode.DEVICE_UNAVAILABLE


class OutOfMemory(EngineError):
    code = FailureCode.OUT_OF_MEMORY


class DiskFull(EngineError):
    code = FailureCode.DISK_FULL


_OUT_OF_MEMORY = "the job needs more memory than the {place} has: take a smaller batch_size or smaller widths"
# PyTorch's CPU allocator raises a bare RuntimeError; these words are all that tells it from others.
_CPU_ALLOCATOR_WORDS = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")


@contextmanager
def translated() -> Iterator[None]:
    """The engine's border: exhausted memory and disks come out as errors of the engine, all else untouched."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if place := without_memory(error):
            raise OutOfMemory(_OUT_OF_MEMORY.format(place=place)) from error
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("no space left for the artifacts: free space on the worker, then submit again") from error
        raise


def without_memory(error: Exception) -> str | None:
    """Whose memory was exhausted, the worker's or the GPU's; None when it is another error."""
    # Not imported here: a process that only reads data sets does without PyTorch, which takes seconds and 200 MB.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return "GPU"
    by_words = isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_ALLOCATOR_WORDS)
    return "worker" if by_words or isinstance(error, MemoryError) else None
