"""The `cnn` architecture as arithmetic: names, shapes, parameters and MACs, without building a network.

Three 'same' convolutions (5×5, 3×3, 3×3), each with BatchNorm and ReLU, the second and third followed by 2×2 max
pooling; then two linear layers with nothing between them. The names are state-dict keys and part of the contract.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from app.contract.closed import Closed

KERNELS = (5, 3, 3)
POOLED = (False, True, True)
"""Which of the three convolutional layers end in a 2×2 max pooling."""

LEAST_SIDE, MOST_SIDE = 8, 64
LEAST_CLASSES, MOST_CLASSES = 2, 1_000

Side = Annotated[int, Field(ge=LEAST_SIDE, le=MOST_SIDE)]


class Ends(NamedTuple):
    """What a network's data set decides of its tensors. By default it is one like MNIST."""

    channels: int = 1
    """Of an image."""
    features: int = 49
    """Of one channel of layer3, after both poolings, that fc1 reads."""
    classes: int = 10

    def __str__(self) -> str:
        colours = "channel" if self.channels == 1 else "channels"
        return (
            f"images of {self.channels} {colours} and {self.features} features after pooling, in {self.classes} classes"
        )


MNIST_ENDS = Ends()


class DataShape(Closed):
    """The images and classes of a data set. By default it is one like MNIST."""

    channels: Annotated[Literal[1, 3], Field(description="1 for grey images, 3 for RGB.")] = 1
    height: Side = 28
    width: Side = 28
    classes: Annotated[int, Field(ge=LEAST_CLASSES, le=MOST_CLASSES)] = 10

    @property
    def features(self) -> int:
        """Of one channel of layer3: each pooling halves both sides, rounding down."""
        return (self.height >> sum(POOLED)) * (self.width >> sum(POOLED))

    @property
    def ends(self) -> Ends:
        return Ends(self.channels, self.features, self.classes)

    def __str__(self) -> str:
        return f"{self.channels}×{self.height}×{self.width} in {self.classes} classes"


MNIST_SHAPE = DataShape()


def parameter_shapes(
    channels: tuple[int, int, int], hidden: int, ends: Ends = MNIST_ENDS
) -> dict[str, tuple[int, ...]]:
    """Every trainable tensor's shape by its state-dict key, in state-dict order."""
    shapes: dict[str, tuple[int, ...]] = {}
    width_in = ends.channels
    for index, (width, kernel) in enumerate(zip(channels, KERNELS, strict=True), start=1):
        shapes[f"layer{index}.0.weight"] = (width, width_in, kernel, kernel)
        shapes[f"layer{index}.0.bias"] = (width,)
        shapes[f"layer{index}.1.weight"] = (width,)
        shapes[f"layer{index}.1.bias"] = (width,)
        width_in = width
    shapes["fc1.weight"] = (hidden, width_in * ends.features)
    shapes["fc1.bias"] = (hidden,)
    shapes["fc2.weight"] = (ends.classes, hidden)
    shapes["fc2.bias"] = (ends.classes,)
    return shapes


PARAMETER_NAMES = tuple(parameter_shapes((1, 1, 1), 1))


def parameter_count(channels: tuple[int, int, int], hidden: int, ends: Ends = MNIST_ENDS) -> int:
    return sum(math.prod(shape) for shape in parameter_shapes(channels, hidden, ends).values())


def layer_positions(shape: DataShape = MNIST_SHAPE) -> dict[str, int]:
    """How many times each convolution or linear layer applies its kernel to one image (1 for a linear layer)."""
    positions: dict[str, int] = {}
    height, width = shape.height, shape.width
    for index, pooled in enumerate(POOLED, start=1):
        positions[f"layer{index}.0"] = height * width
        height, width = (height // 2, width // 2) if pooled else (height, width)
    return positions | {"fc1": 1, "fc2": 1}


def macs_per_image(channels: tuple[int, int, int], hidden: int, shape: DataShape = MNIST_SHAPE) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image; BatchNorm and pooling not counted."""
    shapes = parameter_shapes(channels, hidden, shape.ends)
    return sum(math.prod(shapes[f"{layer}.weight"]) * count for layer, count in layer_positions(shape).items())
