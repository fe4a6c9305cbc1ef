"""The kernels for members that are trained together, held against PyTorch in double precision."""

from __future__ import annotations

import json
import sys
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-5


class Case(NamedTuple):
    """A convolutional layer of several members."""

    members: int
    width_in: int
    width: int
    batch: int
    height: int
    width_of_images: int
    kernel: int
    pooled: bool


def inputs(case: Case, device: str) -> list[Tensor]:
    """Images, weight, bias, scale and shift."""
    generator = torch.Generator().manual_seed(case.width)
    rows = (case.members, case.width)
    shapes = [
        (case.members, case.width_in, case.batch, case.height, case.width_of_images),
        (*rows, case.width_in, case.kernel, case.kernel),
        *[rows] * 3,
    ]
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]


def by_kernels(given: list[Tensor], case: Case) -> list[Tensor]:
    """The output, mean and variance, and the gradients of a weighted sum of the output by all inputs."""
    from worker.engine.together.layers import convolutional

    images, weight, bias, scale, shift = given
    out, mean, variance = convolutional(images, weight, bias, scale, shift, EPSILON, pooled=case.pooled)
    return [out, mean, variance, *torch.autograd.grad((out * _weights(out)).sum(), given)]


def by_pytorch(given: list[Tensor], case: Case) -> list[Tensor]:
    exact = [each.detach().double().requires_grad_() for each in given]
    found = []
    for images, weight, bias, scale, shift in zip(*exact, strict=True):
        convolved = functional.conv2d(images.transpose(0, 1), weight, bias, padding=case.kernel // 2)
        variance, mean = torch.var_mean(convolved, dim=(0, 2, 3), correction=0)
        normal = functional.batch_norm(convolved, None, None, scale, shift, training=True, eps=EPSILON)
        pooled = functional.max_pool2d(normal, 2) if case.pooled else normal
        found.append((functional.relu(pooled).transpose(0, 1), mean, variance))
    out, mean, variance = (torch.stack(parts) for parts in zip(*found, strict=True))
    return [out, mean, variance, *torch.autograd.grad((out * _weights(out).double()).sum(), exact)]


def _weights(out: Tensor) -> Tensor:
    return torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)


def apart(case: Case, device: str) -> dict[str, float]:
    """How far the kernels are from PyTorch: ‖ours − theirs‖ / ‖theirs‖ of each of them, the bias's gradient apart,
    which is 0 but for rounding."""
    given = inputs(case, device)
    names = ("out", "mean", "variance", "by_images", "by_weight", "by_bias", "by_scale", "by_shift")
    pairs = zip(names, by_kernels(given, case), by_pytorch(given, case), strict=True)
    return {
        name: float((ours - theirs).detach().norm() / (1 if name == "by_bias" else theirs.detach().norm()))
        for name, ours, theirs in pairs
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps([apart(Case(*each), "cpu") for each in json.loads(sys.argv[1])]))
