"""Kernels of our own are tried on a worker's GPU before its first job: a GPU, a driver or a PyTorch that is new to them
may not compile them, or not compute what they say. PyTorch's own are slower, and right."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from app.contract.network import MNIST_ENDS, MNIST_SHAPE
from app.contract.spec import ModelSpec
from worker.engine import kernels
from worker.engine.model import fresh
from worker.engine.seeding import generator
from worker.engine.together.stack import Stack

BATCH = 128
"""The default, so that no other kernels are compiled than a job with defaults needs anyway."""

TOLERANCE = 0.05
"""Of a gradient's length. One channel that is wrong, or a border, changes a fifth; rounding changes 1e-5, or, where it
turns over a rectifier or a maximum that is on the verge, up to 0.015 (of twelve seeds)."""

logger = logging.getLogger(__name__)


def try_kernels(on: torch.device) -> None:
    """When they fall through, this process does not use them from then on, and its log says so."""
    try:
        apart = difference(on)
    except Exception:  # of the compiler, of the driver, of a kernel: no job should meet it
        logger.exception("own kernels do not run on this device: PyTorch's are used, training is slower")
    else:
        if apart <= TOLERANCE:  # which no NaN is
            return
        logger.error(
            "own kernels compute something else on this device: PyTorch's are used, training is slower",
            extra={"apart": apart, "tolerance": TOLERANCE},
        )
    kernels.TRUSTED.clear()


def difference(on: torch.device) -> float:
    """Between the gradients of default networks, one alone and two as one, on that device and by PyTorch on a CPU in
    double precision: the largest, as `apart` has it."""
    stream = generator(0, "trial")
    shape = (MNIST_SHAPE.channels, MNIST_SHAPE.height, MNIST_SHAPE.width)
    images = torch.rand(BATCH, *shape, generator=stream)
    slopes = torch.randn(BATCH, MNIST_ENDS.classes, generator=stream)
    # As many images in all: what is launched is cut into the same blocks.
    halves, their_slopes = (torch.stack(each.chunk(2)) for each in (images, slopes))
    networks = [fresh(ModelSpec(), seed) for seed in (0, 1)]
    found = [apart(_alone(networks[0], images, slopes, on), _exact(networks[0], images, slopes))]
    together = _together(networks, halves, their_slopes, on)
    for number, network in enumerate(networks):
        own = {name: gradient[number] for name, gradient in together.items()}
        found.append(apart(own, _exact(network, halves[number], their_slopes[number])))
    return max(found)


def apart(ours: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """How far the gradients of ours are from the exact ones at most, each in parts of its length; infinite where
    there is what is no number. Those of biases before BatchNorm, which takes them away, are nothing but rounding."""
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
    return _gradients(dict(there.named_parameters()), there(images.to(on)), slopes.to(on))


def _together(networks: Sequence[nn.Module], images: Tensor, slopes: Tensor, on: torch.device) -> dict[str, Tensor]:
    stack = Stack([copy.deepcopy(network).to(on) for network in networks])
    return _gradients(stack.parameters, stack.logits(images.to(on)), slopes.to(on))


def _gradients(parameters: Mapping[str, Tensor], logits: Tensor, slopes: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad((logits * slopes).sum(), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))
