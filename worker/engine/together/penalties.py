"""The penalties of `worker.engine.regularize` for stacked parameters: each member has a strength of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from app.contract.pruning import place_of
from app.contract.training import ElasticNet, GroupLasso, L1Penalty, L2Penalty, ProximalL1, Regularization

Stacked = Mapping[str, Tensor]
"""All trainable parameters by their state-dict keys, each [members, …]."""

_P = TypeVar("_P", L1Penalty, L2Penalty, ElasticNet, GroupLasso, ProximalL1)


class Penalties:
    """Those of all members, which are of one kind, or none."""

    def __init__(self, members: Sequence[Regularization | None], device: torch.device) -> None:
        self._kind = type(members[0])
        self._zeros = torch.zeros(len(members), device=device)
        given = [each for each in members if each is not None]
        self.strengths = torch.tensor([each.strength for each in given], dtype=torch.float64, device=device)
        ratios = [each.l1_ratio if isinstance(each, ElasticNet) else 0.0 for each in given]
        self._ratios = torch.tensor(ratios, device=device)
        self._strengths = self.strengths.float()
        scales = [each.batchnorm_scale_strength for each in given if isinstance(each, ProximalL1)]
        own = [each.strength if scale is None else scale for each, scale in zip(given, scales, strict=False)]
        self._scale_strengths = torch.tensor(own, dtype=torch.float64, device=device)

    @property
    def shrinks(self) -> bool:
        return self._kind is ProximalL1

    def terms(self, parameters: Stacked) -> Tensor:
        """[members]: what to add to the loss of each, differentiable."""
        if self._kind is L1Penalty:
            return self._strengths * _absolute(parameters)
        if self._kind is L2Penalty:
            return self._strengths / 2 * _squared(parameters)
        if self._kind is ElasticNet:
            squared = (1 - self._ratios) / 2 * _squared(parameters)
            return self._strengths * (self._ratios * _absolute(parameters) + squared)
        if self._kind is GroupLasso:
            return self._strengths * torch.stack([_group_norms(rows) for rows in _groups(parameters)]).sum(dim=0)
        return self._zeros

    @torch.no_grad()
    def shrink(self, parameters: Stacked, rates: Tensor) -> None:
        """The proximal step, in place; `rates` [members] are the learning rates, in double precision."""
        common, scales = (rates * self.strengths).float(), (rates * self._scale_strengths).float()
        for name, parameter in parameters.items():
            place = place_of(name)
            is_scale = place.layer_kind == "batchnorm" and place.kind == "weight"
            most = _beside(scales if is_scale else common, parameter)
            shrunk = parameter - parameter.sign() * most
            parameter.copy_(torch.where(parameter.abs() > most, shrunk, 0))


def _beside(numbers: Tensor, parameter: Tensor) -> Tensor:
    """[members] as [members, 1, …]."""
    return numbers.view(-1, *[1] * (parameter.ndim - 1))


def _absolute(parameters: Stacked) -> Tensor:
    norms = [torch.linalg.vector_norm(parameter.flatten(1), ord=1, dim=1) for parameter in parameters.values()]
    return torch.stack(norms).sum(dim=0)


def _squared(parameters: Stacked) -> Tensor:
    return torch.stack([parameter.square().flatten(1).sum(dim=1) for parameter in parameters.values()]).sum(dim=0)


def _groups(parameters: Stacked) -> Iterator[Tensor]:
    """For each layer [members, groups, entries]; see `worker.engine.regularize`."""
    for layer in ("layer1", "layer2", "layer3"):
        vectors = [parameters[f"{layer}.{name}"] for name in ("0.bias", "1.weight", "1.bias")]
        yield torch.cat([parameters[f"{layer}.0.weight"].flatten(2), *(each.unsqueeze(2) for each in vectors)], dim=2)
    yield torch.cat([parameters["fc1.weight"], parameters["fc1.bias"].unsqueeze(2)], dim=2)


def _group_norms(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=2)
    return math.sqrt(rows.shape[2]) * norms.sum(dim=1)
