"""The training loop. Whoever wants to watch it, stop it, or go on with it later, is an observer."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from app.contract.report import Accuracy, EpochMetrics
from worker.engine.augment import draw_shifts
from worker.engine.captured import CapturedStep
from worker.engine.errors import InvalidCheckpoint
from worker.engine.evaluate import evaluate
from worker.engine.observer import Observer, Quiet
from worker.engine.optimize import learning_rate
from worker.engine.plan import Course, of_time
from worker.engine.progress import Progress, state_of
from worker.engine.pruning import Mask, prune
from worker.engine.pruning.gradients import gradients_for
from worker.engine.resume import Best, Origin, TrainingState
from worker.engine.seeding import generator
from worker.engine.step import Step
from worker.engine.tally import refuse_non_finite_state

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
    *,
    capture: bool = True,
) -> None:
    """Train `network` in place, by the course, and note in `progress` what came of it. The last, smaller batch of an
    epoch is used too.

    `teacher` is the network that the course's distillation names, on the same device and in evaluation mode.
    `progress.mask` holds throughout. `resumed` is a state that an observer kept, whose progress is `progress`: the
    training goes on from there, to the same bits as without a break. `origin` is written into the states of this
    training. On a GPU whole steps are captured and replayed; without `capture` they are computed one operation after
    another, to the same bits. Raises NonFiniteLoss, or InvalidCheckpoint when `resumed` is of another network.
    """
    training = _Training(network, examples, course, progress, observer, origin, teacher, capture=capture)
    if resumed is not None:
        training.resume(resumed)
    settings, steps = course.settings, training.steps_an_epoch
    while training.epoch < settings.epochs:
        training.begin_epoch()
        while training.step < steps:
            done = training.advance()
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
        *,
        capture: bool,
    ) -> None:
        self.network, self._examples, self._progress, self._origin = network, examples, progress, origin
        self._course, self._settings, self._gradual = course, course.settings, course.schedule
        self._observer, self._device = observer, examples.images.device
        of = (network, examples.images, examples.labels, course, teacher)
        self._step = CapturedStep(*of, capture=capture) if self._device.type == "cuda" else Step(*of)
        self._step.mask(progress.mask)
        self._shapes = {name: tuple(parameter.shape) for name, parameter in self._step.parameters.items()}
        self.steps_an_epoch = math.ceil(len(examples.labels) / self._settings.batch_size)
        self._steps_before = progress.steps
        self.epoch, self.step = 0, 0
        self._best: Best | None = None
        self._shuffle = generator(self._settings.seed, f"shuffle{course.stream}")
        self._before_order = self._shuffle.get_state()
        self._started = time.perf_counter()

    # One step

    def advance(self) -> int:
        """The next step, and all that follows it. Of how many steps of the course it is the last."""
        done = self.epoch * self.steps_an_epoch + self.step + 1
        self._step.take(self.step, done)
        self.step += 1
        self._progress.steps = self._steps_before + done
        if self._prune(done):  # scores are of the network with its mask on
            self._step.hold()
        return done

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
        state = state_of(self.network)
        mask = self._progress.mask or Mask.full({name: state[name] for name in self._step.parameters})
        images, labels = self._examples.images, self._examples.labels
        batches = gradients_for(pruning, self.network, images, labels, self._observer.check)
        self._progress.mask = prune(pruning, state, mask, sparsity=sparsity, gradients=batches)
        self._step.mask(self._progress.mask)
        return True

    # One epoch

    def begin_epoch(self) -> None:
        """Keep what other stages need of the network at this point, and draw the order of the images; the same when the
        epoch is begun again."""
        if self.step == 0:
            if self._course.keep_epoch == self.epoch:
                self._progress.early = state_of(self.network)
            if self._gradual is not None and self._gradual.begin_epoch == self.epoch:
                self._progress.dense = state_of(self.network)
        self.network.train()
        settings, count, steps = self._settings, len(self._examples.labels), self.steps_an_epoch
        self._shuffle.set_state(self._before_order)
        order, shifts = torch.randperm(count, generator=self._shuffle).to(self._device), None
        if settings.random_shift:
            stream = generator(settings.seed, f"shift{self._course.stream}/{self.epoch}")
            shifts = draw_shifts(count, settings.random_shift, stream).to(self._device)
        self._rates = [learning_rate(settings, self.epoch * steps + step, steps) for step in range(steps)]
        self._step.begin(order, shifts, self._rates, self.step)

    def end_epoch(self) -> EpochMetrics:
        done = (self.epoch + 1) * self.steps_an_epoch
        tally = self._step.tally
        tally.refuse_non_finite(done)
        refuse_non_finite_state(self.network, done)
        validated = self._validate()
        metrics = tally.metrics(self.epoch + 1, time.perf_counter() - self._started).model_copy(
            update={
                "course": self._course.name,
                "round": self._course.round,
                "learning_rate": self._rates[-1],
                "sparsity": self._progress.mask.sparsity if self._progress.mask is not None else 0.0,
                "validation_loss": validated and validated.loss,
                "validation_accuracy": validated and validated.accuracy,
            }
        )
        self._progress.history.append(metrics)
        self.epoch, self.step = self.epoch + 1, 0
        tally.clear()
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
            optimizer=self._step.optimizer.state_dict(),
            shuffle=self._before_order,
            epoch=self.epoch,
            step=self.step,
            sums=self._step.tally.sums(),
            seconds=time.perf_counter() - self._started,
            best=self._best,
            progress=self._progress,
            origin=self._origin,
        )

    def resume(self, state: TrainingState) -> None:
        try:
            self._step.load(state.network, state.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InvalidCheckpoint(f"the training state is of another network: {error}") from error
        self.epoch, self.step, self._best = state.epoch, state.step, state.best
        self._steps_before = self._progress.steps - (state.epoch * self.steps_an_epoch + state.step)
        self._step.tally.set(state.sums)
        self._before_order = state.shuffle
        self._started = time.perf_counter() - state.seconds
