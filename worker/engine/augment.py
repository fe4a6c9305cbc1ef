"""Random shifts of training images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def draw_shifts(count: int, most: int, generator: torch.Generator) -> Tensor:
    """[count, 2]: rows and columns to move each image by, each evenly from −most to most."""
    return torch.randint(-most, most + 1, (count, 2), generator=generator)


def shifted(images: Tensor, shifts: Tensor, most: int) -> Tensor:
    """[N, C, H, W] moved down and right by [N, 2], at most `most` each; zeros come in, what leaves is lost."""
    height, width = images.shape[2:]
    padded = functional.pad(images, (most, most, most, most)).permute(0, 2, 3, 1)
    rows = torch.arange(height, device=images.device) + (most - shifts[:, :1])
    columns = torch.arange(width, device=images.device) + (most - shifts[:, 1:])
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
