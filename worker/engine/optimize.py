"""Optimizers and learning-rate schedules, out of a spec."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from app.contract.training import Adam, AdamW, FineTuningSpec, Sgd


def optimizer(
    settings: FineTuningSpec, parameters: Iterable[Tensor], rate: Tensor | None = None
) -> torch.optim.Optimizer:
    """Fused: one pass over all parameters. Its learning rate is set step by step, see `learning_rate`; or it is `rate`,
    on a GPU, which is read there when the step is taken."""
    wanted, on_device = settings.optimizer, rate is not None
    lr = settings.learning_rate if rate is None else rate
    if isinstance(wanted, Adam):
        return torch.optim.Adam(parameters, lr=lr, fused=True, capturable=on_device)
    if isinstance(wanted, AdamW):
        decay = wanted.weight_decay
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True, capturable=on_device)
    assert isinstance(wanted, Sgd)
    return torch.optim.SGD(parameters, lr=lr, momentum=wanted.momentum, nesterov=wanted.nesterov, fused=True)


def learning_rate(settings: FineTuningSpec, step: int, steps_an_epoch: int) -> float:
    """Of step 0, 1, 2 …: up to the spec's linearly in the warm-up's steps, then constant or down by half a cosine.

    The cosine would reach 0 one step after the last.
    """
    peak, warm = settings.learning_rate, settings.warmup_epochs * steps_an_epoch
    if step < warm:
        return peak * (step + 1) / warm
    if settings.learning_rate_schedule == "constant":
        return peak
    total = settings.epochs * steps_an_epoch
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
