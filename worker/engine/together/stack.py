"""Networks of one shape as one: each tensor has the members as its first dimension."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.contract.network import POOLED
from worker.engine import kernels
from worker.engine.convolve import convolved
from worker.engine.model import EPSILON
from worker.engine.normalize import Affine, Running, normalized
from worker.engine.pixels import scaled
from worker.engine.pooling import MaxPool

MOMENTUM = 0.1
"""Of BatchNorm's running statistics: PyTorch's default, as the module has it."""


class Stack:
    """The parameters and buffers of `cnn` networks of one shape, and the forward pass of all of them."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """The given networks stay as they are; `networks` are copies of them whose tensors lie in the stack."""
        self.networks = [copy.deepcopy(network).train() for network in networks]
        names = [name for name, _ in networks[0].named_parameters()]
        states = [network.state_dict() for network in networks]
        with torch.no_grad():
            self.tensors = {name: torch.stack([state[name].contiguous() for state in states]) for name in states[0]}
        self._pool = MaxPool()
        self.parameters = {name: self.tensors[name].requires_grad_() for name in names}
        for number, network in enumerate(self.networks):
            for module_name, module in network.named_modules():
                _lie_in(module, f"{module_name}." if module_name else "", self.tensors, number)

    def __len__(self) -> int:
        return len(self.networks)

    def logits(self, images: Tensor) -> Tensor:
        """Images [members, batch, channels, height, width], bytes or floats in [0, 1], → [members, batch, classes], in
        training mode: BatchNorm normalizes by the batch, and its running statistics go on."""
        members, batch = images.shape[:2]
        x = scaled(images).transpose(0, 1).flatten(1, 2)
        layer = self._by_kernels if kernels.usable(x) else self._by_pytorch
        for number, pooled in enumerate(POOLED, start=1):
            x = layer(x, number, pooled=pooled)
            self.tensors[f"layer{number}.1.num_batches_tracked"].add_(1)
        features = x.contiguous().view(batch, members, -1).permute(1, 2, 0)
        # The weights stand to the left, so that their gradients come out in the weights' own layout.
        return self._linear("fc2", self._linear("fc1", features)).transpose(1, 2)

    def _by_kernels(self, x: Tensor, number: int, *, pooled: bool) -> Tensor:
        """A convolutional layer on a GPU: [batch, members·channels, height, width], the bits that each has alone."""
        weight, affine = self._layer(number)
        running = Running(*self._running(number), MOMENTUM, EPSILON)
        return normalized(convolved(x, weight, groups=len(self)), affine, running, pooled=pooled)

    def _by_pytorch(self, x: Tensor, number: int, *, pooled: bool) -> Tensor:
        """The same elsewhere, channels last, which is faster on every device that was tried."""
        weight, (bias, scale, shift) = self._layer(number)
        x = x.contiguous(memory_format=torch.channels_last)
        x = functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(self))
        mean, variance = self._running(number)
        x = functional.batch_norm(x, mean, variance, scale, shift, training=True, momentum=MOMENTUM, eps=EPSILON)
        return functional.relu_(self._pool(x) if pooled else x)

    def _layer(self, number: int) -> tuple[Tensor, Affine]:
        """The convolution's weight and the rest, of all members' channels in a row."""
        names = ("0.weight", "0.bias", "1.weight", "1.bias")
        weight, *rest = (self.parameters[f"layer{number}.{name}"].flatten(0, 1) for name in names)
        return weight, Affine(*rest)

    def _running(self, number: int) -> tuple[Tensor, Tensor]:
        mean, variance = (self.tensors[f"layer{number}.1.running_{name}"].view(-1) for name in ("mean", "var"))
        return mean, variance

    def _linear(self, layer: str, columns: Tensor) -> Tensor:
        """[members, in, batch] → [members, out, batch]."""
        weight, bias = self.parameters[f"{layer}.weight"], self.parameters[f"{layer}.bias"]
        return torch.baddbmm(bias.unsqueeze(2), weight, columns)


def _lie_in(module: nn.Module, prefix: str, tensors: dict[str, Tensor], number: int) -> None:
    """Let a module's own parameters and buffers be those of a member in the stack."""
    for name, parameter in module.named_parameters(recurse=False):
        parameter.data = tensors[prefix + name].detach()[number]
    for name, _ in list(module.named_buffers(recurse=False)):
        setattr(module, name, tensors[prefix + name][number])
