"""Sums over an epoch's images, and what is told when they are no numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from app.contract.report import EpochMetrics
from worker.engine.errors import NonFiniteLoss


class Tally:
    """Kept on the device, so that no step waits for a number, and in the same tensors throughout."""

    def __init__(self, device: torch.device) -> None:
        self.images = 0
        """Added to by whoever adds to the sums."""
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        # Doubles: a sum of finite floats stays finite, so a sum that is not finite met a loss that was not.
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._penalty = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self._correct, self._loss, self._penalty

    def set(self, sums: dict[str, float]) -> None:
        self.images = int(sums["images"])
        self._correct.fill_(int(sums["correct"]))
        self._loss.fill_(sums["loss"])
        self._penalty.fill_(sums["penalty"])

    def clear(self) -> None:
        self.set({"images": 0, "correct": 0, "loss": 0.0, "penalty": 0.0})

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor, extra: Tensor) -> None:
        self._correct += (logits.argmax(dim=1) == labels).sum()
        self._loss += loss.double() * len(labels)
        self._penalty += extra.double() * len(labels)

    def sums(self) -> dict[str, float]:
        return {
            "images": self.images,
            "correct": int(self._correct),
            "loss": float(self._loss),
            "penalty": float(self._penalty),
        }

    def refuse_non_finite(self, step: int) -> None:
        if not math.isfinite(float(self._loss + self._penalty)):
            raise NonFiniteLoss.at_step(step)

    def metrics(self, epoch: int, seconds: float) -> EpochMetrics:
        sums = self.sums()
        return EpochMetrics(
            epoch=epoch,
            loss=sums["loss"] / self.images,
            penalty=sums["penalty"] / self.images,
            accuracy=int(sums["correct"]) / self.images,
            seconds=seconds,
        )


def refuse_non_finite_state(network: nn.Module, step: int) -> None:
    """The loss is computed ahead of a step, so what the very last step did shows in the weights alone."""
    floats = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in floats.values()]).tolist()
    for name, each in zip(floats, finite, strict=True):
        if not each:
            raise NonFiniteLoss.at_step(step, name)
