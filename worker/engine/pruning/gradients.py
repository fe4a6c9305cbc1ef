"""Gradients of the loss, for scores that ask what an entry means to it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.contract.pruning import ByGradient, Pruning


class BatchGradients(NamedTuple):
    """The gradient of the mean loss of `size` images by each parameter, on the CPU, where scores are computed."""

    size: int
    gradients: Mapping[str, Tensor]


def gradients(
    network: nn.Module, images: Tensor, labels: Tensor, count: int, batch: int = 100
) -> Iterator[BatchGradients]:
    """Of the mean cross-entropy, batch by batch; BatchNorm normalizes by each batch, since new weights have no running
    statistics.

    Takes `count` images [N, …], or all when there are fewer, evenly spaced, so that all classes come up where images
    are sorted by them, in as few batches of at most `batch` as will do. All of it happens in a copy of the network as
    it is now: whenever the reader stops, parameters, `.grad`, running statistics and mode are what they were.
    """
    count = min(count, len(labels))
    chosen = torch.arange(count, device=labels.device) * len(labels) // count
    # Equal parts: Taylor scores count each batch alike, and the noise of a few images is large when it is squared.
    parts = torch.tensor_split(chosen, -(-count // batch))
    return _of_batches(copy.deepcopy(network).train().requires_grad_(True), images, labels, parts)


def gradients_for(
    pruning: Pruning, network: nn.Module, images: Tensor, labels: Tensor, check: Callable[[], None]
) -> Iterator[BatchGradients]:
    """Those that this pruning scores by; none for most. `check` is called ahead of each batch."""
    if isinstance(pruning, ByGradient):
        for batch in gradients(network, images, labels, pruning.images):
            check()
            yield batch


def _of_batches(
    network: nn.Module, images: Tensor, labels: Tensor, batches: tuple[Tensor, ...]
) -> Iterator[BatchGradients]:
    for chosen in batches:
        yield _of_batch(network, images[chosen], labels[chosen])


def _of_batch(network: nn.Module, images: Tensor, labels: Tensor) -> BatchGradients:
    parameters = dict(network.named_parameters())
    with torch.enable_grad():
        loss = functional.cross_entropy(network(images), labels)
        found = torch.autograd.grad(loss, [*parameters.values()])
    return BatchGradients(len(labels), {name: each.cpu() for name, each in zip(parameters, found, strict=True)})
