"""Pruning strategies, one a file. Each is pure: (parameters, tensors, mask) → mask."""

from worker.engine.pruning.mask import Mask
from worker.engine.pruning.threshold import eligible, prune

__all__ = ["Mask", "eligible", "prune"]
