"""Carries out runs: one by itself, or several side by side, whose trainings are done together where that is wanted and
they can be, and their files by several processes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, suppress
from typing import Generic, NamedTuple, Protocol, TypeVar

from worker.engine import device
from worker.engine.errors import without_memory
from worker.engine.execute import Awaited, Steps, Training
from worker.engine.makers import Made, Makers, Making, makers_for
from worker.engine.observer import Observer
from worker.engine.progress import Progress
from worker.engine.resources import most_together
from worker.engine.seeding import reproducible
from worker.engine.together import Where, train_together, unfit, way
from worker.engine.train import train

T = TypeVar("T")

LOOK_SECONDS = 0.1
"""Between looks at whether a run wants to end whose files are made elsewhere."""

logger = logging.getLogger(__name__)


class Together(NamedTuple):
    """When runs are trained together, and what of the machine is theirs."""

    most: int = 1
    """At once; 1 is never."""
    where: Where = "gpu"
    processes: int = 1
    """That make their files, at most; 1 is this one."""


APART = Together()


class Run(Protocol):
    """What goes from one thing that it waits for to the next, and sees to its own failures."""

    def begin(self) -> None:
        """Ahead of all, once, while others are not gone on with yet."""

    def go_on(self, answer: object = None, failure: BaseException | None = None) -> Awaited | None:
        """Up to what it waits for next, or to its end, which is None. `answer` is the files that it has waited
        for, or None of those that it is to make itself; `failure` is what ended a wait early. Raises what is to end the
        whole process."""


class Whole(Generic[T]):
    """A run that keeps what has become of it."""

    def __init__(self, steps: Steps[T]) -> None:
        self._steps = steps
        self._results: list[T] = []
        self.failure: Exception | None = None

    def begin(self) -> None:
        """There is nothing to do."""

    def go_on(self, answer: object = None, failure: BaseException | None = None) -> Awaited | None:
        try:
            return self._steps.send(answer) if failure is None else self._steps.throw(failure)
        except StopIteration as end:
            self._results.append(end.value)
        except Exception as error:
            self.failure = error
        return None

    def result(self) -> T:
        """Once it is over. Raises what it has failed with."""
        if self.failure is not None:
            raise self.failure
        return self._results[0]


def carry_out(runs: Sequence[Run], together: Together = APART) -> None:
    """All of them, to their ends. Of each, as soon as it waits, `observer.check` is asked between the others' work, and
    what it raises ends that run alone. What ends the process goes through each that has not ended, and is raised."""
    lockstep = _Lockstep(runs, together)
    with closing(lockstep), reproducible(device.choose("auto")):
        try:
            lockstep.carry_out()
        except BaseException as end:
            lockstep.end(end)
            raise


class _Sent(NamedTuple):
    """What a run waits for that another process makes."""

    observer: Observer
    files: Future[Made]


class _Before(NamedTuple):
    """Where a run stood before a training that may have to begin again."""

    progress: Progress
    steps: int
    together: int | None
    epochs: int

    @classmethod
    def of(cls, progress: Progress) -> _Before:
        return cls(progress, progress.steps, progress.together, len(progress.history))

    def is_near(self) -> bool:
        """No epoch has ended and been told of. A training takes its memory in its first steps."""
        return len(self.progress.history) == self.epochs

    def restore(self) -> None:
        self.progress.steps, self.progress.together = self.steps, self.together


class _Lockstep:
    def __init__(self, runs: Sequence[Run], together: Together) -> None:
        self._runs, self._together = runs, together
        self._most = together.most
        self._makers: Makers | None = None
        self._open = set(range(len(runs)))
        self._waiting: dict[int, Training] = {}
        """By the number of the run."""
        self._sent: dict[int, _Sent] = {}
        """To other processes, likewise."""

    def carry_out(self) -> None:
        for run in self._runs:
            run.begin()
        self._makers = makers_for(len(self._runs), self._together.processes)
        for number in range(len(self._runs)):
            self._look_after_others(number)
            self._go_on(number)
        while self._waiting or self._sent:
            if self._waiting:
                self._train_some()
            else:
                wait([sent.files for sent in self._sent.values()], LOOK_SECONDS, FIRST_COMPLETED)
            self._take_files()
            self._look_after_others()

    def _train_some(self) -> None:
        group = self._next()
        before = [_Before.of(self._waiting[number].member.progress) for number in group]
        failures = self._trained(group)
        if len(group) > 1 and all(map(_is_without_memory, failures)) and all(map(_Before.is_near, before)):
            self._most = len(group) // 2
            logger.warning("not enough memory, trained in smaller groups", extra={"members": self._most})
            for each in before:
                each.restore()
            return
        for number, failure in zip(group, failures, strict=True):
            self._look_after_others(number)
            self._go_on(number, failure=failure)

    def end(self, reason: BaseException) -> None:
        """Each puts its things in order."""
        for number in sorted(self._open):
            with suppress(BaseException):
                self._go_on(number, failure=reason)

    def close(self) -> None:
        if self._makers is not None:
            self._makers.close()

    def _go_on(self, number: int, answer: object = None, failure: BaseException | None = None) -> None:
        if number not in self._open:
            return
        self._waiting.pop(number, None)
        if (sent := self._sent.pop(number, None)) is not None:
            sent.files.cancel()  # of one that has left
        self._open.remove(number)  # whatever it raises, it is over
        awaited = self._runs[number].go_on(answer, failure)
        if awaited is None:
            return
        self._open.add(number)
        if isinstance(awaited, Training):
            self._waiting[number] = awaited
        elif not self._send(number, awaited):
            self._go_on(number)

    def _send(self, number: int, making: Making) -> bool:
        """Whether another process makes it."""
        try:
            files = self._makers.send(making) if self._makers is not None else None
        except Exception as error:  # for lack of memory or threads, which are others' too
            logger.warning("files are not sent, but made here", extra={"error": repr(error)})
            return False
        if files is not None:
            self._sent[number] = _Sent(making.observer, files)
        return files is not None

    def _take_files(self) -> None:
        """Those that are made, or are to be made here."""
        for number, (_, files) in list(self._sent.items()):
            if number in self._sent and files.done():
                self._look_after_others(number)
                self._go_on(number, _made(files))

    def _look_after_others(self, than: int | None = None) -> None:
        """One that is to end does not wait for the others' work."""
        awaited: Mapping[int, Training | _Sent] = {**self._waiting, **self._sent}
        for number, each in awaited.items():
            if number != than:
                try:
                    each.observer.check()
                except Exception as failure:
                    self._go_on(number, failure=failure)

    def _next(self) -> list[int]:
        """Those that are trained now, of those that are furthest behind: others may wait for them."""
        behind = min(self._waiting, key=lambda number: (self._stage(number), number))
        group = [behind]
        for number in sorted(self._waiting):
            if len(group) >= self._most:
                break
            if number != behind and self._fits(behind, number):
                group.append(number)
        return group[: self._room(group)]

    def _stage(self, number: int) -> int:
        return self._waiting[number].member.progress.stage

    def _fits(self, first: int, other: int) -> bool:
        ours, theirs = self._waiting[first], self._waiting[other]
        if ours.examples is not theirs.examples or self._stage(first) != self._stage(other):
            return False
        courses = [each.member.course for each in (ours, theirs)]
        chosen = way(courses, ours.examples.images.device, self._together.where)
        return chosen.together and unfit([ours.member, theirs.member]) is None

    def _room(self, group: Sequence[int]) -> int:
        largest = max(self._waiting[number].memory for number in group)
        return most_together(largest, self._waiting[group[0]].examples.images.device) if len(group) > 1 else 1

    def _trained(self, group: Sequence[int]) -> Sequence[Exception | None]:
        """What ended each early. One of several comes to its end at once, while the others are trained."""
        trainings = [self._waiting[number] for number in group]
        try:
            if len(trainings) > 1:
                members = [each.member for each in trainings]
                return train_together(
                    members, trainings[0].examples, lambda at, why: self._go_on(group[at], failure=why)
                )
            _train(trainings[0])
        except Exception as failure:
            return [failure] * len(trainings)
        return [None]


def _is_without_memory(failure: Exception | None) -> bool:
    return failure is not None and without_memory(failure) is not None


def _made(files: Future[Made]) -> Made | None:
    try:
        return files.result()
    except Exception as error:
        logger.warning("files are made here after all", extra={"error": repr(error)})
        return None


def _train(training: Training) -> None:
    member = training.member
    of = (member.network, training.examples, member.course, member.progress, member.observer)
    train(*of, member.origin, member.resumed, training.teacher)
