"""Scores by connection sensitivity (Lee et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from worker.engine.pruning.gradients import BatchGradients


def scores(weights: Mapping[str, Tensor], batches: Iterable[BatchGradients]) -> dict[str, Tensor]:
    """|w·g| in double precision, g the gradient of the mean loss of all images: batches count by their size.

    Raises ValueError when there are no batches.
    """
    sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    images = 0
    for batch in batches:
        images += batch.size
        for name, total in sums.items():
            total += batch.size * batch.gradients[name].double()
    if not images:
        raise ValueError("snip scores need the gradients of at least one batch")
    return {name: (weight.double() * sums[name] / images).abs() for name, weight in weights.items()}
