"""The training loop. Whoever wants to watch it, or stop it, is an observer."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.contract.report import EpochMetrics
from app.contract.spec import Regularization, TrainingSpec
from worker.engine.errors import NonFiniteLoss
from worker.engine.observer import Observer
from worker.engine.regularize import penalty
from worker.engine.seeding import generator


def train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    training: TrainingSpec,
    regularization: Regularization | None,
    observer: Observer,
) -> tuple[EpochMetrics, ...]:
    """Train `network` in place on images and labels that lie on its device; the last, smaller batch is used too."""
    optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate, fused=True)
    shuffle = generator(training.seed, "shuffle")
    steps = math.ceil(len(labels) / training.batch_size)
    network.train()
    history = []
    for epoch in range(training.epochs):
        started, tally = time.perf_counter(), _Tally(images.device)
        order = torch.randperm(len(labels), generator=shuffle).to(images.device)
        for step, chosen in enumerate(torch.split(order, training.batch_size), start=epoch * steps + 1):
            optimizer.zero_grad()
            logits, wanted = network(images[chosen]), labels[chosen]
            loss, extra = functional.cross_entropy(logits, wanted), penalty(regularization, network.parameters())
            tally.add(logits.detach(), wanted, loss.detach(), extra.detach())
            if images.device.type == "cpu":
                # Ahead of the step that would spoil the weights. On a GPU it would stall every step: once an epoch.
                tally.refuse_non_finite(step)
            (loss + extra).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            observer.advance(step, steps * training.epochs, "steps")
        tally.refuse_non_finite((epoch + 1) * steps)
        _refuse_non_finite_state(network, (epoch + 1) * steps)
        history.append(tally.metrics(epoch + 1, time.perf_counter() - started))
        observer.record("epoch", history[-1].model_dump(mode="json"))
    return tuple(history)


class _Tally:
    """Sums over an epoch's images, kept on the device so that no step waits for a number."""

    def __init__(self, device: torch.device) -> None:
        self._images = 0
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        # Doubles: a sum of finite floats stays finite, so a sum that is not finite met a loss that was not.
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._penalty = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor, extra: Tensor) -> None:
        self._images += len(labels)
        self._correct += (logits.argmax(dim=1) == labels).sum()
        self._loss += loss.double() * len(labels)
        self._penalty += extra.double() * len(labels)

    def refuse_non_finite(self, step: int) -> None:
        if not math.isfinite(float(self._loss + self._penalty)):
            raise _non_finite("loss", step)

    def metrics(self, epoch: int, seconds: float) -> EpochMetrics:
        return EpochMetrics(
            epoch=epoch,
            loss=float(self._loss) / self._images,
            penalty=float(self._penalty) / self._images,
            accuracy=int(self._correct) / self._images,
            seconds=seconds,
        )


def _refuse_non_finite_state(network: nn.Module, step: int) -> None:
    """The loss is computed ahead of a step, so what the very last step did shows in the weights alone."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise _non_finite(name, step)


def _non_finite(what: str, step: int) -> NonFiniteLoss:
    return NonFiniteLoss(
        f"{what} is not a finite number at training step {step}: take a smaller learning_rate, "
        "a weaker penalty, or another initial checkpoint"
    )
