"""Measures a network on labelled images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.contract.report import Accuracy
from worker.engine.errors import NonFiniteLoss
from worker.engine.observer import Observer

BATCH = 500


@torch.no_grad()
def evaluate(network: nn.Module, images: Tensor, labels: Tensor, observer: Observer) -> Accuracy:
    """Accuracy and mean cross-entropy in evaluation mode (BatchNorm by its running statistics)."""
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    loss = torch.zeros((), dtype=torch.float64, device=images.device)
    starts = range(0, len(labels), BATCH)
    for done, start in enumerate(starts, start=1):
        wanted = labels[start : start + BATCH]
        logits = network(images[start : start + BATCH])
        correct += (logits.argmax(dim=1) == wanted).sum()
        loss += functional.cross_entropy(logits, wanted, reduction="sum").double()
        observer.advance(done, len(starts), "batches")
    return _accuracy(int(correct), len(labels), float(loss) / len(labels))


def _accuracy(correct: int, total: int, loss: float) -> Accuracy:
    if not math.isfinite(loss):
        raise NonFiniteLoss(
            "the loss on the test images is not a finite number: the network's values are too large; "
            "train with a smaller learning_rate, or take another checkpoint"
        )
    return Accuracy(correct=correct, total=total, accuracy=correct / total, loss=loss)
