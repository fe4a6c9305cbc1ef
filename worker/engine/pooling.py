"""2×2 max pooling whose backward pass adds nothing up, for GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 2


class MaxPool(nn.Module):
    """As nn.MaxPool2d(2): images [N, C, H, W] → [N, C, ⌊H/2⌋, ⌊W/2⌋].

    On a GPU, PyTorch's own backward pass adds to memory in any order, though no two windows overlap here, and is
    refused where arithmetic is to be deterministic. Numbers and gradients are the same.
    """

    def forward(self, images: Tensor) -> Tensor:
        if images.is_cuda and torch.is_grad_enabled():
            pooled: Tensor = Apart.apply(images)[0]
            return pooled
        return functional.max_pool2d(images, SIDE)


class Apart(torch.autograd.Function):
    """Each place of a window asks whether it was the largest: an elementwise pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        pooled, places = functional.max_pool2d_with_indices(images, [SIDE, SIDE])
        return pooled, places

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        (images,), (_, places) = inputs, output
        ctx.size = images.shape[-2:]
        ctx.mark_non_differentiable(places)
        ctx.save_for_backward(places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        """`places` has for each window where in the image, row by row, its largest value is."""
        (places,) = ctx.saved_tensors
        height, width = ctx.size
        inner = (height // SIDE * SIDE, width // SIDE * SIDE)
        every = torch.arange(height * width, device=places.device).view(height, width)[: inner[0], : inner[1]]
        windows = every.reshape(inner[0] // SIDE, SIDE, inner[1] // SIDE, SIDE)
        largest = places[..., :, None, :, None] == windows
        spread = torch.where(largest, gradient[..., :, None, :, None], 0.0).flatten(-4, -3).flatten(-2, -1)
        rest = (0, width - inner[1], 0, height - inner[0])
        return functional.pad(spread, rest) if any(rest) else spread
