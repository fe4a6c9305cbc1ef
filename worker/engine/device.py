"""Which device a run uses, and what to call it in the receipt."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from app.contract.training import Precision
from worker.engine.errors import DeviceUnavailable

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux tells of the processor; other systems have no such file."""


def choose(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable("this worker has no CUDA device: ask for device 'auto' or 'cpu', or add a GPU worker")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def is_broken() -> bool:
    """Whether this process can no longer compute on its GPU: after a fault, of the hardware or of a kernel, CUDA
    answers every call with that error until the process ends."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def place(network: nn.Module, device: torch.device) -> None:
    """Bring the network to the device, in the memory format in which it trains fastest there.

    On a CPU that is channels last: an epoch on MNIST takes two thirds of the time, in BatchNorm and pooling above all.
    """
    network.to(device)
    if device.type == "cpu":
        network.to(memory_format=torch.channels_last)


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Within, convolutions and linear layers compute in that type; weights and BatchNorm's sums stay float32."""
    if precision == "float32":
        return nullcontext()
    # Each weight is used once, so that there is nothing to remember; and a captured step must not.
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def has_bf16(device: torch.device) -> bool:
    """Whether its hardware multiplies them; without, PyTorch would give the same results more slowly than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & _flags())


def refuse_what_it_lacks(precision: Precision, device: torch.device) -> None:
    """Raises DeviceUnavailable."""
    if precision == "bf16" and not has_bf16(device):
        raise DeviceUnavailable(
            f"{name_of(device)} has no bf16 arithmetic, which would only be slower there: ask for precision 'float32', "
            "or add a worker whose GPU, or whose processor by AVX-512 or AMX, has it"
        )


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def _processor() -> str:
    """`platform.processor()` is empty on most Linux systems."""
    return _told_of_processor("model name") or platform.processor() or platform.machine()


def _flags() -> set[str]:
    """Instruction sets; the line is called so on x86 and on Arm."""
    return {*_told_of_processor("flags").split(), *_told_of_processor("Features").split()}


def _told_of_processor(what: str) -> str:
    lines = CPUINFO.read_text(errors="replace").splitlines() if CPUINFO.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(what)), "")
