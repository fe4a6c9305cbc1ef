"""The training loop. Whoever wants to watch it, stop it, or go on with it later, is an observer."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from app.contract.report import Accuracy, EpochMetrics
from worker.engine.augment import draw_shifts, shifted
from worker.engine.errors import InvalidCheckpoint, NonFiniteLoss
from worker.engine.evaluate import evaluate
from worker.engine.objective import objective
from worker.engine.observer import Observer, Quiet
from worker.engine.optimize import learning_rate, optimizer
from worker.engine.plan import Course, of_time
from worker.engine.progress import Progress, state_of
from worker.engine.pruning import Mask, prune
from worker.engine.pruning.gradients import gradients_for
from worker.engine.regularize import penalty, shrink
from worker.engine.resume import Best, Origin, TrainingState
from worker.engine.seeding import generator

_NOWHERE = Origin()


@dataclass(frozen=True, eq=False)
class Examples:
    """Images [N, C, H, W] and labels [N] on the network's device; of the validation images perhaps none."""

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor


def train(
    network: nn.Module,
    examples: Examples,
    course: Course,
    progress: Progress,
    observer: Observer,
    origin: Origin = _NOWHERE,
    resumed: TrainingState | None = None,
    teacher: nn.Module | None = None,
) -> None:
    """Train `network` in place, by the course, and note in `progress` what came of it. The last, smaller batch of an
    epoch is used too.

    `teacher` is the network that the course's distillation names, on the same device and in evaluation mode.
    `progress.mask` holds throughout. `resumed` is a state that an observer kept, whose progress is `progress`: the
    training goes on from there, to the same bits as without a break. `origin` is written into the states of this
    training. Raises NonFiniteLoss, or InvalidCheckpoint when `resumed` is of another network.
    """
    training = _Training(network, examples, course, progress, observer, origin, teacher)
    if resumed is not None:
        training.resume(resumed)
    settings, steps, device = course.settings, training.steps_an_epoch, examples.images.device
    while training.epoch < settings.epochs:
        training.begin_epoch()
        for chosen in training.batches():
            training.advance(chosen)
            done = training.epoch * steps + training.step
            if device.type == "cpu":
                # Ahead of the step that would spoil the weights. On a GPU it would stall every step: once an epoch.
                training.tally.refuse_non_finite(done)
            training.descend(done)
            observer.advance(done, steps * settings.epochs, "steps")
            if training.step < steps:
                observer.checkpoint(training.state, epoch_ended=False)
        observer.record("epoch", training.end_epoch().model_dump(mode="json"))
        observer.checkpoint(training.state, epoch_ended=True)
    training.end()


class _Training:
    """Where a training stands."""

    def __init__(
        self,
        network: nn.Module,
        examples: Examples,
        course: Course,
        progress: Progress,
        observer: Observer,
        origin: Origin,
        teacher: nn.Module | None,
    ) -> None:
        self._observer, self._teacher = observer, teacher
        self.network, self._examples, self._progress, self._origin = network, examples, progress, origin
        self._course, self._settings, self._gradual = course, course.settings, course.schedule
        self._device = examples.images.device
        self._parameters = dict(network.named_parameters())
        self._shapes = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        self._optimizer = optimizer(self._settings, self._parameters.values())
        self.steps_an_epoch = math.ceil(len(examples.labels) / self._settings.batch_size)
        self._steps_before = progress.steps
        self.epoch, self.step = 0, 0
        self.tally = _Tally(self._device)
        self._best: Best | None = None
        self._shuffle = generator(self._settings.seed, f"shuffle{course.stream}")
        self._before_order = self._shuffle.get_state()
        self._started = time.perf_counter()
        self._dropped = self._entries_to_hold()
        self._rate = self._settings.learning_rate

    # One step

    def batches(self) -> tuple[Tensor, ...]:
        """Of this epoch, those still to come; in the same order when it is asked for again in the same epoch."""
        self._shuffle.set_state(self._before_order)
        count = len(self._examples.labels)
        order = torch.randperm(count, generator=self._shuffle).to(self._device)
        if self._settings.random_shift:
            stream = generator(self._settings.seed, f"shift{self._course.stream}/{self.epoch}")
            self._shifts = draw_shifts(count, self._settings.random_shift, stream).to(self._device)
        return torch.split(order, self._settings.batch_size)[self.step :]

    def advance(self, chosen: Tensor) -> None:
        """Forward and backward of one batch."""
        self._optimizer.zero_grad()
        images, labels = self._examples.images[chosen], self._examples.labels[chosen]
        if most := self._settings.random_shift:
            images = shifted(images, self._shifts[chosen], most)
        taught = self._taught(images)  # first, while no activations of the network are kept
        logits = self.network(images)
        loss = objective(self._settings, logits, labels, taught)
        extra = penalty(self._course.regularization, self._parameters)
        self.tally.add(logits.detach(), labels, loss.detach(), extra.detach())
        (loss + extra).backward()  # type: ignore[no-untyped-call]
        self.step += 1

    @torch.no_grad()
    def _taught(self, images: Tensor) -> Tensor | None:
        return None if self._teacher is None else self._teacher(images)

    def descend(self, done: int) -> None:
        """The optimizer's step, which is the course's `done`-th, and all that follows it."""
        rate = learning_rate(self._settings, done - 1, self.steps_an_epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._rate = rate
        self._optimizer.step()
        shrink(self._course.regularization, self._parameters, rate)
        self._progress.steps = self._steps_before + done
        self._hold()  # scores are of the network with its mask on
        if self._prune(done):
            self._hold()

    def _prune(self, done: int) -> bool:
        """What the gradual schedule wants after so many steps. Whether it wanted anything."""
        pruning, schedule = self._course.gradual, self._gradual
        if pruning is None or schedule is None:
            return False
        begin, end = (epoch * self.steps_an_epoch for epoch in (schedule.begin_epoch, schedule.end_epoch))
        if not begin < done <= end or ((done - begin) % schedule.every_steps and done != end):
            return False
        share = float(Fraction(done - begin, end - begin))
        sparsity = None if done == end else of_time(pruning, self._shapes, self._course.begun, share)
        # A course with a gradual pruning begins without a mask, or with that of an earlier job.
        mask = (self._progress.mask or Mask.full(self._parameters)).to(self._device)
        state = {name: tensor.detach() for name, tensor in self.network.state_dict().items()}
        images, labels = self._examples.images, self._examples.labels
        batches = gradients_for(pruning, self.network, images, labels, self._observer.check)
        mask = prune(pruning, state, mask, sparsity=sparsity, gradients=batches)
        self._progress.mask = mask.to(torch.device("cpu"))
        self._dropped = self._entries_to_hold()
        return True

    def _entries_to_hold(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Parameters that a mask holds at zero somewhere, with the entries where."""
        if self._progress.mask is None:
            return []
        dropped = {name: ~keep for name, keep in self._progress.mask.to(self._device).items()}
        return [(self._parameters[name], entries) for name, entries in dropped.items() if bool(entries.any())]

    @torch.no_grad()
    def _hold(self) -> None:
        """Momentum would bring a pruned weight back, so the mask holds in the optimizer's state too."""
        for parameter, entries in self._dropped:
            parameter.masked_fill_(entries, 0)
            for value in self._optimizer.state[parameter].values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(entries, 0)

    # One epoch

    def begin_epoch(self) -> None:
        """Keep what other stages need of the network at this point; the same when the epoch is begun again."""
        if self.step == 0:
            if self._course.keep_epoch == self.epoch:
                self._progress.early = state_of(self.network)
            if self._gradual is not None and self._gradual.begin_epoch == self.epoch:
                self._progress.dense = state_of(self.network)
        self.network.train()

    def end_epoch(self) -> EpochMetrics:
        done = (self.epoch + 1) * self.steps_an_epoch
        self.tally.refuse_non_finite(done)
        _refuse_non_finite_state(self.network, done)
        validated = self._validate()
        metrics = self.tally.metrics(self.epoch + 1, time.perf_counter() - self._started).model_copy(
            update={
                "course": self._course.name,
                "round": self._course.round,
                "learning_rate": self._rate,
                "sparsity": self._progress.mask.sparsity if self._progress.mask is not None else 0.0,
                "validation_loss": validated and validated.loss,
                "validation_accuracy": validated and validated.accuracy,
            }
        )
        self._progress.history.append(metrics)
        self.epoch, self.step, self.tally = self.epoch + 1, 0, _Tally(self._device)
        if validated is not None and self._is_better(validated):
            self._best = Best(self.epoch, validated.correct, state_of(self.network))
        self._before_order, self._started = self._shuffle.get_state(), time.perf_counter()
        return metrics

    def _validate(self) -> Accuracy | None:
        if not len(self._examples.validation_labels):
            return None
        images, labels = self._examples.validation_images, self._examples.validation_labels
        return evaluate(self.network, images, labels, Quiet(self._observer), of="validation").accuracy

    def _is_better(self, validated: Accuracy) -> bool:
        """Whether the epoch that has just ended is the one to choose so far. Of equals the first is; and none is before
        all pruning of this course is done."""
        if self._settings.select == "last" or (self._gradual is not None and self.epoch < self._gradual.end_epoch):
            return False
        return self._best is None or validated.correct > self._best.correct

    def end(self) -> None:
        if self._course.keep_epoch == self.epoch:
            self._progress.early = state_of(self.network)
        if self._best is not None:
            self.network.load_state_dict(self._best.network)

    # From one process to the next

    def state(self) -> TrainingState:
        return TrainingState(
            network=dict(self.network.state_dict()),
            optimizer=self._optimizer.state_dict(),
            shuffle=self._before_order,
            epoch=self.epoch,
            step=self.step,
            sums=self.tally.sums(),
            seconds=time.perf_counter() - self._started,
            best=self._best,
            progress=self._progress,
            origin=self._origin,
        )

    def resume(self, state: TrainingState) -> None:
        try:
            self.network.load_state_dict(state.network)
            self._optimizer.load_state_dict(state.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InvalidCheckpoint(f"the training state is of another network: {error}") from error
        self.epoch, self.step, self._best = state.epoch, state.step, state.best
        self._steps_before = self._progress.steps - (state.epoch * self.steps_an_epoch + state.step)
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
            raise NonFiniteLoss.at_step(step)

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
            raise NonFiniteLoss.at_step(step, name)
