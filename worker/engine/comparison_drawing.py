"""The picture of a comparison: bars for accuracy and sparsity, and for each tensor a strip a job, one below the other.
Laid out by rulers, in inches: a layout engine would look at each of up to 256 strips twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation

from app.contract.report import ComparedJob, Comparison, Distribution, TensorHistogram
from worker.engine.drawing import (
    COLORS,
    DPI,
    EDGE,
    GREY,
    LOG_FLOOR,
    TICK,
    WIDTH,
    Span,
    add,
    bare,
    data_set,
    end_of,
    entitle,
    head,
    lines_of,
    mark,
    penalty_in_words,
    png,
    scale_values,
    span_of,
    stairs,
)
from worker.engine.lettering import LINE, cut, headline, width_of, wrapped, writable
from worker.engine.marks import log_marks

_LABEL, _COLUMN, _GAP = 1.9, 4.1, 0.85
"""What the name of a job takes beside its bars at most, how long bars and strips are, and what is between them."""

_LEFT = EDGE + _LABEL + 0.1
_TITLE, _MARKS = 0.35, 0.27
"""Above axes, and below them."""

_STRIP, _HIGHEST, _TENSOR, _BETWEEN = 0.42, 1.0, 2.0, 0.06
"""How high a strip is at least and at most, all of a tensor where they may be higher, and what is between two."""

_APART = 0.3
"""How far the marks of a strip are from each other, if it has more than two."""

_NUMBERS = 0.78
"""What the marks of a strip take on its left, at most."""

_IN_BAR = 7.5
"""The size of letters, in points."""

_DARK = frozenset({"#0072B2", "#D55E00", "#009E73", "#000000"})
"""Those of the colors on which white letters can be read."""

_EXACT = 1e7
"""The least number that takes too much room when it is written out."""

_Tensors = Mapping[int, TensorHistogram]
"""One of each job that shows it, by the job's place."""


def draw_comparison(comparison: Comparison) -> bytes:
    """A PNG: accuracy and sparsity side by side; then, for each tensor, a strip a job with its weights before pruning,
    and beside it after pruning. Strips have the same axes: outlines over each other would hide each other."""
    jobs = comparison.jobs
    names = dict.fromkeys(tensor.name for job in jobs for tensor in job.histogram.tensors)
    tensors = {name: _tensors(jobs, name) for name in names}
    what = "weights as counts per 0.01 of value, on a log scale" if names else None
    words = headline((f"Comparison of {len(jobs)} jobs", what), WIDTH - 2 * EDGE)
    bars = max(_TENSOR, len(jobs) * (0.08 + 0.145 * max(lines_of(_name(jobs, number)) for number in range(len(jobs)))))
    heights = [bars, *(_height(len(each)) for each in tensors.values())]
    above = 0.1 + LINE * lines_of(words)
    figure = Figure(figsize=(WIDTH, above + sum(_TITLE + each + _MARKS for each in heights) + 0.2), dpi=DPI)
    figure.set_facecolor("white")
    head(figure, words)
    called = [_called(jobs, number, _LEFT - EDGE - _NUMBERS) for number in range(len(jobs))]
    top, lowest = above + _TITLE, list[Axes]()
    _draw_accuracy(_placed(figure, 0, top, bars), jobs)
    _draw_sparsity(_placed(figure, 1, top, bars), jobs)
    for (name, of_jobs), before, height in zip(tensors.items(), heights, heights[1:], strict=False):
        top += before + _MARKS + _TITLE
        lowest = _draw_tensor(figure, top, height, called, name, of_jobs)
    for axes in lowest:
        axes.set_xlabel("value")
    return png(figure)


def _tensors(jobs: Sequence[ComparedJob], name: str) -> _Tensors:
    return {
        number: tensor for number, job in enumerate(jobs) for tensor in job.histogram.tensors if tensor.name == name
    }


def _height(strips: int) -> float:
    return strips * max(_STRIP, min(_HIGHEST, _TENSOR / strips))


def _placed(figure: Figure, column: int, top: float, height: float) -> Axes:
    """Axes whose upper edge is so far below the picture's."""
    wide, high = figure.get_size_inches()
    left = _LEFT + column * (_COLUMN + _GAP)
    axes = figure.add_axes((left / wide, 1 - (top + height) / high, _COLUMN / wide, height / high))
    bare(axes)
    return axes


def _draw_accuracy(axes: Axes, jobs: Sequence[ComparedJob]) -> None:
    before = [100 * job.report.accuracy_before.accuracy for job in jobs]
    after = [100 * job.report.accuracy_after.accuracy for job in jobs]
    rows = np.arange(len(jobs))
    axes.barh(rows - 0.2, before, 0.36, color=COLORS[: len(jobs)], alpha=0.45)
    axes.barh(rows + 0.2, after, 0.36, color=COLORS[: len(jobs)])
    for row, figures in enumerate(zip(before, after, strict=True)):
        for offset, figure, when in zip((-0.2, 0.2), figures, ("before", "after"), strict=True):
            dark = when == "after" and COLORS[row] in _DARK
            _write_in_bar(axes, row + offset, figure, f"{figure:.2f} % {when}", dark=dark)
    _name_bars(axes, jobs)
    entitle(axes, "Test accuracy before and after pruning, %")


def _draw_sparsity(axes: Axes, jobs: Sequence[ComparedJob]) -> None:
    shares = [100 * job.report.total.sparsity for job in jobs]
    axes.barh(np.arange(len(jobs)), shares, 0.6, color=COLORS[: len(jobs)])
    for row, (share, job) in enumerate(zip(shares, jobs, strict=True)):
        total = job.report.total
        words = f"{share:.2f} %: {total.nonzero_after:,} of {total.parameters:,} left"
        _write_in_bar(axes, row, share, words, dark=COLORS[row] in _DARK)
    _name_bars(axes, jobs)
    axes.set_yticklabels([])
    entitle(axes, "Sparsity: zeros of all parameters, %")


def _write_in_bar(axes: Axes, row: float, length: float, words: str, *, dark: bool) -> None:
    """Within the bar where it is long enough, else beside it; of a bar in between, where there is room."""
    written = wrapped(words, 0.46 * _COLUMN, _IN_BAR)
    inside = length > 60 or width_of(written, _IN_BAR) > (1 - length / 100) * _COLUMN - 0.1
    axes.annotate(
        written,
        (length, row),
        xytext=(-4 if inside else 4, 0),
        textcoords="offset points",
        ha="right" if inside else "left",
        va="center",
        fontsize=_IN_BAR,
        color="white" if inside and dark else "black",
    )


def _name_bars(axes: Axes, jobs: Sequence[ComparedJob]) -> None:
    axes.set_yticks(range(len(jobs)), [_name(jobs, number) for number in range(len(jobs))], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)


def _name(jobs: Sequence[ComparedJob], number: int) -> str:
    """What it is called, and below it what was done."""
    report = jobs[number].report
    penalty = [f"{penalty_in_words(report.penalty)} β = {report.strength:g}"] if report.penalty else []
    pruning = [f"θ = {report.threshold:g}" if report.threshold is not None else report.method or "not pruned"]
    # A line is broken between these, not within them.
    parts = [cut(data_set(report), _LABEL, TICK), *penalty, *pruning]
    done = ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)
    return f"{_called(jobs, number, _LABEL)}\n{wrapped(done, _LABEL, TICK)}"


def _called(jobs: Sequence[ComparedJob], number: int, width: float) -> str:
    """With its number: names that are cut may begin alike."""
    job = jobs[number]
    name = writable(job.display_name) or f"job {end_of(job.job_id)}"
    return cut(f"{number + 1}. {name}", width, TICK)


def _draw_tensor(
    figure: Figure, top: float, height: float, called: Sequence[str], name: str, tensors: _Tensors
) -> list[Axes]:
    """Returns the lowest strips; the jobs are `called` so."""
    before = {number: tensor.before for number, tensor in tensors.items()}
    after = {number: tensor.after or tensor.before for number, tensor in tensors.items()}
    span = span_of([*before.values(), *after.values()])
    tops = [top + row * height / len(tensors) for row in range(len(tensors))]
    columns = [[_placed(figure, column, each, height / len(tensors) - _BETWEEN) for each in tops] for column in (0, 1)]
    _draw_strips(columns[0], before, span)
    _draw_strips(columns[1], after, span)
    for strip, number in zip(columns[0], tensors, strict=True):
        _name_strip(strip, called[number])
    thresholds = [tensor.threshold for tensor in tensors.values()]
    marked = [_mark_threshold(strip, each, span) for strip, each in zip(columns[1], thresholds, strict=True)]
    entitle(columns[0][0], f"{name}, before pruning")
    entitle(columns[1][0], f"{name}, after pruning{' (dashed: −θ and θ)' if any(marked) else ''}")
    return [strips[-1] for strips in columns]


def _draw_strips(strips: Sequence[Axes], distributions: Mapping[int, Distribution], span: Span) -> None:
    """Heights are divided by the width of a bin, which differs between jobs."""
    outlines = [stairs(distribution, span) for distribution in distributions.values()]
    drawn = [(counts * 0.01 / np.diff(edges), edges) for counts, edges in outlines]
    floor = LOG_FLOOR * min(0.01 / float(np.diff(edges).max()) for _, edges in drawn)
    highest = max(float(heights.max()) for heights, _ in drawn)
    top = max(highest * (highest / floor) ** 0.05, 11 * floor)
    marks = _marks(floor, top, strips[0].bbox.height / DPI)
    for strip, number, (heights, edges) in zip(strips, distributions, drawn, strict=True):
        # With a thin edge: a bar may be narrower than a pixel.
        add(strip, heights, edges, floor, fill=True, linewidth=0.5, color=COLORS[number])
        strip.set_xlim(span)
        strip.xaxis.set_major_locator(NullLocator())
        strip.set_yscale("log")
        strip.set_ylim(floor, top)
        mark(strip.yaxis, marks, _spelt)
    scale_values(strips[-1])


def _marks(low: float, high: float, length: float) -> Sequence[float]:
    """A few, which do not reach into the next strips."""
    rim = (high / low) ** ((TICK / 72 - _BETWEEN) / 2 / length)
    enough = max(2, int(length / _APART))
    return log_marks(low * rim, high / rim, length - TICK / 72 + _BETWEEN, lambda _: TICK / 72, enough=enough)


def _spelt(count: float) -> str:
    return f"{count:,.10g}" if count < _EXACT else f"{count:.0e}"


def _name_strip(axes: Axes, words: str) -> None:
    left, middle = ScaledTranslation(-_NUMBERS, 0, axes.figure.dpi_scale_trans), axes.transAxes
    axes.text(0, 0.5, words, ha="right", va="center", fontsize=TICK, transform=middle + left, parse_math=False)


def _mark_threshold(axes: Axes, threshold: float | None, span: Span) -> bool:
    """Whether it is in sight."""
    ends = [] if threshold is None else [end for end in (-threshold, threshold) if span[0] < end < span[1]]
    for end in ends:
        axes.axvline(end, color=GREY, linewidth=1, linestyle=(0, (4, 2)), zorder=3)
    return bool(ends)
