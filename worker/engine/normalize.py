"""Batch normalization, max pooling and ReLU of a layer on a GPU, in two passes forward and two backward.

The libraries' kernels give each channel one of a GPU's hundred processors, and there are 16 or 32 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine import kernels

_THREADS, _PARTS = 128, 50


def applies_to(images: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether `normalized` is for what a layer makes of them: on a GPU, in training, with running statistics by a
    momentum."""
    return (
        images.is_cuda
        and images.dtype == torch.float32
        and norm.training
        and norm.momentum is not None
        and torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
        and kernels.usable()
    )


def normalized(features: Tensor, bias: Tensor, norm: nn.BatchNorm2d, *, pooled: bool) -> Tensor:
    """What `norm`, then 2×2 max pooling if `pooled`, and ReLU make of features + bias: [N, C, H, W], the bias of the
    convolution [C]. In float32, whatever the convolution computed in. The running statistics move on."""
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    out: Tensor = _Normalized.apply(features.float().contiguous(), bias, norm.weight, norm.bias, norm, pooled)
    return out


class _Normalized(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, norm: nn.BatchNorm2d, pooled: bool
    ) -> Tensor:
        images, channels, height, width = features.shape
        side = 2 if pooled else 1
        size = (images, channels, height // side, width // side)
        out = features.new_empty(size)
        places = features.new_empty(size if pooled else (0,), dtype=torch.uint8)
        kept, parts = features.new_empty(channels, 2), _parts(features)
        _launch("sums", features, (features, parts), pooled=pooled)
        of_channels = (bias, scale, shift, norm.running_mean, norm.running_var)
        read = (features, parts, *of_channels)
        _launch("forward", features, (*read, out, places, kept), norm.momentum, norm.eps, pooled=pooled)
        ctx.pooled = pooled
        ctx.save_for_backward(features, out, places, kept, scale)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, out, places, kept, scale = ctx.saved_tensors
        read = (gradient.contiguous(), out, features, places, kept, _parts(features))
        _launch("backward_sums", features, read, pooled=ctx.pooled)
        by_features = torch.empty_like(features)
        by_parameters = [torch.empty_like(scale) for _ in range(3)]
        _launch("backward", features, (*read, scale, by_features, *by_parameters), pooled=ctx.pooled)
        return (by_features, *by_parameters, None, None)


def _parts(features: Tensor) -> Tensor:
    return features.new_empty(features.shape[1], _PARTS, 2, dtype=torch.float64)


def _launch(name: str, features: Tensor, tensors: Sequence[Tensor | None], *numbers: object, pooled: bool) -> None:
    images, channels, height, width = features.shape
    kernels.launch(
        "normalize.cu",
        name,
        (_PARTS, channels, 1),
        (_THREADS, 1),
        (*tensors, images, channels, *numbers),
        THREADS=_THREADS,
        PARTS=_PARTS,
        HEIGHT=height,
        WIDTH=width,
        POOLED=int(pooled),
    )
