"""Weight distributions by the nearest of evenly spaced centres."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from app.contract.report import Distribution, Histogram, TensorHistogram
from app.contract.spec import HistogramSpec

_CHUNK = 1 << 20
"""Weights counted at a time, so that a huge tensor needs no copies of its size in float64."""


def histogram(
    wanted: HistogramSpec,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor] | None,
    thresholds: Mapping[str, float | None],
) -> Histogram:
    """Of the tensors asked for, in the order asked for; `after` is None when nothing was pruned."""
    return Histogram(
        bins=wanted.bins,
        tensors=tuple(
            TensorHistogram(
                name=name,
                total=before[name].numel(),
                threshold=thresholds[name],
                before=distribution(before[name], wanted.bins),
                after=None if after is None else distribution(after[name], wanted.bins),
            )
            for name in wanted.tensors
        ),
    )


def distribution(tensor: Tensor, bins: int) -> Distribution:
    """Each weight of a finite, non-empty tensor counted at its nearest centre in float64; the lower one wins a tie."""
    weights = tensor.detach().cpu().numpy().reshape(-1)
    low, high = float(weights.min()), float(weights.max())
    centres = np.linspace(low, high, bins, dtype=np.float64)
    counts = np.zeros(bins, dtype=np.int64)
    for start in range(0, len(weights), _CHUNK):
        chunk = weights[start : start + _CHUNK].astype(np.float64)
        counts += np.bincount(_nearest(chunk, centres), minlength=bins)
    return Distribution(min=low, max=high, centres=tuple(centres.tolist()), counts=tuple(counts.tolist()))


def _nearest(weights: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the first of the nearest centres, which ascend.

    Compares the same float64 distances as a loop over all centres would, but of the two neighbours alone. Searching
    from the left makes a weight that equals several centres (all of them, when min = max) find the first.
    """
    upper = np.minimum(np.searchsorted(centres, weights, side="left"), len(centres) - 1)
    lower = np.maximum(upper - 1, 0)
    nearest: NDArray[np.int64] = np.where(
        np.abs(weights - centres[lower]) <= np.abs(weights - centres[upper]), lower, upper
    )
    return nearest
