"""The `cnn` architecture as a module. `app.contract.network` says the same in numbers; a test holds them together."""

from __future__ import annotations

from torch import Tensor, nn

from app.contract.network import KERNELS, MNIST_ENDS, POOLED, Ends
from app.contract.spec import ModelSpec
from worker.engine.convolve import convolved
from worker.engine.normalize import Affine, Running, applies_to, normalized
from worker.engine.pixels import scaled
from worker.engine.pooling import MaxPool
from worker.engine.seeding import seeded

EPSILON = 1e-5
"""What BatchNorm adds to a variance."""


class Cnn(nn.Module):
    """Three convolutional layers and two linear ones, nothing between those two: images [N, channels, height, width],
    bytes or floats in [0, 1], → logits [N, classes]."""

    def __init__(self, channels: tuple[int, int, int], hidden: int, ends: Ends = MNIST_ENDS) -> None:
        super().__init__()
        first, second, third = channels
        self.layer1 = _convolutional(ends.channels, first, KERNELS[0], pooled=POOLED[0])
        self.layer2 = _convolutional(first, second, KERNELS[1], pooled=POOLED[1])
        self.layer3 = _convolutional(second, third, KERNELS[2], pooled=POOLED[2])
        self.fc1 = nn.Linear(third * ends.features, hidden)
        self.fc2 = nn.Linear(hidden, ends.classes)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layer3(self.layer2(self.layer1(scaled(images))))
        logits: Tensor = self.fc2(self.fc1(features.flatten(start_dim=1)))
        return logits


class _Convolutional(nn.Sequential):
    """A convolution, BatchNorm, perhaps max pooling, ReLU."""

    def forward(self, images: Tensor) -> Tensor:
        convolution, norm = self[0], self[1]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        if not applies_to(images, norm):
            out: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
            return out
        assert convolution.bias is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        assert norm.momentum is not None
        norm.num_batches_tracked.add_(1)
        affine = Affine(convolution.bias, norm.weight, norm.bias)
        running = Running(norm.running_mean, norm.running_var, norm.momentum, norm.eps)
        # Its bias only moves the mean, which the normalization takes away.
        return normalized(convolved(images, convolution.weight), affine, running, pooled=len(self) > 3)


def _convolutional(width_in: int, width: int, kernel: int, *, pooled: bool) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width, kernel, padding=kernel // 2)
    # Pooled before ReLU: the same numbers and gradients to the bit, for a quarter of ReLU's work.
    pooling = [MaxPool()] if pooled else []
    return _Convolutional(convolution, nn.BatchNorm2d(width, eps=EPSILON), *pooling, nn.ReLU(inplace=True))


def fresh(model: ModelSpec, seed: int, ends: Ends = MNIST_ENDS) -> Cnn:
    """A network with PyTorch's default initial weights, drawn from `seed`."""
    with seeded(seed):
        return Cnn(model.channels, model.hidden, ends)
