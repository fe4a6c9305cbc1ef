"""Pruning strategies, one a file. Each is pure: what it is to do, the tensors and their mask in, a new mask out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from app.contract.pruning import (
    ByGradient,
    ChannelPruning,
    FoldedMagnitudePruning,
    MagnitudePruning,
    NmPruning,
    OneShot,
    Pruning,
    RandomPruning,
    Scored,
    SnipPruning,
    StdPruning,
    TaylorPruning,
    ThresholdPruning,
    eligible,
    misfit,
)
from worker.engine.errors import PruningImpossible
from worker.engine.pruning import amount, chance, channels, folded, magnitude, nm, snip, std, taylor, threshold
from worker.engine.pruning.gradients import BatchGradients
from worker.engine.pruning.mask import Mask

__all__ = ["BatchGradients", "Mask", "needs_gradients", "prune", "thresholds"]


@torch.no_grad()
def prune(
    pruning: Pruning,
    state: Mapping[str, Tensor],
    mask: Mask,
    *,
    sparsity: float | None = None,
    gradients: Iterable[BatchGradients] = (),
) -> Mask:
    """The mask after this pruning; it never keeps what `mask` does not.

    `state` holds the parameters, which are what `mask` names, and BatchNorm's running statistics; both lie on one
    device. `sparsity` is a step on the way of a schedule: this share is pruned, or the final amount if that is less.
    Threshold, std and n:m prune the same in every round. `gradients` is read when `needs_gradients` alone.
    Raises PruningImpossible when the network has not the shapes for it.
    """
    if found := misfit(pruning, {name: tuple(keep.shape) for name, keep in mask.items()}):
        raise PruningImpossible(found.reason)
    state = mask.apply(state)
    match pruning:
        case ThresholdPruning():
            return threshold.prune(pruning, state, mask)
        case StdPruning():
            return std.prune(pruning, state, mask)
        case NmPruning():
            return nm.prune(pruning, state, mask)
        case ChannelPruning():
            return channels.prune(pruning, state, mask, sparsity)
        case _:
            return amount.prune(pruning, _scores(pruning, state, mask, gradients), mask, sparsity)


def _scores(
    pruning: Scored, state: Mapping[str, Tensor], mask: Mask, gradients: Iterable[BatchGradients]
) -> dict[str, Tensor]:
    """A score for each entry of the eligible tensors, in the mask's order."""
    weights = {name: state[name] for name in mask if eligible(pruning, name)}
    match pruning:
        case MagnitudePruning():
            return magnitude.scores(weights)
        case FoldedMagnitudePruning():
            return folded.scores(weights, state)
        case TaylorPruning():
            return taylor.scores(weights, gradients)
        case SnipPruning():
            return snip.scores(weights, gradients)
        case RandomPruning():
            # Biases that training begins at zero are none that will be zero afterwards.
            schedule = pruning.schedule
            begins = isinstance(schedule, OneShot) and schedule.when == "before-training"
            drawn = chance.scores({name: state[name] for name in mask}, pruning.seed, zeros_first=not begins)
            return {name: drawn[name] for name in weights}


def thresholds(pruning: Pruning, tensors: Mapping[str, Tensor], mask: Mask) -> dict[str, float | None]:
    """The half-width of the interval that `prune` sets to zero in each eligible tensor; None where it has none."""
    names = [name for name in mask if eligible(pruning, name)]
    match pruning:
        case ThresholdPruning():
            return dict.fromkeys(names, pruning.threshold)
        case StdPruning():
            return {name: pruning.multiplier * std.deviation(tensors[name][mask[name]]) for name in names}
        case _:
            return dict.fromkeys(names)


def needs_gradients(pruning: Pruning) -> bool:
    """Whether `prune` is to be given gradients of the loss."""
    return isinstance(pruning, ByGradient)
