"""Penalties: terms that training adds to the loss, and the proximal step after the optimizer's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.contract.pruning import place_of
from app.contract.training import ElasticNet, GroupLasso, L1Penalty, L2Penalty, ProximalL1, Regularization

Parameters = Mapping[str, nn.Parameter]
"""All trainable parameters by their state-dict keys."""


def penalty(regularization: Regularization | None, parameters: Parameters) -> Tensor:
    """The term to add to the loss, differentiable; its gradient at p = 0 is 0. Without one, a plain 0."""
    match regularization:
        case L1Penalty(strength=strength):
            return strength * _absolute(parameters)
        case L2Penalty(strength=strength):
            return strength / 2 * _squared(parameters)
        case ElasticNet(strength=strength, l1_ratio=ratio):
            return strength * (ratio * _absolute(parameters) + (1 - ratio) / 2 * _squared(parameters))
        case GroupLasso(strength=strength):
            return strength * torch.stack([_group_norm(rows) for rows in _groups(parameters)]).sum()
        case _:
            return torch.zeros((), device=next(iter(parameters.values())).device)


@torch.no_grad()
def add_gradient(regularization: L1Penalty, parameters: Parameters) -> None:
    """Of its penalty, to each parameter's `.grad`: to the bit what autograd adds, in half of its passes over memory."""
    signs = torch._foreach_sign(list(parameters.values()))
    gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    torch._foreach_add_(gradients, signs, alpha=regularization.strength)


def _absolute(parameters: Parameters) -> Tensor:
    # The 1-norm of a tensor is one pass forward and one backward, without a copy of |p|.
    return torch.stack([torch.linalg.vector_norm(parameter, ord=1) for parameter in parameters.values()]).sum()


def _squared(parameters: Parameters) -> Tensor:
    squares = torch.stack([parameter.square().sum() for parameter in parameters.values()])
    return squares.sum()


def _groups(parameters: Parameters) -> Iterator[Tensor]:
    """For each layer a matrix whose rows are its groups: [channels, kernel + 3] or [hidden, inputs + 1].

    The output layer has no groups: its rows are classes.
    """
    for layer in ("layer1", "layer2", "layer3"):
        vectors = [parameters[f"{layer}.{name}"] for name in ("0.bias", "1.weight", "1.bias")]
        yield torch.cat([parameters[f"{layer}.0.weight"].flatten(1), *(each.unsqueeze(1) for each in vectors)], dim=1)
    yield torch.cat([parameters["fc1.weight"], parameters["fc1.bias"].unsqueeze(1)], dim=1)


def _group_norm(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return math.sqrt(rows.shape[1]) * norms.sum()


@torch.no_grad()
def shrink(regularization: Regularization | None, parameters: Parameters, learning_rate: float | Tensor) -> None:
    """The proximal step p ← sign(p)·max(|p| − t, 0), t = learning_rate·strength, in place; nothing for other penalties.

    In the parameters' own type: in a narrower one small steps would vanish. A learning rate on a GPU is read there.
    """
    if not isinstance(regularization, ProximalL1):
        return
    for strength, shrunk in _by_strength(regularization, parameters).items():
        if isinstance(learning_rate, Tensor):
            _shrink_all(shrunk, learning_rate * strength)
            continue
        for parameter in shrunk:
            parameter.copy_(functional.softshrink(parameter, learning_rate * strength))


def _by_strength(regularization: ProximalL1, parameters: Parameters) -> dict[float, list[Tensor]]:
    found: dict[float, list[Tensor]] = {}
    own = regularization.batchnorm_scale_strength
    for name, parameter in parameters.items():
        place = place_of(name)
        is_scale = place.layer_kind == "batchnorm" and place.kind == "weight"
        strength = own if is_scale and own is not None else regularization.strength
        found.setdefault(strength, []).append(parameter)
    return found


def _shrink_all(tensors: list[Tensor], by: Tensor) -> None:
    """All of them in a few kernels."""
    sizes = torch._foreach_abs(tensors)
    torch._foreach_add_(sizes, by, alpha=-1)
    torch._foreach_clamp_min_(sizes, 0)
    signs = torch._foreach_sign(tensors)
    torch._foreach_mul_(sizes, signs)
    torch._foreach_copy_(tensors, sizes)
