"""Scores that say nothing: the control."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker.engine.seeding import generator


def scores(tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """One number, uniform in [0, 1), for each entry, masked or not: the same entry gets the same one in every round."""
    drawn = generator(seed, "random-pruning")
    # Doubles: among half a million floats there would be ties, and those go by position.
    return {
        name: torch.rand(tensor.shape, generator=drawn, dtype=torch.float64).to(tensor.device)
        for name, tensor in tensors.items()
    }
