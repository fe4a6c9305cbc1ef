"""Drops a given number of entries, those of the lowest scores: of the network, or the same share of each tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from app.contract.pruning import Amount, share_of
from worker.engine.pruning import lamp
from worker.engine.pruning.mask import Mask
from worker.engine.pruning.ranking import lowest


def prune(params: Amount, scores: Mapping[str, Tensor], mask: Mask, sparsity: float | None = None) -> Mask:
    """Drops exactly as many of the scored tensors' entries as asked for, or none when more are dropped already.

    What is dropped already counts among them. `sparsity`, when given, takes the place of the amount of `params` unless
    it is more. Equal scores go in the order of the mask's names, then of position.
    """
    keeps = {name: mask[name].flatten() for name in mask if name in scores}
    flat = {name: scores[name].flatten() for name in keeps}
    if not keeps:
        return mask
    if params.scope == "global":
        dropped = _of_all_together(flat, keeps, _count(params, _total(keeps), sparsity))
    else:
        counts = _counts(params, flat, keeps, sparsity)
        dropped = {name: lowest(flat[name], keep, counts[name]) for name, keep in keeps.items()}
    return mask.without({name: marked.view_as(mask[name]) for name, marked in dropped.items()})


def _counts(
    params: Amount, scores: Mapping[str, Tensor], keeps: Mapping[str, Tensor], sparsity: float | None
) -> dict[str, int]:
    """How many entries of each tensor go."""
    if params.scope == "layer":
        return {name: _count(params, keep.numel(), sparsity) for name, keep in keeps.items()}
    return lamp.counts(scores, keeps, _count(params, _total(keeps), sparsity))


def _of_all_together(scores: Mapping[str, Tensor], keeps: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    marked = lowest(torch.cat([scores[name] for name in keeps]), torch.cat([*keeps.values()]), count)
    parts = torch.split(marked, [keep.numel() for keep in keeps.values()])
    return dict(zip(keeps, parts, strict=True))


def _count(params: Amount, total: int, sparsity: float | None) -> int:
    final = params.pruned_of(total)
    return final if sparsity is None else min(share_of(total, sparsity), final)


def _total(keeps: Mapping[str, Tensor]) -> int:
    return sum(keep.numel() for keep in keeps.values())
