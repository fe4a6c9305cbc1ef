"""The training loop for several members at once. Each comes to what `worker.engine.train` makes of it alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from app.contract.report import Accuracy, EpochMetrics
from worker.engine.augment import draw_shifts
from worker.engine.errors import InvalidCheckpoint, NonFiniteLoss
from worker.engine.evaluate import evaluate
from worker.engine.observer import Observer, Quiet
from worker.engine.optimize import learning_rate
from worker.engine.plan import Course
from worker.engine.progress import Progress, state_of
from worker.engine.resume import Best, Origin, TrainingState
from worker.engine.seeding import generator
from worker.engine.together.fit import misfit
from worker.engine.together.stack import Stack
from worker.engine.together.steps import Steps
from worker.engine.train import Examples

_NOWHERE = Origin()
_SILENT = Observer()


@dataclass(frozen=True, eq=False)
class Member:
    """One of those that are trained together: what `train` takes of each alone, but the examples, which are shared."""

    network: nn.Module
    course: Course
    progress: Progress
    observer: Observer = _SILENT
    origin: Origin = _NOWHERE
    resumed: TrainingState | None = None


Left = Callable[[int, Exception], object]


def train_together(
    members: Sequence[Member], examples: Examples, left: Left = lambda _, __: None
) -> tuple[Exception | None, ...]:
    """Train the members' networks in place, each by its course, and note in its `progress` what came of it: what
    `train` does to each alone, to rounding. Returns for each why it did not come to its end, if it did not: a
    NonFiniteLoss, or what its observer has raised. It is left as it was then, `left` is told at once, with its number
    and the reason, and the others go on; when none is left, nothing more is done.

    Each member's observer hears what it would of a training alone. With `resumed` states, which must stand at the same
    step of the course and have the progress that the members have, the training goes on from there, to the same bits as
    these members would come to without a break. Raises ValueError when the members cannot be trained together, see
    `unfit`, and InvalidCheckpoint when a state is of another network.
    """
    if reason := unfit(members):
        raise ValueError(f"these members cannot be trained together: {reason}")
    training = _Training(members, examples, left)
    while training.epoch < training.settings.epochs and training.going():
        training.begin_epoch()
        for size in training.batches():
            training.advance(size)
            if not training.going():
                break
        else:
            training.end_epoch()
    return training.end()


def unfit(members: Sequence[Member]) -> str | None:
    """Why these cannot be trained together; None when they can."""
    return misfit([member.course for member in members]) or _other_shape(members) or _other_step(members)


def _other_shape(members: Sequence[Member]) -> str | None:
    shapes = [{name: each.shape for name, each in member.network.state_dict().items()} for member in members]
    other = next((number for number, each in enumerate(shapes) if each != shapes[0]), None)
    return None if other is None else f"member {other} has other widths than member 0"


def _other_step(members: Sequence[Member]) -> str | None:
    steps = [None if (state := member.resumed) is None else (state.epoch, state.step) for member in members]
    other = next((number for number, each in enumerate(steps) if each != steps[0]), None)
    return None if other is None else f"member {other} goes on from another step than member 0"


@dataclass(eq=False)
class _Standing:
    """Where one member stands."""

    member: Member
    network: nn.Module
    """Lies in the stack."""
    steps_before: int
    shuffle: torch.Generator
    before_order: Tensor
    best: Best | None = None
    failure: Exception | None = None
    left: dict[str, Tensor] | None = None
    """The network as it was when it failed, or left."""

    @property
    def course(self) -> Course:
        return self.member.course

    @property
    def progress(self) -> Progress:
        return self.member.progress


class _Training:
    """Where all of them stand."""

    def __init__(self, members: Sequence[Member], examples: Examples, left: Left) -> None:
        self._examples, self._device, self._left = examples, examples.images.device, left
        self.settings = members[0].course.settings
        self._stack = Stack([member.network for member in members])
        courses, masks = [each.course for each in members], [each.progress.mask for each in members]
        self._steps = Steps(self._stack, examples, courses, masks)
        self.steps = self._steps.steps_an_epoch
        self._standings = [_standing(*each) for each in zip(members, self._stack.networks, strict=True)]
        self.epoch, self.step = 0, 0
        self._sums = self._steps.sums
        self._started = time.perf_counter()
        self._resume()
        for member in members:
            member.progress.together = max(member.progress.together or 0, len(members))

    @property
    def done(self) -> int:
        """Steps of this course."""
        return self.epoch * self.steps + self.step

    def going(self) -> list[_Standing]:
        """Those that have not failed or left."""
        return [each for each in self._standings if each.failure is None]

    def _tell(self, standing: _Standing, tell: Callable[[Observer], None]) -> None:
        """What its observer raises takes a member out, and no other."""
        if standing.failure is None:
            try:
                tell(standing.member.observer)
            except Exception as reason:
                self._fail(standing, reason)

    # One step

    def batches(self) -> list[int]:
        """The sizes of those of this epoch that are still to come."""
        count, size = len(self._examples.labels), self.settings.batch_size
        return [min(size, count - start) for start in range(self.step * size, count, size)]

    def advance(self, size: int) -> None:
        def descending() -> list[bool]:
            self._refuse_non_finite(self.done + 1)
            return [each.failure is None for each in self._standings]

        self._steps.take(size, descending)
        self.step += 1
        total = self.steps * self.settings.epochs
        for number, standing in enumerate(self._standings):
            if standing.failure is None:
                standing.progress.steps = standing.steps_before + self.done
                self._tell(standing, lambda observer: observer.advance(self.done, total, "steps"))
                if self.step < self.steps:
                    self._offer(number, standing, epoch_ended=False)

    def _offer(self, number: int, standing: _Standing, *, epoch_ended: bool) -> None:
        def state() -> TrainingState:
            return self._state_of(number, standing)

        self._tell(standing, lambda observer: observer.checkpoint(state, epoch_ended))

    def _refuse_non_finite(self, step: int) -> None:
        for standing, finite in zip(self._standings, self._sums.finite(), strict=True):
            if not finite:
                self._fail(standing, NonFiniteLoss.at_step(step))

    def _fail(self, standing: _Standing, failure: Exception) -> None:
        if standing.failure is None:
            standing.failure, standing.left = failure, state_of(standing.network)
            self._left(self._standings.index(standing), failure)

    # One epoch

    def begin_epoch(self) -> None:
        for standing in self.going():
            if self.step == 0 and standing.course.keep_epoch == self.epoch:
                standing.progress.early = state_of(standing.network)
        for network in self._stack.networks:
            network.train()
        orders, shifts = [], []
        for standing in self._standings:
            orders.append(self._order(standing))
            if self.settings.random_shift:
                shifts.append(self._shifts(standing))
        self._steps.begin(self.step, orders, shifts, torch.tensor(self._rates(), dtype=torch.float64))

    def _order(self, standing: _Standing) -> Tensor:
        """The same when it is asked for again in the same epoch."""
        standing.shuffle.set_state(standing.before_order)
        return torch.randperm(len(self._examples.labels), generator=standing.shuffle)

    def _shifts(self, standing: _Standing) -> Tensor:
        stream = generator(standing.course.settings.seed, f"shift{standing.course.stream}/{self.epoch}")
        return draw_shifts(len(self._examples.labels), self.settings.random_shift, stream)

    def _rates(self) -> list[list[float]]:
        """Of this epoch's steps, a list of all members' for each."""
        settings = [standing.course.settings for standing in self._standings]
        steps = range(self.epoch * self.steps, (self.epoch + 1) * self.steps)
        return [[learning_rate(each, step, self.steps) for each in settings] for step in steps]

    def end_epoch(self) -> None:
        self._refuse_non_finite(self.done)
        self._refuse_non_finite_state()
        seconds = time.perf_counter() - self._started
        for number, standing in enumerate(self._standings):
            if standing.failure is None:
                self._end_epoch_of(number, standing, seconds)
        self.epoch, self.step = self.epoch + 1, 0
        self._sums.clear()
        self._started = time.perf_counter()
        for number, standing in enumerate(self._standings):
            self._offer(number, standing, epoch_ended=True)

    def _refuse_non_finite_state(self) -> None:
        """The losses are computed ahead of a step, so what the very last step did shows in the weights alone."""
        for name, tensor in self._stack.tensors.items():
            if tensor.is_floating_point():
                finite = torch.isfinite(tensor.detach().flatten(1)).all(dim=1).tolist()
                for standing, each in zip(self._standings, finite, strict=True):
                    if not each:
                        self._fail(standing, NonFiniteLoss.at_step(self.done, name))

    def _end_epoch_of(self, number: int, standing: _Standing, seconds: float) -> None:
        try:
            validated = self._validate(standing)
        except Exception as failure:  # a loss that is no number, or what its observer raised
            self._fail(standing, failure)
            return
        sums, progress, course = self._sums_of(number), standing.progress, standing.course
        metrics = EpochMetrics(
            epoch=self.epoch + 1,
            loss=sums["loss"] / sums["images"],
            penalty=sums["penalty"] / sums["images"],
            accuracy=sums["correct"] / sums["images"],
            seconds=seconds,
            course=course.name,
            round=course.round,
            learning_rate=learning_rate(course.settings, self.done - 1, self.steps),
            sparsity=progress.mask.sparsity if progress.mask is not None else 0.0,
            validation_loss=validated and validated.loss,
            validation_accuracy=validated and validated.accuracy,
        )
        progress.history.append(metrics)
        if validated is not None and self._is_better(validated, standing.best):
            standing.best = Best(self.epoch + 1, validated.correct, state_of(standing.network))
        standing.before_order = standing.shuffle.get_state()
        self._tell(standing, lambda observer: observer.record("epoch", metrics.model_dump(mode="json")))

    def _is_better(self, validated: Accuracy, best: Best | None) -> bool:
        """Of equals the first is."""
        return self.settings.select == "best" and (best is None or validated.correct > best.correct)

    def _sums_of(self, number: int) -> dict[str, float]:
        images = min(self.step * self.settings.batch_size, len(self._examples.labels))
        return {"images": images, **self._sums.of(number)}

    def _validate(self, standing: _Standing) -> Accuracy | None:
        if not len(self._examples.validation_labels):
            return None
        images, labels = self._examples.validation_images, self._examples.validation_labels
        quiet = Quiet(standing.member.observer)
        return evaluate(standing.network, images, labels, quiet, of="validation").accuracy

    def end(self) -> tuple[Exception | None, ...]:
        for standing in self._standings:
            if standing.failure is None and standing.course.keep_epoch == self.epoch:
                standing.progress.early = state_of(standing.network)
            chosen = standing.left or (standing.best and standing.best.network) or standing.network.state_dict()
            standing.member.network.load_state_dict(chosen)
        return tuple(standing.failure for standing in self._standings)

    # From one process to the next

    def _state_of(self, number: int, standing: _Standing) -> TrainingState:
        """What the member's training alone would keep; copies, since a part of a stack is saved as the whole."""
        return TrainingState(
            network=state_of(standing.network),
            optimizer=_copied(self._steps.optimizers[number].state_dict()),
            shuffle=standing.before_order,
            epoch=self.epoch,
            step=self.step,
            sums=self._sums_of(number),
            seconds=time.perf_counter() - self._started,
            best=standing.best,
            progress=standing.progress,
            origin=standing.member.origin,
        )

    def _resume(self) -> None:
        going_on = [each for each in self._standings if each.member.resumed is not None]
        for number, standing in enumerate(going_on):  # all of them, or none
            assert standing.member.resumed is not None
            self._resume_one(number, standing, standing.member.resumed)
        if going_on:
            self._steps.stack_moments()

    def _resume_one(self, number: int, standing: _Standing, kept: TrainingState) -> None:
        try:
            standing.network.load_state_dict(kept.network)
            self._steps.load_optimizer(number, kept.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InvalidCheckpoint(f"the state of member {number} is of another network: {error}") from error
        self.epoch, self.step, standing.best = kept.epoch, kept.step, kept.best
        standing.steps_before = standing.progress.steps - (kept.epoch * self.steps + kept.step)
        self._sums.restore(number, kept.sums)
        standing.before_order = kept.shuffle
        self._started = time.perf_counter() - kept.seconds


def _standing(member: Member, network: nn.Module) -> _Standing:
    course = member.course
    shuffle = generator(course.settings.seed, f"shuffle{course.stream}")
    return _Standing(member, network, member.progress.steps, shuffle, shuffle.get_state())


def _copied(tree: dict[str, object]) -> dict[str, object]:
    """A nested container with tensors of its own."""

    def copied(part: object) -> object:
        if isinstance(part, Tensor):
            return part.detach().clone()
        if isinstance(part, dict):
            return {name: copied(each) for name, each in part.items()}
        return [copied(each) for each in part] if isinstance(part, list) else part

    return {name: copied(each) for name, each in tree.items()}
