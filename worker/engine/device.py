"""Which device a run uses, and what to call it in the receipt."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from worker.engine.errors import DeviceUnavailable


def choose(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable("this worker has no CUDA device: ask for device 'auto' or 'cpu', or add a GPU worker")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def place(network: nn.Module, device: torch.device) -> None:
    """Bring the network to the device, in the memory format in which it trains fastest there.

    On a CPU that is channels last: an epoch on MNIST takes two thirds of the time, in BatchNorm and pooling above all.
    """
    network.to(device)
    if device.type == "cpu":
        network.to(memory_format=torch.channels_last)


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def _processor() -> str:
    """`platform.processor()` is empty on most Linux systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
