"""Where a logarithmic axis has marks: at round numbers, as many as their words leave room for. Lengths in inches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from matplotlib.ticker import MaxNLocator

_STEPS = ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10)))
"""Of each power of ten."""

_LEAST, _ENOUGH = 3, 8
_BETWEEN = 0.1
"""What is left free between the words of two marks, at least."""


def log_marks(
    low: float,
    high: float,
    length: float,
    size: Callable[[float], float],
    *,
    whole: bool = False,
    enough: int = _ENOUGH,
) -> Sequence[float]:
    """Ascending, within both ends of an axis that is so long, `whole` numbers alone if so; `size` is what a mark's
    words take of it. Three or more (two, if these are `enough`), where that many lie in between and their words have
    room; rather rounder ones than more than `enough`."""
    choices = [*_choices(low, high, whole)]
    unit = length / math.log(high / low)
    thinned = [_with_room(marks, unit, size) for marks in choices]

    def count(marks: Sequence[float]) -> int:
        return min(len(marks), enough)

    found = max((marks for marks in choices if marks in thinned), key=count)
    return found if len(found) >= min(_LEAST, enough) else max(thinned, key=count)


def _choices(low: float, high: float, whole: bool) -> Iterator[Sequence[float]]:
    """The roundest first."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [[10.0**power for power in powers if power % apart == 0] for apart in (3, 2)]
    by_powers = [[step * 10.0**power for power in powers for step in steps] for steps in _STEPS]
    # Over less than a power of ten, these are few; numbers evenly spaced lie near to it there.
    evenly = [MaxNLocator(count, steps=[1, 2, 5, 10]).tick_values(low, high) for count in (5, 8)]
    for marks in (*every, *by_powers, *evenly):
        yield [float(mark) for mark in marks if low <= mark <= high and not (whole and mark % 1)]


def _with_room(marks: Sequence[float], unit: float, size: Callable[[float], float]) -> Sequence[float]:
    """Without those whose words would come too close to the ones before."""
    kept: list[float] = []
    for mark in marks:
        if not kept or unit * math.log(mark / kept[-1]) >= (size(mark) + size(kept[-1])) / 2 + _BETWEEN:
            kept.append(mark)
    return kept
