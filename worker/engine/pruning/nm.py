"""N:M sparsity: n of every m consecutive inputs stay (Mishra et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from app.contract.pruning import NmPruning
from worker.engine.pruning.mask import Mask


def prune(params: NmPruning, tensors: Mapping[str, Tensor], mask: Mask) -> Mask:
    """Drops the m − n lowest |w| of each group; m has to divide the inputs. Of equal ones the first ones go.

    What is dropped already ranks lowest, so that no group keeps more than n, and none fewer unless it had.
    """
    return mask.without({name: _dropped(tensors[name], mask[name], params.n, params.m) for name in params.tensors})


def _dropped(weight: Tensor, keep: Tensor, n: int, m: int) -> Tensor:
    """Marks [out, in, …] what goes: groups lie along dimension 1, one after another for each place of the kernel."""
    ranked = torch.where(keep, weight.abs().nan_to_num(nan=torch.inf, posinf=torch.inf), -1.0)
    inputs_last = ranked.movedim(1, -1)
    order = inputs_last.reshape(-1, m).argsort(dim=1, stable=True)
    dropped = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, : m - n], True)
    return dropped.view(inputs_last.shape).movedim(-1, 1)
