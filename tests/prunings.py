"""Prunings by their documents, and states of small networks to prune."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from hypothesis import settings
from pydantic import TypeAdapter
from torch import Tensor

from app.contract.network import parameter_shapes
from app.contract.pruning import Pruning
from worker.engine.pruning import BatchGradients, Mask

PRUNING: TypeAdapter[Pruning] = TypeAdapter(Pruning)
UNHURRIED = settings(deadline=None)
"""Where an example takes a millisecond: on a busy machine it may take a hundred."""

SMALL = ((4, 4, 8), 6)


def pruning(method: str, **fields: Any) -> Any:
    """As a spec would have it."""
    return PRUNING.validate_json(json.dumps({"method": method, **fields}))


def state_of(channels: tuple[int, int, int] = SMALL[0], hidden: int = SMALL[1], seed: int = 0) -> dict[str, Tensor]:
    """Random parameters and running statistics."""
    source = torch.Generator().manual_seed(seed)
    shapes = parameter_shapes(channels, hidden)
    state = {name: torch.randn(shape, generator=source) for name, shape in shapes.items()}
    for index, width in enumerate(channels, start=1):
        state[f"layer{index}.1.running_mean"] = torch.randn(width, generator=source)
        state[f"layer{index}.1.running_var"] = torch.rand(width, generator=source) + 0.1
    return state


def full(state: dict[str, Tensor]) -> Mask:
    return Mask.full({name: tensor for name, tensor in state.items() if "running" not in name})


def random_mask(state: dict[str, Tensor], kept: float, seed: int = 0) -> Mask:
    source = torch.Generator().manual_seed(seed)
    return Mask({name: torch.rand(keep.shape, generator=source) < kept for name, keep in full(state).items()})


def slopes(tensors: dict[str, Tensor], seed: int = 0) -> list[BatchGradients]:
    """Gradients of two batches, made up."""
    source = torch.Generator().manual_seed(seed)
    return [
        BatchGradients(size, {name: torch.randn(tensor.shape, generator=source) for name, tensor in tensors.items()})
        for size in (100, 50)
    ]


def masked(mask: Mask) -> int:
    return sum(keep.numel() for keep in mask.values()) - sum(mask.kept.values())


def entries(tensors: dict[str, Tensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def shrunk(before: Mask, after: Mask) -> bool:
    """Whether nothing that was dropped came back."""
    return set(before) == set(after) and not any(bool((after[name] & ~before[name]).any()) for name in before)
