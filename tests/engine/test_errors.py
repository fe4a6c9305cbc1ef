"""What the engine's border makes of exhausted memory and disks."""

from __future__ import annotations

import errno

import pytest
import torch

from worker.engine.errors import DiskFull, OutOfMemory, translated


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "GPU"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "worker"),
        (MemoryError(), "worker"),
    ],
    ids=["GPU", "CPU", "Python"],
)
def test_memory_that_is_used_up_is_told_with_its_place(error: Exception, place: str) -> None:
    with pytest.raises(OutOfMemory, match=place), translated():
        raise error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told(code: int) -> None:
    with pytest.raises(DiskFull, match="free space"), translated():
        raise OSError(code, "full")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.EIO, "broken")], ids=str)
def test_everything_else_comes_out_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translated():
        raise error
    assert caught.value is error
