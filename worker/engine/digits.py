"""scikit-learn's handwritten digits, enlarged and split by arithmetic on integers: the same bytes on every machine."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_Bytes = NDArray[np.uint8]

_FILE = Path(str(metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")))
"""The file alone: with the library and SciPy, which nothing else needs, a process takes 80 MB and a second more."""


def load_digits(train: int, test: int) -> tuple[_Bytes, _Bytes, _Bytes, _Bytes]:
    """Training images [train, 28, 28], their labels, test images and their labels."""
    rows = np.loadtxt(_FILE, delimiter=",", dtype=np.int64)
    images, labels = enlarge(rows[:, :-1].reshape(-1, 8, 8)), rows[:, -1].astype(np.uint8)
    tested = stratified_choice(labels, test)
    if len(labels) - len(tested) != train:
        raise AssertionError(f"scikit-learn's digits have changed: {len(labels)} images")
    return images[~_mark(tested, labels)], labels[~_mark(tested, labels)], images[tested], labels[tested]


def enlarge(images: NDArray[np.int64]) -> _Bytes:
    """8×8 images of 0 … 16 to 28×28 of 0 … 255, bilinear with pixel centres aligned, rounded half up."""
    weights = _bilinear_weights(8, 28)
    blended = weights @ images @ weights.T
    most = 16 * 14 * 14
    scaled: _Bytes = ((2 * 255 * blended + most) // (2 * most)).astype(np.uint8)
    return scaled


def _bilinear_weights(small: int, large: int) -> NDArray[np.int64]:
    """[large, small] weights in fourteenths: pixel i of 28 lies at (i + ½)·8/28 − ½ = (4i − 5)/14 of the 8."""
    weights = np.zeros((large, small), dtype=np.int64)
    for pixel in range(large):
        left, right_share = divmod(4 * pixel - 5, 14)
        weights[pixel, max(left, 0)] += 14 - right_share
        weights[pixel, min(left + 1, small - 1)] += right_share
    return weights


def stratified_choice(labels: _Bytes, wanted: int) -> NDArray[np.int64]:
    """Indices of `wanted` images, every class in proportion and evenly spread over the writers, who come in order."""
    members = [np.flatnonzero(labels == label) for label in range(10)]
    quotas = _largest_remainders([len(indices) for indices in members], wanted)
    chosen = [
        indices[(2 * np.arange(quota) + 1) * len(indices) // (2 * quota)]
        for indices, quota in zip(members, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _largest_remainders(sizes: list[int], wanted: int) -> list[int]:
    quotas = [size * wanted // sum(sizes) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(sizes[i] * wanted % sum(sizes)), i))
    for index in by_remainder[: wanted - sum(quotas)]:
        quotas[index] += 1
    return quotas


def _mark(indices: NDArray[np.int64], like: _Bytes) -> NDArray[np.bool_]:
    marked = np.zeros(len(like), dtype=np.bool_)
    marked[indices] = True
    return marked
