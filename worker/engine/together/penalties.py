"""The penalties of `worker.engine.regularize` for stacked parameters: each member has a strength of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from app.contract.pruning import place_of
from app.contract.training import ElasticNet, GroupLasso, L1Penalty, L2Penalty, ProximalL1, Regularization

Stacked = Mapping[str, Tensor]
"""All trainable parameters by their state-dict keys, each [members, …]."""


class Penalties:
    """Those of all members, which are of one kind, or none."""

    def __init__(self, members: Sequence[Regularization | None], device: torch.device) -> None:
        def doubles(numbers: Iterable[float]) -> Tensor:
            return torch.tensor(list(numbers), dtype=torch.float64, device=device)

        given = [each for each in members if each is not None]
        self._kind = type(members[0])
        self._zeros = torch.zeros(len(members), device=device)
        self._strengths = doubles(each.strength for each in given)
        self._ratios = doubles(each.l1_ratio for each in given if isinstance(each, ElasticNet))
        self._of_scales = doubles(_of_scales(each) for each in given if isinstance(each, ProximalL1))

    @property
    def shrinks(self) -> bool:
        return self._kind is ProximalL1

    def terms(self, parameters: Stacked) -> Tensor:
        """[members]: what to add to the loss of each, differentiable."""
        like = next(iter(parameters.values())).dtype
        strengths, ratios = self._strengths.to(like), self._ratios.to(like)
        if self._kind is L1Penalty:
            return strengths * _absolute(parameters)
        if self._kind is L2Penalty:
            return strengths / 2 * _squared(parameters)
        if self._kind is ElasticNet:
            return strengths * (ratios * _absolute(parameters) + (1 - ratios) / 2 * _squared(parameters))
        if self._kind is GroupLasso:
            return strengths * torch.stack([_group_norms(rows) for rows in _groups(parameters)]).sum(dim=0)
        return self._zeros

    @property
    def by_hand(self) -> bool:
        """Whether `add_gradients` is cheaper than autograd, and comes to the same bits."""
        return self._kind is L1Penalty

    @torch.no_grad()
    def add_gradients(self, gradients: Sequence[Tensor], parameters: Stacked) -> None:
        """Of the terms, in place; both in the same order."""
        for gradient, parameter in zip(gradients, parameters.values(), strict=True):
            gradient.addcmul_(parameter.sign(), _beside(self._strengths.to(parameter.dtype), parameter))

    @torch.no_grad()
    def shrink(self, parameters: Stacked, rates: Tensor) -> None:
        """The proximal step, in place; `rates` [members] are the learning rates, in double precision."""
        common, scales = rates * self._strengths, rates * self._of_scales
        for name, parameter in parameters.items():
            place = place_of(name)
            is_scale = place.layer_kind == "batchnorm" and place.kind == "weight"
            most = _beside(scales if is_scale else common, parameter).to(parameter.dtype)
            shrunk = parameter - parameter.sign() * most
            parameter.copy_(torch.where(parameter.abs() > most, shrunk, 0))


def _of_scales(penalty: ProximalL1) -> float:
    """The strength for BatchNorm's scales."""
    own = penalty.batchnorm_scale_strength
    return penalty.strength if own is None else own


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
