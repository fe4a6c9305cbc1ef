"""Penalty terms that training adds to the loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from app.contract.spec import Regularization


def penalty(regularization: Regularization | None, parameters: Iterable[nn.Parameter]) -> Tensor:
    """strength · Σ|p| over all of `parameters`, differentiable; its gradient at p = 0 is 0. No penalty: a plain 0."""
    if regularization is None:
        return torch.zeros(())
    # The 1-norm of a tensor is one pass forward and one backward, without a copy of |p|.
    norms = [torch.linalg.vector_norm(parameter, ord=1) for parameter in parameters]
    return regularization.strength * torch.stack(norms).sum()
