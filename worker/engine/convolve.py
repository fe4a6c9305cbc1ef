"""A 'same' convolution on a GPU whose gradient by the weights is summed up by a kernel of our own.

cuDNN has few kernels for 16 or 32 channels that add up in the same order each time: for the third layer of the default
network that gradient took a quarter of a step, and for the first one it was right to three digits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from worker.engine import kernels

_OUTS, _APART, _SHARES = 16, 20, 16
"""As in `convolve.cu`."""
_INS = 16
"""Input channels of a block, at most."""
_THREADS = 512
_ROOM = 36 * 1024
"""Bytes of shared memory that a block takes at most: some blocks are to fit on a processor."""


def convolved(images: Tensor, weight: Tensor) -> Tensor:
    """[N, IN, H, W] by [OUT, IN, K, K], K odd, padded with zeros to [N, OUT, H, W]; float32."""
    out: Tensor = _Convolved.apply(images, weight)
    return out


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        """In the precision that is asked for around it; backward too."""
        out = functional.conv2d(images, weight, padding=weight.shape[-1] // 2)
        ctx.computed_in = out.dtype
        ctx.save_for_backward(images, weight)
        return out.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        images, weight = ctx.saved_tensors
        by_images = None
        if ctx.needs_input_grad[0]:
            turned = weight.flip(2, 3).transpose(0, 1).contiguous()
            each = (tensor.to(ctx.computed_in) for tensor in (gradient, turned))
            by_images = functional.conv2d(*each, padding=weight.shape[-1] // 2).float()
        return by_images, _by_weight(images.contiguous(), gradient.contiguous(), weight.shape[-1])


class _Tiles(NamedTuple):
    """How the work is cut into blocks."""

    rows: int
    ins: int
    slices: int
    bytes: int
    """Of a block's shared memory, laid out as `convolve.cu` has it."""

    @classmethod
    def of(cls, width_in: int, height: int, width: int, kernel: int) -> _Tiles:
        """In as few blocks as have room."""
        ins = min(width_in, _INS)
        for tiles in range(1, height + 1):
            found = cls._cut(-(-height // tiles), ins, width, kernel)
            if found.bytes <= _ROOM:
                break
        return found

    @classmethod
    def _cut(cls, rows: int, ins: int, width: int, kernel: int) -> _Tiles:
        lanes = _OUTS // 4 * ins * kernel
        slices = max(1, min(rows, _THREADS // lanes))
        plane = ((rows + kernel - 1) * ((width + kernel - 1) | 1) + 29) // 32 * 32 + 2
        read, summed = rows * width * _APART + ins * plane, slices * lanes * 4 * kernel
        return cls(rows, ins, slices, 4 * max(read, summed))


def _by_weight(images: Tensor, gradient: Tensor, kernel: int) -> Tensor:
    count, width_in, height, width = images.shape
    width_out = gradient.shape[1]
    tiles = _Tiles.of(width_in, height, width, kernel)
    constants = {
        "HEIGHT": height,
        "WIDTH": width,
        "KERNEL": kernel,
        "ROWS": tiles.rows,
        "INS": tiles.ins,
        "SLICES": tiles.slices,
        "OUTS": _OUTS,
        "SHARES": _SHARES,
    }
    blocks = count * -(-height // tiles.rows)
    parts = images.new_empty(blocks, width_out, width_in, kernel, kernel)
    grid = (blocks, -(-width_out // _OUTS), -(-width_in // tiles.ins))
    threads = (_OUTS // 4 * tiles.ins * kernel * tiles.slices, 1)
    arguments = (images, gradient, parts, width_in, width_out)
    kernels.launch("convolve.cu", "weigh", grid, threads, arguments, shared_bytes=tiles.bytes, **constants)
    out = images.new_empty(width_out, width_in, kernel, kernel)
    grid = (-(-out.numel() // 32), 1, 1)
    kernels.launch("convolve.cu", "add_shares", grid, (32, _SHARES), (parts, out, blocks, out.numel()), **constants)
    return out
