"""Measures a network on labelled images."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.contract.report import Accuracy
from worker.engine.errors import NonFiniteLoss
from worker.engine.observer import Observer

BATCH = 500


class Measured(NamedTuple):
    accuracy: Accuracy
    predictions: Tensor
    """[N]: the class of the largest logit of each image, on the CPU."""


@torch.no_grad()
def evaluate(network: nn.Module, images: Tensor, labels: Tensor, observer: Observer, of: str = "test") -> Measured:
    """Accuracy and mean cross-entropy in evaluation mode (BatchNorm by its running statistics).

    `of` names the images in the message of NonFiniteLoss.
    """
    network.eval()
    predicted = []
    loss = torch.zeros((), dtype=torch.float64, device=images.device)
    starts = range(0, len(labels), BATCH)
    for done, start in enumerate(starts, start=1):
        wanted = labels[start : start + BATCH]
        logits = network(images[start : start + BATCH])
        predicted.append(logits.argmax(dim=1))
        loss += functional.cross_entropy(logits, wanted, reduction="sum").double()
        observer.advance(done, len(starts), "batches")
    predictions = torch.cat(predicted)
    accuracy = _accuracy(int((predictions == labels).sum()), len(labels), float(loss) / len(labels), of)
    return Measured(accuracy, predictions.cpu())


def _accuracy(correct: int, total: int, loss: float, of: str) -> Accuracy:
    if not math.isfinite(loss):
        raise NonFiniteLoss(
            f"the loss on the {of} images is not a finite number: the network's values are too large; "
            "train with a smaller learning_rate, or take another checkpoint"
        )
    return Accuracy(correct=correct, total=total, accuracy=correct / total, loss=loss)
