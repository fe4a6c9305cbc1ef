"""Which courses can be trained together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app.contract.training import FineTuningSpec
from worker.engine.plan import Course

OWN = frozenset({"seed", "learning_rate", "device"})
"""What a member's settings may have to itself. `device` is decided before: all members are on one."""


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


def _gradual(_: Course, course: Course) -> str | None:
    # The scores are of one network at a time, and so is the mask's arithmetic: most of such a course is not shared.
    return "is pruned within its course" if course.gradual is not None else None


_REASONS: tuple[Callable[[Course, Course], str | None], ...] = (_other_settings, _other_penalty, _teacher, _gradual)
