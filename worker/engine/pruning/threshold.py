"""Magnitude pruning by a fixed threshold."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from app.contract.spec import ThresholdPruning
from worker.engine.model import place_of
from worker.engine.pruning.mask import Mask


def eligible(params: ThresholdPruning, name: str) -> bool:
    """Whether this pruning is to touch the tensor at all."""
    place = place_of(name)
    return place.layer_kind in params.layers and place.kind in params.parameters


def prune(params: ThresholdPruning, tensors: Mapping[str, Tensor], mask: Mask) -> Mask:
    """Drops the entries of eligible tensors within the closed interval −θ ≤ w ≤ θ. What was dropped stays dropped."""
    return Mask(
        {
            name: keep & ~_within(tensors[name], params.threshold) if eligible(params, name) else keep
            for name, keep in mask.items()
        }
    )


def _within(tensor: Tensor, threshold: float) -> Tensor:
    # θ becomes the nearest value of the tensor's type, or 0.01 would not hold a weight stored as 0.01. NaN is outside.
    return tensor.abs() <= torch.tensor(threshold, dtype=tensor.dtype, device=tensor.device)
