"""Weight distributions by the nearest of evenly spaced centres."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from app.contract.report import Distribution, Histogram, TensorHistogram
from app.contract.spec import HistogramSpec

_CHUNK = 1 << 15
"""Weights counted at a time: they stay in the processor's cache from one pass to the next."""


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
    places = _Places(centres, weights.dtype)
    counts = np.zeros(bins, dtype=np.int64)
    for start in range(0, len(weights), _CHUNK):
        counts += places.counts(weights[start : start + _CHUNK])
    return Distribution(min=low, max=high, centres=tuple(centres.tolist()), counts=tuple(counts.tolist()))


class _Places:
    """Where the nearest of evenly spaced centres is, by one multiplication and one subtraction.

    Rounding could be wrong only close to the middle between two centres. So it is asked there, of the few numbers
    around each middle that the weights' type has, whether it says what a comparison of distances says. Both rise with
    the weight; where they agree on either side of each middle, they agree everywhere. If not, distances are compared.
    """

    def __init__(self, centres: NDArray[np.float64], dtype: np.dtype[Any]) -> None:
        self._centres, self._last = centres, len(centres) - 1
        width = float(centres[-1]) - float(centres[0])
        self._factor = self._last / width if width > 0 else np.inf
        self._offset = self._last + 0.5 + float(centres[0]) * self._factor
        self._agrees = bool(np.isfinite(self._factor) and np.isfinite(self._offset)) and self._asked(dtype)

    def counts(self, weights: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        """How many of the weights each centre is the nearest to."""
        if self._agrees:
            return np.bincount(self._from_above(weights), minlength=self._last + 1)[::-1]
        return np.bincount(_nearest(weights.astype(np.float64), self._centres), minlength=self._last + 1)

    def _asked(self, dtype: np.dtype[Any]) -> bool:
        middle = (self._centres[:-1] + (self._centres[1:] - self._centres[:-1]) / 2).astype(dtype)
        below, above = (np.nextafter(middle, dtype.type(towards)) for towards in (-np.inf, np.inf))
        around = np.stack([np.nextafter(below, dtype.type(-np.inf)), below, middle, above])
        around = np.concatenate([around, np.nextafter(above, dtype.type(np.inf))[None]])
        inside = around.clip(dtype.type(self._centres[0]), dtype.type(self._centres[-1]))
        told = self._last - self._from_above(inside)
        nearest = _nearest(inside.astype(np.float64).reshape(-1), self._centres).reshape(told.shape)
        lower = np.arange(self._last)
        return bool((told == nearest).all() and (told[0] <= lower).all() and (told[-1] > lower).all())

    def _from_above(self, weights: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        """How many centres lie above the nearest: rounded down, it is the lower of two that are as near."""
        places = np.multiply(weights, self._factor, dtype=np.float64)
        np.subtract(self._offset, places, out=places)
        found: NDArray[np.int64] = places.astype(np.int64)
        return found


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
