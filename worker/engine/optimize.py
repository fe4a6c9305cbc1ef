"""Optimizers and learning-rate schedules, out of a spec."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from app.contract.training import Adam, AdamW, FineTuningSpec, Sgd


def _plain(of: type[torch.optim.Optimizer]) -> Any:
    """The same optimizer, whose methods do not first look for PyTorch's compiler: to have it imported, with all that it
    would compile by, took a worker 150 MB and a third of its start, for nothing."""
    methods: dict[str, Any] = {
        name: inspect.unwrap(getattr(of, name))
        for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    }
    return type(of.__name__, (of,), methods | {"step": torch.no_grad()(methods["step"])})


_Adam, _AdamW, _Sgd = _plain(torch.optim.Adam), _plain(torch.optim.AdamW), _plain(torch.optim.SGD)


def optimizer(
    settings: FineTuningSpec, parameters: Iterable[Tensor], rate: Tensor | None = None
) -> torch.optim.Optimizer:
    """Fused: one pass over all parameters. Its learning rate is set step by step, see `learning_rate`; or it is `rate`,
    on a GPU, which is read there when the step is taken."""
    wanted, on_device = settings.optimizer, rate is not None
    lr = settings.learning_rate if rate is None else rate
    made: torch.optim.Optimizer
    if isinstance(wanted, Adam):
        made = _Adam(parameters, lr=lr, fused=True, capturable=on_device)
    elif isinstance(wanted, AdamW):
        made = _AdamW(parameters, lr=lr, weight_decay=wanted.weight_decay, fused=True, capturable=on_device)
    else:
        assert isinstance(wanted, Sgd)
        made = _Sgd(parameters, lr=lr, momentum=wanted.momentum, nesterov=wanted.nesterov, fused=True)
    return made


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
