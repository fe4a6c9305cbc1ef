"""Magnitude pruning by a threshold that follows from each tensor's spread (Han et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from app.contract.pruning import StdPruning, eligible
from worker.engine.pruning.mask import Mask


def prune(params: StdPruning, tensors: Mapping[str, Tensor], mask: Mask) -> Mask:
    """Drops |w| ≤ multiplier·σ of each eligible tensor, σ the deviation of the entries that the mask keeps."""
    dropped = dict[str, Tensor]()
    for name in mask:
        if eligible(params, name):
            limit = params.multiplier * deviation(tensors[name][mask[name]])
            dropped[name] = tensors[name].double().abs() <= limit
    return mask.without(dropped)


def deviation(entries: Tensor) -> float:
    """Population standard deviation in double precision, of any number of entries: 0 of one or none."""
    if entries.numel() < 2:
        return 0.0
    return float(entries.detach().double().std(correction=0))
