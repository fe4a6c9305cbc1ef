"""Which courses can be trained together, and where that is worth it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch

from app.contract.training import FineTuningSpec
from worker.engine.plan import Course

OWN = frozenset({"seed", "learning_rate", "device"})
"""What a member's settings may have to itself. `device` is decided before: all members are on one."""


Where: TypeAlias = Literal["gpu", "any"]
"""The devices on which members are trained together: on a GPU, or on each."""


class Way(NamedTuple):
    """How several members are to be trained."""

    together: bool
    """Or each as a job of its own."""
    reason: str


def way(courses: Sequence[Course], device: torch.device, where: Where = "gpu") -> Way:
    """What is faster for these members of one shape; "any" is for whoever knows better.

    A GPU is partly idle while it trains one: on an H200, a step of 16 default networks took 3.1 ms together, and one
    step of one alone 0.49 ms, by the same kernels. A CPU is not: 16 took 1.3 times as long
    together as one after another, on one thread. Small networks (widths 4, 4, 8 and 16) took 0.55 times as long there,
    and batches of 10 images 0.8 times; but jobs of their own go to all workers, which with two of them is as good, and
    there no member waits for the others.
    """
    if len(courses) < 2:
        return Way(False, "there is nothing to train it together with")
    if reason := misfit(courses):
        return Way(False, reason)
    if device.type != "cuda" and where == "gpu":
        return Way(False, "a CPU is busy with one of them: jobs of their own can use all workers")
    return Way(True, "one of them leaves most of a GPU idle" if device.type == "cuda" else "it is wanted on any device")


def misfit(courses: Sequence[Course]) -> str | None:
    """Why these courses cannot be trained together; None when they can. Of a penalty the kind must be one, its numbers
    may differ."""
    first = courses[0]
    for number, course in enumerate(courses):
        for reason in _REASONS:
            if found := reason(first, course):
                return f"member {number} {found}"
    return None


def _other_settings(first: Course, course: Course) -> str | None:
    mine, theirs = course.settings, first.settings
    names = (name for name in FineTuningSpec.model_fields if name not in OWN)
    other = [name for name in names if getattr(mine, name) != getattr(theirs, name)]
    return f"differs from member 0 in {', '.join(other)}" if other else None


def _other_penalty(first: Course, course: Course) -> str | None:
    same = type(course.regularization) is type(first.regularization)
    return None if same else "has another kind of penalty than member 0"


def _teacher(_: Course, course: Course) -> str | None:
    return "learns from a teacher" if course.settings.distillation is not None else None


def _narrow(_: Course, course: Course) -> str | None:
    return f"computes in {course.settings.precision}" if course.settings.precision != "float32" else None


def _gradual(_: Course, course: Course) -> str | None:
    # The scores are of one network at a time, and so is the mask's arithmetic: most of such a course is not shared.
    return "is pruned within its course" if course.gradual is not None else None


_REASONS: tuple[Callable[[Course, Course], str | None], ...] = (
    _other_settings,
    _other_penalty,
    _teacher,
    _narrow,
    _gradual,
)
