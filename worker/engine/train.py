"""The training loop. Whoever wants to watch it, stop it, or go on with it later, is an observer."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.contract.report import EpochMetrics
from app.contract.spec import Regularization, TrainingSpec
from worker.engine.errors import InvalidCheckpoint, NonFiniteLoss
from worker.engine.observer import Observer
from worker.engine.regularize import penalty
from worker.engine.resume import Origin, TrainingState
from worker.engine.seeding import generator

_NOWHERE = Origin()


def train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    training: TrainingSpec,
    regularization: Regularization | None,
    observer: Observer,
    origin: Origin = _NOWHERE,
    resumed: TrainingState | None = None,
) -> tuple[EpochMetrics, ...]:
    """Train `network` in place on images and labels that lie on its device; the last, smaller batch is used too.

    `resumed` is a state that an observer kept: the training goes on from there, to the same bits as without a break.
    `origin` is written into the states of this training. Raises NonFiniteLoss, or InvalidCheckpoint when `resumed` is
    of another network.
    """
    course = _Course(network, training, images.device, origin)
    if resumed is not None:
        course.resume(resumed)
    network.train()
    steps = math.ceil(len(labels) / training.batch_size)
    while course.epoch < training.epochs:
        batches = torch.split(course.order(len(labels)).to(images.device), training.batch_size)
        for chosen in batches[course.step :]:
            course.advance(images[chosen], labels[chosen], regularization)
            done = course.epoch * steps + course.step
            if images.device.type == "cpu":
                # Ahead of the step that would spoil the weights. On a GPU it would stall every step: once an epoch.
                course.tally.refuse_non_finite(done)
            course.optimizer.step()
            observer.advance(done, steps * training.epochs, "steps")
            if course.step < steps:
                observer.checkpoint(course.state, epoch_ended=False)
        observer.record("epoch", course.end_epoch(steps).model_dump(mode="json"))
        observer.checkpoint(course.state, epoch_ended=True)
    return tuple(course.history)


class _Course:
    """Where a training stands."""

    def __init__(self, network: nn.Module, training: TrainingSpec, device: torch.device, origin: Origin) -> None:
        self.network, self._device, self._origin = network, device, origin
        self.optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate, fused=True)
        self.epoch, self.step = 0, 0
        self.tally = _Tally(device)
        self.history: list[EpochMetrics] = []
        self._shuffle = generator(training.seed, "shuffle")
        self._before_order = self._shuffle.get_state()
        self._started = time.perf_counter()

    def order(self, count: int) -> Tensor:
        """The order of this epoch's images; the same when it is asked for again in the same epoch."""
        self._shuffle.set_state(self._before_order)
        return torch.randperm(count, generator=self._shuffle)

    def advance(self, images: Tensor, labels: Tensor, regularization: Regularization | None) -> None:
        """Forward and backward; the optimizer's step is the caller's."""
        self.optimizer.zero_grad()
        logits = self.network(images)
        loss, extra = functional.cross_entropy(logits, labels), penalty(regularization, self.network.parameters())
        self.tally.add(logits.detach(), labels, loss.detach(), extra.detach())
        (loss + extra).backward()  # type: ignore[no-untyped-call]
        self.step += 1

    def end_epoch(self, steps: int) -> EpochMetrics:
        done = (self.epoch + 1) * steps
        self.tally.refuse_non_finite(done)
        _refuse_non_finite_state(self.network, done)
        metrics = self.tally.metrics(self.epoch + 1, time.perf_counter() - self._started)
        self.history.append(metrics)
        self.epoch, self.step, self.tally = self.epoch + 1, 0, _Tally(self._device)
        self._before_order, self._started = self._shuffle.get_state(), time.perf_counter()
        return metrics

    def state(self) -> TrainingState:
        return TrainingState(
            network=dict(self.network.state_dict()),
            optimizer=self.optimizer.state_dict(),
            shuffle=self._before_order,
            epoch=self.epoch,
            step=self.step,
            sums=self.tally.sums(),
            seconds=time.perf_counter() - self._started,
            history=tuple(self.history),
            origin=self._origin,
        )

    def resume(self, state: TrainingState) -> None:
        try:
            self.network.load_state_dict(state.network)
            self.optimizer.load_state_dict(state.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InvalidCheckpoint(f"the training state is of another network: {error}") from error
        self.epoch, self.step, self.history = state.epoch, state.step, list(state.history)
        self.tally = _Tally(self._device, state.sums)
        self._before_order = state.shuffle
        self._started = time.perf_counter() - state.seconds


class _Tally:
    """Sums over an epoch's images, kept on the device so that no step waits for a number."""

    def __init__(self, device: torch.device, sums: dict[str, float] | None = None) -> None:
        sums = sums or {"images": 0, "correct": 0, "loss": 0.0, "penalty": 0.0}
        self._images = int(sums["images"])
        self._correct = torch.tensor(sums["correct"], dtype=torch.int64, device=device)
        # Doubles: a sum of finite floats stays finite, so a sum that is not finite met a loss that was not.
        self._loss = torch.tensor(sums["loss"], dtype=torch.float64, device=device)
        self._penalty = torch.tensor(sums["penalty"], dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor, extra: Tensor) -> None:
        self._images += len(labels)
        self._correct += (logits.argmax(dim=1) == labels).sum()
        self._loss += loss.double() * len(labels)
        self._penalty += extra.double() * len(labels)

    def sums(self) -> dict[str, float]:
        return {
            "images": self._images,
            "correct": int(self._correct),
            "loss": float(self._loss),
            "penalty": float(self._penalty),
        }

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
