"""Drops whole channels of convolutions and hidden units, with all that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from app.contract.pruning import ChannelPruning, share_of
from worker.engine.pruning.mask import Mask
from worker.engine.pruning.ranking import lowest


class _Layer(NamedTuple):
    """A layer of units. A unit owns one row of each tensor of `owned`, the kernel first; `reader` has columns for it,
    one after another, several where it reads the pixels of a flattened channel."""

    kind: str
    owned: tuple[str, ...]
    reader: str

    @property
    def kernel(self) -> str:
        return self.owned[0]


def _convolution(index: int, reader: str) -> _Layer:
    parts = ("0.weight", "0.bias", "1.weight", "1.bias")
    return _Layer("conv", tuple(f"layer{index}.{part}" for part in parts), reader)


_LAYERS = (
    _convolution(1, "layer2.0.weight"),
    _convolution(2, "layer3.0.weight"),
    _convolution(3, "fc1.weight"),
    _Layer("linear", ("fc1.weight", "fc1.bias"), "fc2.weight"),
)


class _Units(NamedTuple):
    """The units of a layer: their scores [N], and whether anything of their own is kept [N]."""

    scores: Tensor
    alive: Tensor

    def lowest(self, count: int) -> Tensor:
        return lowest(self.scores, self.alive, count)


def prune(params: ChannelPruning, tensors: Mapping[str, Tensor], mask: Mask, sparsity: float | None = None) -> Mask:
    """Drops the units of lowest score in each layer; dead ones, of which nothing is kept, rank lowest and count.

    Scores are of the network as it comes in: that one layer loses units changes no norm in the next at the same time.
    `sparsity`, when given, takes the place of the amount of `params` unless it is more.
    """
    layers = [layer for layer in _LAYERS if layer.kind in params.layers]
    units = [_units(layer, params.criterion, tensors, mask) for layer in layers]
    for layer, members, width in zip(layers, units, _widths(params, layers, units, sparsity), strict=True):
        mask = mask.without(_entries(layer, members.lowest(len(members.alive) - width), mask))
    return mask


def _units(layer: _Layer, criterion: str, tensors: Mapping[str, Tensor], mask: Mask) -> _Units:
    owned = [mask[name].reshape(len(mask[name]), -1).any(1) for name in layer.owned]
    return _Units(_scores(layer, criterion, tensors), torch.stack(owned).any(0))


def _scores(layer: _Layer, criterion: str, tensors: Mapping[str, Tensor]) -> Tensor:
    if criterion == "batchnorm-scale" and layer.kind == "conv":
        return tensors[layer.owned[2]].abs()
    rows = tensors[layer.kernel].flatten(1).double()
    norms: Tensor = torch.linalg.vector_norm(rows, ord=1 if criterion == "l1" else 2, dim=1)
    return norms


def _widths(
    params: ChannelPruning, layers: Sequence[_Layer], units: Sequence[_Units], sparsity: float | None
) -> list[int]:
    """How many units of each layer stay."""
    full = [len(members.alive) for members in units]
    if params.keep is not None:
        asked = dict(zip(_LAYERS, (*params.keep.channels, params.keep.hidden), strict=True))
        step = [n - share_of(n, sparsity) if sparsity is not None else 0 for n in full]
        widths = [max(asked[layer], low) for layer, low in zip(layers, step, strict=True)]
    else:
        share = _share(params, sparsity)
        widths = [n - share_of(n, share) for n in full]
        if params.scope == "global":
            convolutions = [members for layer, members in zip(layers, units, strict=True) if layer.kind == "conv"]
            widths[: len(convolutions)] = _ranked_together(convolutions, share)
    return [min(n, _rounded_up(width, params.multiple)) for n, width in zip(full, widths, strict=True)]


def _share(params: ChannelPruning, sparsity: float | None) -> float:
    final = params.sparsity or 0.0
    return final if sparsity is None else min(sparsity, final)


def _ranked_together(units: Sequence[_Units], share: float) -> list[int]:
    """The layers' widths when the lowest units of all go; the best living unit of each layer is not up for it."""
    if not units:
        return []
    scores, alive = torch.cat([members.scores for members in units]), torch.cat([members.alive for members in units])
    candidates = torch.cat([members.lowest(len(members.alive) - 1) for members in units])
    count = min(share_of(len(alive), share), int(candidates.sum()))
    stays = torch.ones_like(alive)
    stays[candidates] = ~lowest(scores[candidates], alive[candidates], count)
    return [int(part.sum()) for part in torch.split(stays, [len(members.alive) for members in units])]


def _rounded_up(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


def _entries(layer: _Layer, gone: Tensor, mask: Mask) -> dict[str, Tensor]:
    """Marks what these units own, and what reads them."""
    marked = {name: _along(gone, 0, mask[name]) for name in layer.owned}
    columns = gone.repeat_interleave(mask[layer.reader].shape[1] // len(gone))
    return marked | {layer.reader: _along(columns, 1, mask[layer.reader])}


def _along(gone: Tensor, dimension: int, of: Tensor) -> Tensor:
    """`gone` [N] along one dimension, the same everywhere else, in the shape of `of`."""
    shape = [1] * of.dim()
    shape[dimension] = -1
    return gone.view(shape).expand_as(of)
