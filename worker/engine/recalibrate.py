"""BatchNorm's running statistics, estimated again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

BATCH = 500
IMAGES = 10_000
"""Enough: every channel's mean and variance are over hundreds of values an image."""


@torch.no_grad()
def recalibrate(network: nn.Module, images: Tensor, check: Callable[[], None]) -> None:
    """Set every BatchNorm's running mean and variance to the plain mean of its batch statistics on images
    [N, C, H, W], at most 10,000 of them, evenly spaced. After pruning, the old ones are of another network.

    `check` is called ahead of each batch.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's word for the plain mean of all batches
    network.train()
    try:
        chosen = images[:: -(-len(images) // IMAGES)]
        # Equal parts: a small last batch would count as much as a whole one.
        for batch in torch.tensor_split(chosen, -(-len(chosen) // BATCH)):
            check()
            network(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
