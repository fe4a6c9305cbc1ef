"""How a convolution's work is cut for a GPU. What its kernels compute, `test_kernels.py` and `test_cuda.py` check."""

from __future__ import annotations

import itertools

import pytest
import torch

from app.contract.network import KERNELS, LEAST_SIDE, MOST_SIDE
from worker.engine.convolve import Outputs, Weights

SIDES = (LEAST_SIDE, 9, 13, 14, 28, 31, 33, 50, MOST_SIDE)


@pytest.mark.parametrize("kernel", sorted(set(KERNELS)))
@pytest.mark.parametrize("width_in", [1, 3, 16, 40])
def test_images_of_every_size_are_cut_into_blocks_that_a_gpu_takes(kernel: int, width_in: int) -> None:
    weight = torch.empty(5, width_in, kernel, kernel, device="meta")
    for height, width in itertools.product(SIDES, SIDES):
        for images in (1, 10_000):
            outputs = Outputs.of(torch.empty(images, width_in, height, width, device="meta"), weight, processors=100)
            assert outputs.each == (4 if images == 1 else 8)
            assert outputs.stacks * outputs.tall == outputs.rows <= height + outputs.stacks - 1
            assert outputs.threads <= 512
            assert outputs.bytes <= 48 * 1024
        weights = Weights.of(torch.empty(1, width_in, height, width, device="meta"), weight)
        assert weights.rows % weights.slices == 0  # no slice has a row more than another
        assert weights.threads <= 512
        assert weights.bytes <= 48 * 1024
