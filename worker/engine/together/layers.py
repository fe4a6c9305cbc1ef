"""The convolutional layers of all members at once on a GPU, by the kernels of `kernels`, with their gradients."""

from __future__ import annotations

import subprocess
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from worker.engine.together import kernels

SHARES = 8
"""Into which a row is cut to be added up."""
PROGRAMS = 2048
"""That are to run at a time: some for each of a GPU's processors."""
MANY = 9
"""Channels that fill a block of 16 well enough."""


class Tile(NamedTuple):
    """What a program takes at a time, and how it runs."""

    pixels: int
    depth: int
    warps: int
    stages: int


TILES = {
    ("convolve", False): Tile(256, 32, 4, 2),
    ("convolve", True): Tile(256, 16, 4, 2),
    ("weigh", False): Tile(64, 32, 2, 2),
    ("weigh", True): Tile(32, 16, 1, 3),
}
"""By whether there are many channels: the fastest of some that were tried on an H100, with 16 members of the default
widths."""


@cache
def usable() -> bool:
    """Whether kernels can be built here: Triton wants a compiler of C."""
    try:
        _convolve(torch.zeros(1, 1, 1, 8, 8, device="cuda"), torch.zeros(1, 1, 1, 3, 3, device="cuda"), None)
    except (RuntimeError, OSError, subprocess.SubprocessError):
        return False
    return True


def convolutional(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, *, pooled: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolution with 'same' padding, BatchNorm by the batch, ReLU and perhaps 2×2 max pooling of x [members,
    channels, batch, height, width]; also each channel's mean and (biased) variance [members, channels]. weight
    [members, out, channels, kernel, kernel], the others [members, out]."""
    convolved = cast(Tensor, _Convolved.apply(x, weight, bias))
    return cast(tuple[Tensor, Tensor, Tensor], _Activated.apply(convolved, gamma, beta, epsilon, pooled))


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        by_x = None
        if ctx.needs_input_grad[0]:
            # The gradient by the input is a convolution too, by the kernel turned around.
            by_x = _convolve(gradient, weight.flip(-1, -2).transpose(1, 2).contiguous(), None)
        # What a channel's bias adds, BatchNorm takes away again: the gradient is 0 but for rounding.
        return by_x, _weigh(x, gradient, weight), torch.zeros(weight.shape[:2], device=weight.device)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    members, width_in, batch, height, width = x.shape
    width_out, kernel, pixels = weight.shape[1], weight.shape[-1], batch * height * width
    out = x.new_empty(members, width_out, batch, height, width)
    tile = TILES["convolve", width_in >= MANY]
    block = _block(width_out)
    function = kernels.convolve_taps if width_in >= MANY else kernels.convolve
    function[(-(-pixels // tile.pixels), members, -(-width_out // block))](
        x, weight, weight if bias is None else bias, out, width_in, width_out, pixels,
        KERNEL=kernel, HEIGHT=height, WIDTH=width, OUT=block, PIXELS=tile.pixels, DEPTH=tile.depth,
        BIASED=bias is not None, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def _weigh(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    members, width_in, batch, height, width = x.shape
    width_out, kernel, pixels = weight.shape[1], weight.shape[-1], batch * height * width
    many = width_in >= MANY and kernel == 3
    tile, block = TILES["weigh", many], _block(width_out)
    blocks = -(-width_out // block) * (
        3 * -(-width_in // tile.depth) if many else -(-width_in * kernel**2 // tile.depth)
    )
    shares = min(-(-pixels // (4 * tile.pixels)), max(1, PROGRAMS // (members * blocks)))
    share = -(-pixels // shares)
    out = x.new_empty(shares, *weight.shape)
    function = kernels.weigh_taps if many else kernels.weigh
    constants = {} if many else {"KERNEL": kernel}
    function[(shares, members, blocks)](
        x, gradient, out, width_in, width_out, pixels, members, share,
        HEIGHT=height, WIDTH=width, OUT=block, PIXELS=tile.pixels, DEPTH=tile.depth,
        num_warps=tile.warps, num_stages=tile.stages, **constants,
    )  # fmt: skip
    return out.sum(dim=0)


def _block(width: int) -> int:
    return 16 if width <= 16 else 32


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, pooled: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        members, channels, batch, height, width = x.shape
        rows, pixels = members * channels, batch * height * width
        variance, mean = torch.var_mean(x.view(rows, pixels), dim=1, correction=0)
        deviation = torch.rsqrt(variance + epsilon)
        scale, shift = deviation * gamma.reshape(-1), beta.reshape(-1)
        if pooled:
            out = x.new_empty(members, channels, batch, height // 2, width // 2)
            best, which = torch.empty_like(out), torch.empty_like(out, dtype=torch.uint8)
            count = out[0, 0].numel()
            kernels.activate_pooled[(-(-count // kernels.CHUNK), rows)](
                x, mean, scale, shift, out, best, which, pixels, count,
                HEIGHT=height, WIDTH=width, CHUNK=kernels.CHUNK,
            )  # fmt: skip
        else:
            out, best, which = torch.empty_like(x), x, x
            kernels.activate[(-(-pixels // kernels.CHUNK), rows)](
                x, mean, scale, shift, out, pixels, CHUNK=kernels.CHUNK
            )
        ctx.save_for_backward(x, mean, deviation, scale, shift, best, which)
        ctx.pooled = pooled
        told = mean.view(members, channels), variance.view(members, channels)
        ctx.mark_non_differentiable(*told)
        return out, *told

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, deviation, scale, shift, best, which = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        members, channels, batch, height, width = x.shape
        rows, pixels, count = members * channels, batch * height * width, gradient[0, 0].numel()
        sums = x.new_empty(2, SHARES, rows)
        kernels.add_up[(SHARES, rows)](
            best, mean, scale, shift, which, gradient, sums, count, -(-count // SHARES), rows,
            POOLED=ctx.pooled, CHUNK=kernels.CHUNK,
        )  # fmt: skip
        plain, weighted = sums.sum(dim=1)
        base, slope = scale * plain / pixels, scale * deviation.square() * weighted / pixels
        out = torch.empty_like(x)
        kernels.spread[(-(-pixels // kernels.CHUNK), rows)](
            x, mean, scale, shift, which, gradient, base, slope, out, pixels, count,
            HEIGHT=height, WIDTH=width, POOLED=ctx.pooled, CHUNK=kernels.CHUNK,
        )  # fmt: skip
        by_gamma, by_beta = (weighted * deviation).view(members, channels), plain.view(members, channels)
        return out, by_gamma, by_beta, None, None
