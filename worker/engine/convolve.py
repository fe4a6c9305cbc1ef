"""A 'same' convolution on a GPU by kernels of our own.

cuDNN has few kernels for 16 or 32 channels that add up in the same order each time: for the third layer of the default
network the gradient by the weights took a quarter of a step, and for the first one it was right to three digits. And a
grouped convolution, which is that of several networks at once, it does group by group.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from worker.engine import kernels

_OUTS, _APART = 16, 20
"""As in `tiles.cu`: output channels of a block, and floats from one pixel's, or one weight's, to the next."""
_INS, _INS_OF_WEIGHTS = 8, 16
"""Input channels of a block, at most, of a convolution and of the gradient by the weights."""
_SHARES = 16
_ROOM = 47 * 1024
"""Bytes of shared memory of a block, at most: any GPU has them to give."""
_TALL = 7
"""Pixels of a thread, at most."""
_FEW, _MANY = 4, 8
"""Output channels of a thread, when there are few threads for the GPU's processors, and when there are many."""
_ENOUGH = 512
"""Threads for each processor that are many."""
_THREADS = 512
_THREADS_OF_WEIGHTS = 224
"""Of a block, at most: each has up to 128 registers, of 65,536."""


def convolved(images: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """[N, groups·IN, H, W] by [groups·OUT, IN, K, K], K odd, padded with zeros, to [N, groups·OUT, H, W]; float32. Each
    group's numbers are those that it has alone, to the bit."""
    out: Tensor = _Convolved.apply(images, weight, groups)
    return out


def shares(width_in: int, width_out: int, kernel: int) -> int:
    """Numbers that each image and group adds to the gradient by the weights, which are kept until they are added up."""
    ins = min(width_in, _INS_OF_WEIGHTS)
    return -(-width_out // _OUTS) * _OUTS * -(-width_in // ins) * ins * kernel**2


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
    of = Outputs.of(images, weight, torch.cuda.get_device_properties(images.device).multi_processor_count)
    width_out, width_in = weight.shape[0] // groups, weight.shape[1]
    out = images.new_empty(len(images), groups * width_out, of.height, of.width)
    grid = (len(images) * -(-of.height // of.rows), -(-width_out // _OUTS), groups)
    kernels.launch(
        ("tiles.cu", "convolve.cu"),
        "convolve",
        grid,
        (of.threads, 1),
        (images, weight, out, groups, width_in, width_out),
        shared_bytes=of.bytes,
        OUTS=_OUTS,
        **of.constants,
    )
    return out


def _by_weight(images: Tensor, gradient: Tensor, shape: torch.Size, groups: int) -> Tensor:
    out = images.new_empty(shape)
    of = Weights.of(images, out)
    width_out, width_in = shape[0] // groups, shape[1]
    grid = (len(images), -(-width_out // _OUTS), groups * -(-width_in // of.ins))
    entries = groups * shares(width_in, width_out, of.kernel)
    parts = images.new_empty(len(images), entries)
    files, constants = ("tiles.cu", "weigh.cu"), {"OUTS": _OUTS, "SHARES": _SHARES, **of.constants}
    kernels.launch(
        files,
        "weigh",
        grid,
        (of.threads, 1),
        (images, gradient, parts, groups, width_in, width_out),
        shared_bytes=of.bytes,
        **constants,
    )
    kernels.launch(
        files,
        "add_shares",
        (-(-entries // 32), 1, 1),
        (32, _SHARES),
        (parts, out, len(images), entries, width_in, width_out),
        **constants,
    )
    return out


class Outputs(NamedTuple):
    """How the work of a convolution is cut into blocks, and of what sizes it is, as `convolve.cu` has it."""

    height: int
    width: int
    kernel: int
    ins: int
    each: int
    tall: int
    stacks: int

    @classmethod
    def of(cls, images: Tensor, weight: Tensor, processors: int) -> Outputs:
        """In as few blocks as fit, for a GPU with that many processors."""
        height, width = images.shape[-2:]
        all_stacks = -(-height // _TALL)
        tall = -(-height // all_stacks)
        threads = len(images) * width * all_stacks * weight.shape[0] // _MANY
        each = _MANY if threads >= _ENOUGH * processors else _FEW
        kinds = (
            cls(height, width, weight.shape[-1], min(weight.shape[1], _INS), each, tall, stacks)
            for stacks in range(all_stacks, 0, -1)
        )
        return next(kind for kind in kinds if kind.bytes <= _ROOM and kind.threads <= _THREADS)

    @property
    def rows(self) -> int:
        return self.stacks * self.tall

    @property
    def threads(self) -> int:
        return self.width * self.stacks * _OUTS // self.each

    @property
    def stride(self) -> int:
        return _stride(self.width, self.width + self.kernel - 1, self.tall, self.stacks)

    @property
    def bytes(self) -> int:
        values = (self.rows + self.kernel - 1) * self.stride
        return 4 * self.ins * (values + self.kernel**2 * _APART)

    @property
    def constants(self) -> dict[str, int]:
        own = {name.upper(): value for name, value in self._asdict().items()}
        return own | {"ROWS": self.rows, "STRIDE": self.stride}


@cache
def _stride(width: int, least: int, tall: int, stacks: int) -> int:
    """Floats from one line to the next, with which as few as can be of 32 threads, `width` beside one another and
    `tall` lines between those, read different numbers of one of 32 banks of memory."""

    def meeting(stride: int) -> int:
        places = {lane // width % stacks * tall * stride + lane % width for lane in range(32)}
        return max(Counter(place % 32 for place in places).values())

    return min(range(least, least + 32), key=meeting)


class Weights(NamedTuple):
    """The same for the gradient by the weights, as `weigh.cu` has it."""

    height: int
    width: int
    kernel: int
    ins: int
    deep: int
    slices: int
    rows: int

    @classmethod
    def of(cls, images: Tensor, weight: Tensor) -> Weights:
        """Of as many rows at a time as fit; the slices take as many of them each."""
        height, width = images.shape[-2:]
        kernel, ins = weight.shape[-1], min(weight.shape[1], _INS_OF_WEIGHTS)
        deep = kernel if kernel <= 3 else 1  # the sums of a thread are to lie in its registers
        most = max(1, _THREADS_OF_WEIGHTS // (_OUTS // 8 * ins * kernel // deep))
        kinds = (
            cls(height, width, kernel, ins, deep, slices=-(-height // count), rows=-(-height // count) * each)
            for count in range(-(-height // most), height + 1)
            for each in range(count, 0, -1)
        )
        return next(kind for kind in kinds if kind.bytes <= _ROOM)

    @property
    def threads(self) -> int:
        return _OUTS // 8 * self.ins * self.kernel // self.deep * self.slices

    @property
    def bytes(self) -> int:
        plane = ((self.rows + self.kernel - 1) * ((self.width + self.kernel - 1) | 1) + 29) // 32 * 32 + 2
        values = self.rows * self.width * _APART + self.ins * plane
        return 4 * max(values, self.threads * 8 * self.kernel)

    @property
    def constants(self) -> dict[str, int]:
        return {name.upper(): value for name, value in self._asdict().items()}
