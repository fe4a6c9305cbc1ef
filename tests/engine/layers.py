"""Layers of networks side by side, as a GPU computes them by kernels of our own."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.convolve import convolved
from worker.engine.normalize import Affine, Running, normalized

Layer = tuple[int, int, tuple[int, int], int, bool]
LAYERS: list[Layer] = [
    (1, 16, (28, 28), 5, False),
    (16, 16, (28, 28), 3, True),
    (16, 32, (14, 14), 3, True),
    (3, 8, (13, 11), 5, False),
    (20, 40, (9, 9), 3, True),
]
"""Channels in and out, the images' size, the kernel's, and whether pooled."""


def drawn(layer: Layer, groups: int, images: int, on: torch.device) -> list[Tensor]:
    """For each group: images, weight, bias, scale, shift and the gradient of what comes out."""
    width_in, width_out, (height, width), kernel, pooled = layer
    stream = torch.Generator().manual_seed(2)
    side = 2 if pooled else 1
    shapes = [
        (images, width_in, height, width),
        (width_out, width_in, kernel, kernel),
        *[(width_out,)] * 3,
        (images, width_out, height // side, width // side),
    ]
    return [torch.randn(groups, *shape, generator=stream).to(on) for shape in shapes]


def computed(given: list[Tensor], layer: Layer) -> list[Tensor]:
    """What comes out of the groups side by side, their running statistics, and the gradients, group by group."""
    groups, (images, weight, bias, scale, shift, slopes) = len(given[0]), given
    inputs = [images.transpose(0, 1).flatten(1, 2), *(each.flatten(0, 1) for each in (weight, bias, scale, shift))]
    inputs = [each.contiguous().requires_grad_() for each in inputs]
    running = Running(torch.zeros_like(inputs[2]), torch.ones_like(inputs[2]), 0.1, 1e-5)
    features = convolved(inputs[0], inputs[1], groups)
    out = normalized(features, Affine(*inputs[2:]), running, pooled=layer[-1])
    by_inputs = torch.autograd.grad(out, inputs, slopes.transpose(0, 1).flatten(1, 2))
    of_images = [torch.stack(each.chunk(groups, dim=1)) for each in (out.detach(), by_inputs[0])]
    flat = (running.mean.detach(), running.variance.detach(), *by_inputs[1:])
    return [*of_images, *(torch.stack(each.chunk(groups)) for each in flat)]


def has_bits_of_each_alone(given: list[Tensor], layer: Layer) -> bool:
    """Whether what the groups come to side by side is what each comes to by itself."""
    together = computed(given, layer)
    alone = [computed([each[number : number + 1] for each in given], layer) for number in range(len(given[0]))]
    return all(torch.equal(one, torch.cat(others)) for one, *others in zip(together, *alone, strict=True))


def what_is_no_number_stays(given: list[Tensor], layer: Layer) -> bool:
    """Whether one in an image of the first of two groups is seen in all of its channels, and in none of the other's."""
    images = given[0].clone()
    images[0, 2, 3, 1, 1] = torch.nan
    out, by_images, *_ = computed([images, *given[1:]], layer)
    shows = out[0].isnan().any(dim=(0, 2, 3)).all() and by_images[0].isnan().all()
    return bool(shows and out[1].isfinite().all() and by_images[1].isfinite().all())
