"""Scores that say nothing: the control."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker.engine.seeding import generator


def scores(tensors: Mapping[str, Tensor], seed: int, *, zeros_first: bool = True) -> dict[str, Tensor]:
    """One number, uniform in [0, 1), for each entry, masked or not: the same entry gets the same one in every round. It
    is less by 1 where the entry is zero, if `zeros_first`: as by every other score, what is zero already ranks lowest.
    """
    drawn = generator(seed, "random-pruning")
    # Doubles: among half a million floats there would be ties, and those go by position.
    found = {
        name: torch.rand(tensor.shape, generator=drawn, dtype=torch.float64).to(tensor.device)
        for name, tensor in tensors.items()
    }
    return {name: found[name] - (tensor == 0).double() for name, tensor in tensors.items()} if zeros_first else found
