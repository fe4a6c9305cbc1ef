from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from worker.engine.pooling import Apart, MaxPool


def _both(images: Tensor, pool: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    images = images.clone(memory_format=torch.preserve_format).requires_grad_(True)
    pooled = pool(images)
    weights = torch.arange(pooled.numel(), dtype=torch.float32).reshape(pooled.shape)
    (pooled * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    return pooled.detach(), images.grad


@pytest.mark.parametrize("size", [(6, 4), (7, 5), (8, 9)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_pooling_for_gpus_says_what_pytorch_s_says_ties_included(
    size: tuple[int, int], layout: torch.memory_format
) -> None:
    drawn = torch.randint(0, 3, (2, 3, *size), generator=torch.Generator().manual_seed(1)).float()
    images = drawn.contiguous(memory_format=layout)

    ours = _both(images, lambda x: Apart.apply(x)[0])

    for found, expected in zip(ours, _both(images, lambda x: functional.max_pool2d(x, 2)), strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(ours, _both(images, MaxPool()), strict=True):
        assert torch.equal(found, expected)


def test_it_takes_many_networks_at_once() -> None:
    images = torch.randn(4, 2, 3, 6, 6, generator=torch.Generator().manual_seed(1))

    def of_one(one: Tensor) -> Tensor:
        return (Apart.apply(one)[0] ** 2).sum()  # type: ignore[no-any-return]

    together = torch.func.vmap(torch.func.grad(of_one))(images)

    for one, found in zip(images, together, strict=True):
        assert torch.equal(torch.func.grad(of_one)(one), found)
