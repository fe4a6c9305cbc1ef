"""Batch normalization, max pooling and ReLU of a layer on a GPU, in two passes forward and two backward.

The libraries' kernels give each channel one of a GPU's hundred processors, and there are 16 or 32 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worker.engine import kernels

_THREADS, _PARTS = 128, 50


class Affine(NamedTuple):
    """Of each channel, [C]: the bias of the convolution before it, and BatchNorm's scale and shift."""

    bias: Tensor
    scale: Tensor
    shift: Tensor


class Running(NamedTuple):
    """The running statistics of some channels, and how they move."""

    mean: Tensor
    variance: Tensor
    momentum: float
    epsilon: float


def applies_to(images: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether `normalized` is for what a layer makes of them: on a GPU, in training, with running statistics by a
    momentum."""
    return norm.training and norm.momentum is not None and kernels.usable(images)


def normalized(features: Tensor, affine: Affine, running: Running, *, pooled: bool) -> Tensor:
    """What batch normalization, then 2×2 max pooling if `pooled`, and ReLU make of features [N, C, H, W] and the bias;
    float32. The running statistics move on. Each channel's numbers are those that it has alone, to the bit."""
    out: Tensor = _Normalized.apply(features.contiguous(), *affine, running, pooled)
    return out


class _Normalized(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, running: Running, pooled: bool
    ) -> Tensor:
        images, channels, height, width = features.shape
        side = 2 if pooled else 1
        size = (images, channels, height // side, width // side)
        out = features.new_empty(size)
        places = features.new_empty(size if pooled else (0,), dtype=torch.uint8)
        kept, parts = features.new_empty(channels, 2), _parts(features)
        _launch("sums", features, (features, parts), pooled=pooled)
        read = (features, parts, bias, scale, shift)
        written = (running.mean, running.variance, out, places, kept)
        _launch("forward", features, (*read, *written), running.momentum, running.epsilon, pooled=pooled)
        ctx.pooled = pooled
        ctx.save_for_backward(features, places, kept, scale, shift)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, *rest = ctx.saved_tensors
        read = (gradient.contiguous(), features, *rest, _parts(features))
        _launch("backward_sums", features, read, pooled=ctx.pooled)
        by_features = torch.empty_like(features)
        by_parameters = [features.new_empty(features.shape[1]) for _ in range(3)]
        _launch("backward", features, (*read, by_features, *by_parameters), pooled=ctx.pooled)
        return (by_features, *by_parameters, None, None)


def _parts(features: Tensor) -> Tensor:
    return features.new_empty(features.shape[1], _PARTS, 2, dtype=torch.float64)


def _launch(name: str, features: Tensor, tensors: Sequence[Tensor], *numbers: object, pooled: bool) -> None:
    images, channels, height, width = features.shape
    kernels.launch(
        ("normalize.cu",),
        name,
        (channels, _PARTS, 1),
        (_THREADS, 1),
        (*tensors, images, channels, *numbers),
        THREADS=_THREADS,
        PARTS=_PARTS,
        HEIGHT=height,
        WIDTH=width,
        POOLED=int(pooled),
    )
