"""Scores by magnitude."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def scores(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|w|"""
    return {name: weight.abs() for name, weight in weights.items()}
