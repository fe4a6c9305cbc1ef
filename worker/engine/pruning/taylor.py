"""Scores by what the loss changes, to first order, when an entry goes (Molchanov et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from worker.engine.pruning.gradients import BatchGradients


def scores(weights: Mapping[str, Tensor], batches: Iterable[BatchGradients]) -> dict[str, Tensor]:
    """Mean over the batches of (w·g)², in double precision. Raises ValueError when there are no batches."""
    sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    count = 0
    for batch in batches:
        count += 1
        for name, weight in weights.items():
            sums[name] += (weight.double() * batch.gradients[name]).square()
    if not count:
        raise ValueError("taylor scores need the gradients of at least one batch")
    return {name: total / count for name, total in sums.items()}
