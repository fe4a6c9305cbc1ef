"""Kernels of our own are tried on a worker's GPU before its first job: a GPU, a driver or a PyTorch that is new to them
may not compile them, not launch them, or not compute what they say. PyTorch's own are slower, and right. (A kernel that
writes where it may not breaks all of its process, for which this is no remedy.)"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from app.contract.network import MNIST_ENDS, MNIST_SHAPE
from app.contract.spec import ModelSpec
from app.contract.training import TrainingSpec
from worker.engine import kernels
from worker.engine.errors import OutOfMemory, translated
from worker.engine.model import fresh
from worker.engine.seeding import generator
from worker.engine.together.stack import Stack

MEMBERS = 16
"""As many as a worker trains together by default: for few threads other kernels are compiled than for many."""

TOLERANCE = 0.05
"""Of a gradient's length. One channel that is wrong, or a border, changes a fifth; rounding changes 1e-5, or, where it
turns over a rectifier or a maximum that is on the verge, up to 0.015 (of twelve seeds)."""

logger = logging.getLogger(__name__)


def try_kernels(on: torch.device, *, members: int = MEMBERS, tolerance: float = TOLERANCE) -> bool:
    """When they fall through, this process does not use them from then on, and its log says so. False when there was no
    memory to try them in: it does not use them either, and is to try again, since others may have it for a moment."""
    was_tried = True
    kernels.TRUSTED.set()  # they are what is computed with
    try:
        with translated():
            found = difference(on, members)
    except OutOfMemory:
        was_tried = False
        logger.warning("no memory to try own kernels on this device: until there is, PyTorch's are used")
    except Exception:  # of the compiler or the driver: no job should meet it
        logger.exception("own kernels do not run on this device: PyTorch's are used, training is slower")
    else:
        if found <= tolerance:
            return True
        logger.error(
            "own kernels compute something else on this device: PyTorch's are used, training is slower",
            extra={"difference": f"{found:.3g}", "tolerance": tolerance},
        )
    kernels.TRUSTED.clear()
    return was_tried


def difference(on: torch.device, members: int = MEMBERS) -> float:
    """Between what a step computes of default networks, one alone and so many as one, on that device and by PyTorch on
    a CPU in double precision: the largest, as `apart` has it."""
    batch = TrainingSpec(epochs=1).batch_size
    stream = generator(0, "trial")
    shape = (MNIST_SHAPE.channels, MNIST_SHAPE.height, MNIST_SHAPE.width)
    images = torch.rand(members, batch, *shape, generator=stream)
    slopes = torch.randn(members, batch, MNIST_ENDS.classes, generator=stream)
    networks = [fresh(ModelSpec(), seed) for seed in range(members)]
    together = _together(networks, images, slopes, on)
    first, last = (_exact(networks[number], images[number], slopes[number]) for number in (0, -1))
    return max(
        apart(_alone(networks[0], images[0], slopes[0], on), first),
        apart({name: tensor[0] for name, tensor in together.items()}, first),
        apart({name: tensor[-1] for name, tensor in together.items()}, last),
    )


def apart(ours: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """How far our tensors are from the exact ones at most, each in parts of its length; infinite where there is what is
    no number. Gradients of biases before BatchNorm, which takes them away, are nothing but rounding."""
    parts = [
        float((ours[name].cpu().double() - exact[name]).norm() / exact[name].norm())
        for name in exact
        if not (name.startswith("layer") and name.endswith("0.bias"))
    ]
    return max(math.inf if math.isnan(part) else part for part in parts)


def _exact(network: nn.Module, images: Tensor, slopes: Tensor) -> dict[str, Tensor]:
    return _alone(copy.deepcopy(network).double(), images.double(), slopes.double(), torch.device("cpu"))


def _alone(network: nn.Module, images: Tensor, slopes: Tensor, on: torch.device) -> dict[str, Tensor]:
    there = copy.deepcopy(network).to(on).train()
    gradients = _gradients(dict(there.named_parameters()), there(images.to(on)), slopes.to(on))
    return gradients | _statistics(dict(there.named_buffers()))


def _together(networks: Sequence[nn.Module], images: Tensor, slopes: Tensor, on: torch.device) -> dict[str, Tensor]:
    """Each tensor has the networks as its first dimension."""
    stack = Stack([copy.deepcopy(network).to(on) for network in networks])
    gradients = _gradients(stack.parameters, stack.logits(images.to(on)), slopes.to(on))
    return gradients | _statistics(stack.tensors)


def _gradients(parameters: Mapping[str, Tensor], logits: Tensor, slopes: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad((logits * slopes).sum(), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def _statistics(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BatchNorm's, as they have moved on."""
    return {name: tensor for name, tensor in tensors.items() if "running_" in name}
