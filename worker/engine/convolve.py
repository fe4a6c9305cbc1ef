"""A 'same' convolution on a GPU by kernels of our own.

cuDNN has few kernels for 16 or 32 channels that add up in the same order each time: for the third layer of the default
network the gradient by the weights took a quarter of a step, and for the first one it was right to three digits. And a
grouped convolution, which is that of several networks at once, it does group by group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from worker.engine import kernels

_OUTS, _APART, _SHARES = 16, 20, 16
"""As in `convolve.cu`."""
_EACH = 4
"""Output channels of a thread."""
_INS = 16
"""Input channels of a block, at most."""
_THREADS = 512
_ROOM = 36 * 1024
_ROOM_OF_WEIGHTS = 36 * 1024
"""Bytes of shared memory that a block takes at most, for the convolution and the gradient by the weights: some blocks
are to fit on a processor."""


def convolved(images: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """[N, groups·IN, H, W] by [groups·OUT, IN, K, K], K odd, padded with zeros, to [N, groups·OUT, H, W]; float32. Each
    group's numbers are those that it has alone, to the bit."""
    out: Tensor = _Convolved.apply(images, weight, groups)
    return out


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, groups: int) -> Tensor:
        """With autocast around it, it computes in bf16, and the gradient by the images too."""
        images, weight = images.contiguous(), weight.contiguous()
        ctx.narrow = torch.is_autocast_enabled("cuda")
        ctx.groups = groups
        ctx.save_for_backward(images, weight)
        return _applied(images, weight, groups, narrow=ctx.narrow)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:
        images, weight = ctx.saved_tensors
        gradient, by_images = gradients[0].contiguous(), None
        if ctx.needs_input_grad[0]:
            # A convolution too, by the kernels turned around.
            of_groups = weight.view(ctx.groups, -1, *weight.shape[1:]).transpose(1, 2)
            turned = of_groups.flip(-1, -2).flatten(0, 1).contiguous()
            by_images = _applied(gradient, turned, ctx.groups, narrow=ctx.narrow)
        return by_images, _by_weight(images, gradient, weight.shape, ctx.groups), None


def _applied(images: Tensor, weight: Tensor, groups: int, *, narrow: bool) -> Tensor:
    padding = weight.shape[-1] // 2
    if narrow:
        read, by = images.to(torch.bfloat16), weight.to(torch.bfloat16)
        return functional.conv2d(read, by, padding=padding, groups=groups).float()
    tiles = _Tiles.of(images, weight, lambda tiles: tiles.bytes <= _ROOM)
    width_out, width_in = weight.shape[0] // groups, weight.shape[1]
    height, width = images.shape[-2:]
    out = images.new_empty(len(images), groups * width_out, height, width)
    threads = tiles.rows * -(-width // 4) * (_OUTS // _EACH)
    grid = (len(images) * -(-height // tiles.rows), -(-width_out // _OUTS), groups)
    arguments = (images, weight, out, groups, width_in, width_out)
    tiles.launch("convolve", grid, (threads, 1), arguments, tiles.bytes)
    return out


def _by_weight(images: Tensor, gradient: Tensor, shape: torch.Size, groups: int) -> Tensor:
    out = images.new_empty(shape)
    tiles = _Tiles.of(images, out, lambda tiles: tiles.bytes_of_weights <= _ROOM_OF_WEIGHTS)
    width_out, width_in, kernel = shape[0] // groups, shape[1], shape[2]
    blocks = len(images) * -(-images.shape[-2] // tiles.rows)
    parts = images.new_empty(blocks, *shape)
    grid = (blocks, -(-width_out // _OUTS), groups * -(-width_in // tiles.ins))
    threads = (_OUTS // 4 * tiles.ins * kernel * tiles.slices, 1)
    arguments = (images, gradient, parts, groups, width_in, width_out)
    tiles.launch("weigh", grid, threads, arguments, tiles.bytes_of_weights)
    tiles.launch("add_shares", (-(-out.numel() // 32), 1, 1), (32, _SHARES), (parts, out, blocks, out.numel()))
    return out


class _Tiles(NamedTuple):
    """How the work is cut into blocks, and of what sizes it is."""

    height: int
    width: int
    kernel: int
    rows: int
    ins: int
    slices: int

    @classmethod
    def of(cls, images: Tensor, weight: Tensor, fits: Callable[[_Tiles], bool]) -> _Tiles:
        """In as few blocks as fit."""
        height, width = images.shape[-2:]
        ins, kernel = min(weight.shape[1], _INS), weight.shape[-1]
        for count in range(1, height + 1):
            rows = -(-height // count)
            slices = max(1, min(rows, _THREADS // (_OUTS // 4 * ins * kernel)))
            found = cls(height, width, kernel, rows, ins, slices)
            if fits(found):
                break
        return found

    # As `convolve.cu` lays out a block's shared memory.

    @property
    def bytes(self) -> int:
        """Of the convolution."""
        fours = -(-self.width // 4)
        stride = (4 * fours + self.kernel - 1 + 3) // 4 * 4 + 4
        return 4 * self.ins * ((self.rows + self.kernel - 1) * stride + self.kernel**2 * _OUTS)

    @property
    def bytes_of_weights(self) -> int:
        """Of the gradient by them."""
        plane = ((self.rows + self.kernel - 1) * ((self.width + self.kernel - 1) | 1) + 29) // 32 * 32 + 2
        lanes = _OUTS // 4 * self.ins * self.kernel
        return 4 * max(
            self.rows * self.width * _APART + self.ins * plane,
            self.slices * lanes * 4 * self.kernel,
        )

    def launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        threads: tuple[int, int],
        arguments: tuple[object, ...],
        shared_bytes: int = 0,
    ) -> None:
        constants = {field.upper(): value for field, value in self._asdict().items()}
        constants |= {"OUTS": _OUTS, "EACH": _EACH, "SHARES": _SHARES}
        kernels.launch("convolve.cu", name, grid, threads, arguments, shared_bytes=shared_bytes, **constants)
