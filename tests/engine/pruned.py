"""Pruned networks of the `cnn` architecture, as wild as pruning and training can leave them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from worker.engine.model import Cnn

DENSITIES = (0.0, 0.01, 0.05, 0.2, 0.6, 1.0)
LAYERS = ("layer1", "layer2", "layer3")

State = dict[str, Tensor]


class Pruned(NamedTuple):
    channels: tuple[int, int, int]
    hidden: int
    state: State

    def network(self) -> Cnn:
        network = Cnn(self.channels, self.hidden)
        network.load_state_dict(self.state)
        return network.eval()


def images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def dense(channels: tuple[int, int, int] = (3, 2, 4), hidden: int = 5, seed: int = 0) -> Pruned:
    """Random weights, all of them non-zero, with running statistics like those of a trained network."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, tensor in Cnn(channels, hidden).state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(600)
        elif name.endswith("running_var"):
            state[name] = torch.empty_like(tensor).uniform_(0.01, 2, generator=generator)
        else:
            spread = 1 / max(1, tensor[0].numel()) ** 0.5
            state[name] = torch.empty_like(tensor).normal_(0, spread, generator=generator)
    return Pruned(channels, hidden, state)


@st.composite
def pruned(draw: st.DrawFn) -> Pruned:
    """Widths of 1 to 6; every tensor at a density of its own, then whole channels, units and features emptied."""
    widths = st.integers(1, 6)
    seed = draw(st.integers(0, 2**32))
    network = dense((draw(widths), draw(widths), draw(widths)), draw(widths), seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state.items():
        if name.endswith((".weight", ".bias")):
            tensor *= _some(tensor.shape, draw(st.sampled_from(DENSITIES)), generator)
    empty = draw(st.sampled_from((0.0, 0.3, 0.7)))
    for layer in LAYERS:
        kernels, scales = network.state[f"{layer}.0.weight"], network.state[f"{layer}.1.weight"]
        kernels[_some(kernels.shape[:1], empty, generator)] = 0
        kernels[:, _some(kernels.shape[1:2], empty, generator)] = 0
        scales[_some(scales.shape, empty, generator)] = 0
    for name in ("fc1.weight", "fc2.weight"):
        weight = network.state[name]
        weight[_some(weight.shape[:1], empty, generator)] = 0
        weight[:, _some(weight.shape[1:], empty, generator)] = 0
    return network


def _some(shape: torch.Size, share: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) < share
