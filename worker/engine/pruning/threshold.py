"""Magnitude pruning by a fixed threshold."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from app.contract.pruning import ThresholdPruning, eligible
from worker.engine.pruning.mask import Mask


def prune(params: ThresholdPruning, tensors: Mapping[str, Tensor], mask: Mask) -> Mask:
    """Drops the entries of eligible tensors within the closed interval −θ ≤ w ≤ θ. What was dropped stays dropped."""
    return mask.without({name: _within(tensors[name], params.threshold) for name in mask if eligible(params, name)})


def _within(tensor: Tensor, threshold: float) -> Tensor:
    # θ becomes the nearest value of the tensor's type, or 0.01 would not hold a weight stored as 0.01. NaN is outside.
    return tensor.abs() <= torch.tensor(threshold, dtype=tensor.dtype, device=tensor.device)
