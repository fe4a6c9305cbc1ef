"""Scores by magnitude, as convolutions act once the BatchNorm behind them is folded into them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from app.contract.pruning import place_of
from worker.engine.model import EPSILON


def scores(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|w·γ/√(σ² + ε)| for kernels and biases of convolutions, |w| for all others; γ and σ² are in `state`."""
    return {name: _score(name, weight, state) for name, weight in weights.items()}


def _score(name: str, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    place = place_of(name)
    if place.layer_kind != "conv":
        return weight.abs()
    norm = f"{place.layer.removesuffix('.0')}.1"
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + EPSILON).sqrt()
    return (weight * scale.view(-1, *[1] * (weight.dim() - 1))).abs()
