"""Networks of one shape as one: each tensor has the members as its first dimension."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.contract.network import KERNELS, POOLED
from worker.engine.model import EPSILON
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
        """Images [members, batch, channels, height, width] → [members, batch, classes], in training mode: BatchNorm
        normalizes by the batch, and its running statistics go on."""
        features = self._by_kernels(images) if _has_kernels(images) else self._grouped(images)
        # The weights stand to the left, so that their gradients come out in the weights' own layout.
        return self._linear("fc2", self._linear("fc1", features)).transpose(1, 2)

    def _grouped(self, images: Tensor) -> Tensor:
        """[members, features, batch], by PyTorch's grouped convolution; channels last, which is faster on every device
        that was tried."""
        members, batch = images.shape[:2]
        x = images.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        for number, (kernel, pooled) in enumerate(zip(KERNELS, POOLED, strict=True), start=1):
            weight, bias, gamma, beta = self._layer(number)
            x = functional.conv2d(x, weight.flatten(0, 1), bias.flatten(), padding=kernel // 2, groups=members)
            mean, variance = (self.tensors[f"layer{number}.1.running_{name}"].view(-1) for name in ("mean", "var"))
            x = functional.batch_norm(
                x, mean, variance, gamma.flatten(), beta.flatten(), training=True, momentum=MOMENTUM, eps=EPSILON
            )
            self._count(number)
            x = functional.relu_(self._pool(x) if pooled else x)
        return x.contiguous().view(batch, members, -1).permute(1, 2, 0)

    def _by_kernels(self, images: Tensor) -> Tensor:
        """The same, by kernels of our own."""
        # Imported here: it needs Triton, which comes with PyTorch for CUDA alone.
        from worker.engine.together.layers import convolutional

        members, batch = images.shape[:2]
        x = images.transpose(1, 2).contiguous()
        for number, pooled in enumerate(POOLED, start=1):
            values = x[0, 0].numel()
            x, mean, variance = convolutional(x, *self._layer(number), EPSILON, pooled=pooled)
            running = (self.tensors[f"layer{number}.1.running_{name}"] for name in ("mean", "var"))
            for kept, found in zip(running, (mean, variance * (values / (values - 1))), strict=True):
                kept.mul_(1 - MOMENTUM).add_(found, alpha=MOMENTUM)
            self._count(number)
        return x.permute(0, 1, 3, 4, 2).reshape(members, -1, batch)

    def _layer(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        names = ("0.weight", "0.bias", "1.weight", "1.bias")
        weight, bias, gamma, beta = (self.parameters[f"layer{number}.{name}"] for name in names)
        return weight, bias, gamma, beta

    def _count(self, number: int) -> None:
        self.tensors[f"layer{number}.1.num_batches_tracked"].add_(1)

    def _linear(self, layer: str, columns: Tensor) -> Tensor:
        """[members, in, batch] → [members, out, batch]."""
        weight, bias = self.parameters[f"{layer}.weight"], self.parameters[f"{layer}.bias"]
        return torch.baddbmm(bias.unsqueeze(2), weight, columns)


def _has_kernels(images: Tensor) -> bool:
    if not images.is_cuda:
        return False
    try:
        from worker.engine.together import layers
    except ImportError:  # no Triton
        return False
    return layers.usable()


def _lie_in(module: nn.Module, prefix: str, tensors: dict[str, Tensor], number: int) -> None:
    """Let a module's own parameters and buffers be those of a member in the stack."""
    for name, parameter in module.named_parameters(recurse=False):
        parameter.data = tensors[prefix + name].detach()[number]
    for name, _ in list(module.named_buffers(recurse=False)):
        setattr(module, name, tensors[prefix + name][number])
