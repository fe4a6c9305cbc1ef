"""The picture of a sweep: accuracy against non-zeros, a point a member."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox, BboxBase, IdentityTransform

from app.contract.frontier import Frontier, FrontierMember, MemberOutcome, MemberSettings
from worker.engine.drawing import COLORS, DPI, EDGE, GREY, TICK, bare, data_set, head, lines_of, mark, png
from worker.engine.lettering import LINE, columns, headline, width_of, writable
from worker.engine.marks import log_marks

_WIDTH = 9.5

_MARKERS = "osD^vP*X<>ph"
_NAMED = 12
"""Values of an axis that the legend has at most."""

_LABELLED = 24
"""Points; the values of more would lie upon each other."""

_ACROSS, _UP = 8.0, 4.0
"""How long the axes are at least, in inches."""

_NOTHING = 0.5
"""Where no non-zeros are drawn, on a scale that has no zero."""

_WORST = 110.0
"""Percent: the end of the error's axis, a little below what is wrong throughout."""

_AT_POINT, _DOT = 7.0, 3.5
"""In points: the size of letters beside points, and half of a dot's width."""

_AMOUNTS = ("threshold", "sparsity", "keep")
_SIGNS = {"threshold": "θ", "strength": "β", "sparsity": "sparsity", "keep": "keep", "widths": "widths"}


def draw_frontier(frontier: Frontier, title: str | None) -> bytes:
    """A PNG. Members that differ in their seeds alone are pale points, their mean a strong one; a line leads through
    the means from one amount to the next. The error's scale is logarithmic: small networks fall far, good ones lie
    close together."""
    shown = [point for member in frontier.members if (point := _point(member)) is not None]
    looks, means = _looks(frontier, shown), _means(frontier, shown)
    words = _headline(frontier, title, means)
    figure = Figure(figsize=(_WIDTH, 5.6 + LINE * lines_of(words)), dpi=DPI, layout="constrained")
    figure.set_facecolor("white")
    head(figure, words)
    axes = figure.subplots()
    if len(shown) > 1:
        _draw_front(axes, [point for point in shown if point.member.on_front])
    for series, points in means.items():
        _draw_series(axes, looks[series], points)
    _scale(axes, shown)
    handles = [*axes.get_legend_handles_labels()[0], *_legend(frontier, shown, means)]
    if handles:
        ncols = columns((str(handle.get_label()) for handle in handles), _WIDTH, min(5, len(handles)))
        figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize=8)
        figure.set_figheight(figure.get_figheight() + LINE * ((len(handles) - 1) // ncols))
    if _are_labelled(means):
        _label(figure, axes, means)
    return png(figure)


class _Point(NamedTuple):
    """`nonzero` and `error` (percent) where they are drawn: on a scale that has no zero, half of the least there is."""

    member: FrontierMember
    nonzero: float
    error: float


def _point(member: FrontierMember) -> _Point | None:
    if (outcome := member.outcome) is None:
        return None
    return _Point(member, outcome.nonzero or _NOTHING, _error(outcome))


def _error(outcome: MemberOutcome) -> float:
    return 100 * max(outcome.test_images - outcome.correct, 0.5) / outcome.test_images


def _headline(frontier: Frontier, title: str | None, means: Mapping[Series, Sequence[_Mean]]) -> str:
    images = next(member.outcome.test_images for member in frontier.members if member.outcome is not None)
    of = f"accuracy on {images:,} test images against non-zeros"
    count = len(frontier.members)
    what = f"{data_set(frontier)}: {of}, {count} {'member' if count == 1 else 'members'}"
    lost = Counter(member.status for member in frontier.members if member.outcome is None)
    several = any(len(mean.points) > 1 for points in means.values() for mean in points)
    notes = ["pale: single seeds, strong: their means"] if several else []
    along = _along(frontier.axes)
    if along is not None and _are_labelled(means):
        notes.append(f"at the points: {_SIGNS[along]}")
    if lost:
        notes.append("not shown: " + ", ".join(f"{count} {status}" for status, count in lost.items()))
    return headline((writable(title), what, "; ".join(notes)), _WIDTH - 2 * EDGE)


def _along(axes: Sequence[str]) -> str | None:
    """The axis along which a line leads: the amount that is pruned, if that varies."""
    order = (*_AMOUNTS, "strength", "widths")
    return next((name for name in order if name in axes), None)


def _value(settings: MemberSettings, axis: str) -> object:
    return (*settings.channels, settings.hidden) if axis == "widths" else getattr(settings, axis)


def _words(axis: str, value: object) -> str:
    if axis == "strength" and value == 0:
        return "no penalty"
    return f"{_SIGNS[axis]} = {_spelt(value)}"


def _spelt(value: object) -> str:
    if isinstance(value, tuple):
        return "×".join(map(str, value[:-1])) + f"+{value[-1]}"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}"


Series = tuple[object, ...]
"""Its values on the axes that vary, without the one along which it leads, and the seed."""


def _apart(frontier: Frontier) -> list[str]:
    """The axes that tell one series from another."""
    return [axis for axis in frontier.axes if axis not in ("seed", _along(frontier.axes))]


def _series(frontier: Frontier, member: FrontierMember) -> Series:
    return tuple(_value(member.settings, axis) for axis in _apart(frontier))


@dataclass(frozen=True)
class _Look:
    color: str
    marker: str = _MARKERS[0]


Values = Mapping[str, Sequence[object]]
"""Of each axis that tells series apart, those that were met, in the grid's order."""


def _values(frontier: Frontier, shown: Sequence[_Point]) -> Values:
    return {axis: list(dict.fromkeys(_value(p.member.settings, axis) for p in shown)) for axis in _apart(frontier)}


def _looks(frontier: Frontier, shown: Sequence[_Point]) -> Mapping[Series, _Look]:
    """The last of the axes gives the color, and the one before it the marker."""
    values = [*_values(frontier, shown).values()]
    return {series: _look(values, series) for point in shown for series in [_series(frontier, point.member)]}


def _look(values: Sequence[Sequence[object]], series: Series) -> _Look:
    if not values:
        return _Look(COLORS[0])
    color = _color(values[-1].index(series[-1]), len(values[-1]))
    return _Look(color) if len(values) == 1 else _Look(color, _marker(values[0].index(series[0])))


def _marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]


def _legend(frontier: Frontier, shown: Sequence[_Point], means: Mapping[Series, Sequence[_Mean]]) -> Iterator[Line2D]:
    """What the colors mean, and what the markers; of many values some."""
    leads = any(len(points) > 1 for points in means.values())
    for place, (axis, values) in enumerate(reversed([*_values(frontier, shown).items()])):
        for index in _some(len(values)):
            look = _Look(GREY, _marker(index)) if place else _Look(_color(index, len(values)))
            line = "-" if leads and not place else ""
            yield Line2D([], [], color=look.color, marker=look.marker, ls=line, ms=6, label=_words(axis, values[index]))


def _some(count: int) -> Sequence[int]:
    """Indices, evenly spaced, with the first and the last."""
    if count <= _NAMED:
        return range(count)
    return [round(index * (count - 1) / (_NAMED - 1)) for index in range(_NAMED)]


def _color(index: int, count: int) -> str:
    """Of more values than there are colors to tell apart, shades in their order."""
    return COLORS[index] if count <= len(COLORS) else to_hex(colormaps["viridis"](0.95 * index / (count - 1)))


class _Mean(NamedTuple):
    """Over the seeds, at one place of a line."""

    value: object
    nonzero: float
    error: float
    points: Sequence[_Point]


def _means(frontier: Frontier, shown: Sequence[_Point]) -> Mapping[Series, Sequence[_Mean]]:
    along = _along(frontier.axes)
    groups: dict[Series, dict[object, list[_Point]]] = {}
    for point in shown:
        value = _value(point.member.settings, along) if along is not None else None
        groups.setdefault(_series(frontier, point.member), {}).setdefault(value, []).append(point)
    return {
        series: [_mean(value, group[value]) for value in sorted(group, key=_order)] for series, group in groups.items()
    }


def _order(value: object) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (float(value) if isinstance(value, int | float) else 0.0,)


def _mean(value: object, points: Sequence[_Point]) -> _Mean:
    return _Mean(value, fmean(p.nonzero for p in points), fmean(p.error for p in points), points)


def _draw_series(axes: Axes, look: _Look, means: Sequence[_Mean]) -> None:
    x, y = [mean.nonzero for mean in means], [mean.error for mean in means]
    axes.plot(x, y, look.marker, ls="-", lw=1.1, ms=6, color=look.color, zorder=3)
    for mean in means:
        if len(mean.points) > 1:
            axes.plot(
                [p.nonzero for p in mean.points],
                [p.error for p in mean.points],
                look.marker,
                ls="",
                ms=4,
                alpha=0.35,
                mew=0,
                color=look.color,
                zorder=2,
            )


def _draw_front(axes: Axes, front: Sequence[_Point]) -> None:
    """As a step: with so many non-zeros, this is the best that any member has reached. One place makes no step."""
    steps = sorted({(point.nonzero, point.error) for point in front})
    x, y = [nonzero for nonzero, _ in steps], [error for _, error in steps]
    circled = None
    if len(steps) > 1:
        label = "best of all members with so few non-zeros"
        axes.step(x, y, where="post", color=GREY, lw=0.9, ls=(0, (4, 2)), zorder=1, label=label)
    else:
        circled = "to which no other is superior"
    axes.plot(x, y, "o", ms=11, mfc="none", mec=GREY, mew=0.8, zorder=1, label=circled)


def _are_labelled(means: Mapping[Series, Sequence[_Mean]]) -> bool:
    return sum(map(len, means.values())) <= _LABELLED


def _label(figure: Figure, axes: Axes, means: Mapping[Series, Sequence[_Mean]]) -> None:
    """Amounts beside their points, off other points where there is room, and none upon another."""
    figure.draw_without_rendering()  # which finds out where points lie
    figure.set_layout_engine("none")
    labelled = [mean for points in means.values() for mean in points if mean.value is not None]
    drawn: list[_Mean | _Point] = [*labelled, *(point for mean in labelled for point in mean.points)]
    dots = [_frame(axes, each, (-_DOT, -_DOT), (_DOT, _DOT)) for each in drawn]
    words: list[Bbox] = []
    for mean in labelled:
        spelt = _spelt(mean.value)
        frames = [frame for frame in _beside(axes, mean, spelt) if _lies_within(frame, axes.bbox)]
        free = (each for taken in ([*dots, *words], words) for each in frames if not any(map(each.overlaps, taken)))
        if (frame := next(free, None)) is not None:
            words.append(frame)
            text = axes.text(frame.x0, frame.y0, spelt, va="bottom", fontsize=_AT_POINT, color=GREY)
            text.set_transform(IdentityTransform())
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])  # lines may lead through it


def _beside(axes: Axes, mean: _Mean, words: str) -> Iterator[Bbox]:
    """Where they could stand. First off a line that rises: with more non-zeros, accuracy mostly does."""
    wide, high = 72 * width_of(words, _AT_POINT), 1.25 * _AT_POINT
    right, left, above, below = 6.0, -6 - wide, 1.0, -1 - high
    for across, up in ((right, below), (left, above), (right, above), (left, below)):
        yield _frame(axes, mean, (across, up), (across + wide, up + high))


def _frame(axes: Axes, at: _Point | _Mean, low: tuple[float, float], high: tuple[float, float]) -> Bbox:
    """In pixels, from `low` to `high`, which are points from the place of `at`."""
    where = axes.transData.transform((at.nonzero, at.error))
    return Bbox([where + np.multiply(low, DPI / 72), where + np.multiply(high, DPI / 72)])


def _lies_within(frame: Bbox, whole: BboxBase) -> bool:
    return all(whole.contains(x, y) for x, y in (frame.p0, frame.p1))


def _scale(axes: Axes, shown: Sequence[_Point]) -> None:
    nonzeros, errors = [point.nonzero for point in shown], [point.error for point in shown]
    fewest, best = min(nonzeros) / 1.3, min(errors) / 1.35
    most = max(1.4 * max(nonzeros), fewest + 3.2)  # there are three whole numbers in between
    worst = min(_WORST, 1.35 * max(errors))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(fewest, most)
    axes.set_ylim(worst, best)  # the good ones above
    mark(axes.xaxis, _whole_marks(fewest, most), _spelt_amount)
    mark(axes.yaxis, log_marks(best, min(worst, 100.0), _UP, lambda _: TICK / 72), _spelt_accuracy)
    axes.set_xlabel("non-zeros of the network (log scale)")
    axes.set_ylabel("accuracy, % (log scale of the error)")
    axes.grid(True, color="#EEEEEE", lw=0.8, zorder=0)
    axes.set_axisbelow(True)
    bare(axes)


def _whole_marks(low: float, high: float) -> Sequence[float]:
    """And where zero is drawn, if it is."""
    least = max(low, 1.0)
    marks = log_marks(least, high, _ACROSS * math.log(high / least) / math.log(high / low), _width, whole=True)
    return [*([_NOTHING] if low < _NOTHING else []), *marks]


def _width(amount: float) -> float:
    return width_of(_spelt_amount(amount), TICK)


def _spelt_amount(amount: float) -> str:
    return "0" if amount == _NOTHING else f"{amount:,.10g}"


def _spelt_accuracy(error: float) -> str:
    return f"{100 - error:.10g}"
