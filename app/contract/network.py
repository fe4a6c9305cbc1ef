"""The `cnn` architecture as arithmetic: names, shapes, parameters and MACs, without building a network.

Three 'same' convolutions (5×5, 3×3, 3×3), each with BatchNorm and ReLU, the second and third followed by 2×2 max
pooling; then two linear layers with nothing between them. The names are state-dict keys and part of the contract.
"""

from __future__ import annotations

import math

KERNELS = (5, 3, 3)
POOLED = (False, True, True)
"""Which of the three convolutional layers end in a 2×2 max pooling."""


def parameter_shapes(
    channels: tuple[int, int, int], hidden: int, *, side: int = 28, classes: int = 10
) -> dict[str, tuple[int, ...]]:
    """Every trainable tensor's shape by its state-dict key, in state-dict order."""
    shapes: dict[str, tuple[int, ...]] = {}
    width_in = 1
    for index, (width, kernel, pooled) in enumerate(zip(channels, KERNELS, POOLED, strict=True), start=1):
        shapes[f"layer{index}.0.weight"] = (width, width_in, kernel, kernel)
        shapes[f"layer{index}.0.bias"] = (width,)
        shapes[f"layer{index}.1.weight"] = (width,)
        shapes[f"layer{index}.1.bias"] = (width,)
        width_in, side = width, side // 2 if pooled else side
    shapes["fc1.weight"] = (hidden, width_in * side * side)
    shapes["fc1.bias"] = (hidden,)
    shapes["fc2.weight"] = (classes, hidden)
    shapes["fc2.bias"] = (classes,)
    return shapes


PARAMETER_NAMES = tuple(parameter_shapes((1, 1, 1), 1))


def parameter_count(channels: tuple[int, int, int], hidden: int) -> int:
    return sum(math.prod(shape) for shape in parameter_shapes(channels, hidden).values())


def layer_positions(*, side: int = 28) -> dict[str, int]:
    """How many times each convolution or linear layer applies its kernel to one image (1 for a linear layer)."""
    positions: dict[str, int] = {}
    for index, pooled in enumerate(POOLED, start=1):
        positions[f"layer{index}.0"] = side * side
        side = side // 2 if pooled else side
    return positions | {"fc1": 1, "fc2": 1}


def macs_per_image(channels: tuple[int, int, int], hidden: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one 28×28 image; BatchNorm and pooling not counted."""
    shapes = parameter_shapes(channels, hidden)
    return sum(math.prod(shapes[f"{layer}.weight"]) * count for layer, count in layer_positions().items())
