"""Images as they are kept, and as a network takes them."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled(images: Tensor) -> Tensor:
    """Bytes, of 0 to 255, as float32 in [0, 1]; what is not bytes is taken to be that already.

    A quarter of the memory holds a data set as bytes, and to make floats of a batch takes some thousandths of a step.
    """
    return images.float().div_(255) if images.dtype is torch.uint8 else images
