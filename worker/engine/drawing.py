"""Pictures for people. Matplotlib's objects without pyplot: no display, no global state, same input same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from app.contract.datasets import DATASETS
from app.contract.frontier import Frontier
from app.contract.report import (
    Distribution,
    Histogram,
    Report,
    Sensitivity,
    TensorHistogram,
    TensorReport,
)
from worker.engine.lettering import FONT, HEADLINE, LINE, columns, headline, writable
from worker.engine.marks import log_marks

DPI = 110
WIDTH = 11.5
_NARROW = 7.5
_ROW = 2.6
EDGE = 0.15
"""Inches that stay free of words on either side."""

TICK = 8.0
"""The size of letters, in points."""

_BEFORE, _AFTER, _BAND = "#A9D3F0", "#0072B2", "#EEEEEE"
# Okabe and Ito's colours, which people with any kind of colour vision tell apart; as many as jobs may be compared.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#9A8B00")
GREY = "#555555"
_PENALTIES = {
    "l1": "L1",
    "l1-proximal": "proximal L1",
    "group-lasso": "group lasso",
    "l2": "L2",
    "elastic-net": "elastic net",
}
Span = tuple[float, float]
LOG_FLOOR = 0.5
"""Where bars stand on a log scale, which has no zero: a bar of one weight must still be seen."""


def draw_histogram(histogram: Histogram, report: Report, title: str | None) -> bytes:
    """A PNG with one row a tensor, its weights before and after pruning: linear count on the left, log on the right."""
    facts = {tensor.name: tensor for tensor in report.tensors}
    figure, rows = _figure(len(histogram.tensors), _headline(title, report))
    for (left, right), tensor in zip(rows, histogram.tensors, strict=True):
        _draw_tensor(left, tensor, log=False)
        _draw_tensor(right, tensor, log=True)
        marked = "" if tensor.threshold is None else f", θ = {tensor.threshold:g}"
        entitle(left, f"{tensor.name}: {_facts(facts[tensor.name])}{marked}")
    # Of all rows: the first may have no threshold.
    handles = {handle.get_label(): handle for _, right in rows for handle in right.get_legend_handles_labels()[0]}
    figure.legend(handles=handles.values(), loc="lower center", ncols=3, frameon=False, fontsize=8)
    rows[-1][0].set_xlabel("value")
    rows[-1][1].set_xlabel("value")
    return png(figure)


def draw_sensitivity(sensitivity: Sensitivity, report: Report, title: str | None) -> bytes:
    """A PNG with a line for each weight tensor: accuracy against its sparsity, all others whole."""
    where = f"accuracy on {sensitivity.count:,} {sensitivity.images} images"
    what = f"{data_set(report)}: {where}, one layer pruned alone"
    words = headline((writable(title), what), _NARROW - 2 * EDGE)
    figure = Figure(figsize=(_NARROW, 4.2 + LINE * lines_of(words)), dpi=DPI, layout="constrained")
    figure.set_facecolor("white")
    head(figure, words)
    axes = figure.subplots()
    axes.axhline(100 * sensitivity.accuracy, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), label="not pruned")
    for tensor, color in zip(sensitivity.tensors, COLORS, strict=False):
        # In the order of the axis, whatever the spec's.
        points = sorted((100 * (1 - point.nonzero / tensor.total), 100 * point.accuracy) for point in tensor.points)
        label = f"{tensor.name} ({tensor.total:,})"
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, linewidth=1.2, color=color, label=label)
    axes.set_xlabel("zeros in the layer's weights, %")
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(bottom=0, top=101)
    bare(axes)
    ncols = columns(axes.get_legend_handles_labels()[1], _NARROW, 3)
    figure.legend(loc="outside lower center", ncols=ncols, frameon=False, fontsize=8)
    return png(figure)


def _headline(title: str | None, report: Report) -> str:
    trained = f"{penalty_in_words(report.penalty)} penalty β = {report.strength:g}" if report.penalty else "no penalty"
    pruned = _pruned(report)
    done = (trained, pruned) if report.kind == "train" else (pruned,)
    how = ", ".join((data_set(report), *done))
    accuracy = f"accuracy {_percent(report.accuracy_before.accuracy)}"
    if report.method is not None:
        accuracy += f" → {_percent(report.accuracy_after.accuracy)}"
        accuracy += f", {_percent(report.total.sparsity)} of all parameters are zero"
    return headline((writable(title), f"{how}: {accuracy}"), WIDTH - 2 * EDGE)


def data_set(of: Report | Frontier) -> str:
    """One that was uploaded has a job's id in the place of a name, and maybe a name, which any other may have too."""
    if of.dataset in DATASETS:
        return of.dataset
    name = writable(of.dataset_name)
    return f"data set {end_of(of.dataset)}" if name is None else f"data set “{name}”"


def end_of(job_id: str) -> str:
    """It tells an id from others; the beginning is the time."""
    return f"…{job_id[-8:]}"


def penalty_in_words(name: str) -> str:
    return _PENALTIES.get(name, name)


def _pruned(report: Report) -> str:
    """In words, the schedule too unless all went at once."""
    if report.method is None:
        return "not pruned"
    if report.threshold is not None:
        how = f"pruned at θ = {report.threshold:g}"
    else:
        how = f"pruned by {report.method}" if report.method != "channels" else "pruned by whole channels"
    trained_on = report.accuracy_pruned not in (None, report.accuracy_after)
    when = {"iterative": " in rounds", "gradual": " gradually"}.get(report.schedule or "", "")
    return f"{how}{when}{' and trained on' if trained_on else ''}"


def _facts(tensor: TensorReport) -> str:
    what = "weights" if tensor.kind == "weight" else "biases"
    words = f"{tensor.total:,} {what} from {tensor.min:.4g} to {tensor.max:.4g}".replace("-", "−")
    if not tensor.eligible:
        return f"{words}, {tensor.nonzero_after:,} of them not zero"
    return f"{words}, not zero {tensor.nonzero_before:,} → {tensor.nonzero_after:,} ({_percent(tensor.sparsity)} zero)"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _draw_tensor(axes: Axes, tensor: TensorHistogram, *, log: bool) -> None:
    floor = LOG_FLOOR if log else 0.0
    drawn = {"before": tensor.before} | ({"after": tensor.after} if tensor.after else {})
    span = span_of(drawn.values())
    _mark_threshold(axes, tensor.threshold)
    # The later over the earlier: what stays pale is what pruning took away.
    outlines = [stairs(distribution, span) for distribution in drawn.values()]
    for when, (counts, edges), color in zip(drawn, outlines, (_BEFORE, _AFTER), strict=False):
        label = f"{when} pruning" if tensor.after else "not pruned"
        add(axes, counts, edges, floor, fill=True, linewidth=0, color=color, label=label)
    axes.set_xlim(span)
    scale_values(axes)
    axes.set_ylabel("count, log scale" if log else "count")
    if log:
        _scale_log(axes, floor, max(float(counts.max()) for counts, _ in outlines))
    else:
        _scale_linear(axes, highest := _highest(tensor.before.counts))
        _tell_what_is_cut_off(axes, drawn, highest)


def _highest(counts: Sequence[int]) -> float:
    """Where the linear scale ends: at the tallest bar, or far lower where a few bars would flatten all others."""
    ordinary = sorted(counts, reverse=True)[max(2, len(counts) // 10) - 1]
    whole = 1.12 * max(counts)
    return min(whole, 4.0 * ordinary) if ordinary else whole


def _tell_what_is_cut_off(axes: Axes, drawn: Mapping[str, Distribution], highest: float) -> None:
    """Pruning heaps up zeros, and an L1 penalty weights close to zero: what does not fit is told in words."""
    cut = {when: _peak(drawn[when]) for when in drawn if max(drawn[when].counts) > highest}
    lines = [f"↑ {when}: {peak}" if len(drawn) > 1 else f"↑ {peak}" for when, peak in cut.items()]
    if lines:
        axes.annotate(
            "\n".join(lines),
            (0.995, 0.98),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1},
        )


def _peak(distribution: Distribution) -> str:
    """The tallest bar in words."""
    count = max(distribution.counts)
    where = distribution.centres[distribution.counts.index(count)]
    place = "0" if abs(where) <= _step(distribution) else f"{where:.2g}".replace("-", "−")
    return f"{count:,} at {place}"


def add(axes: Axes, heights: NDArray[np.float64], edges: NDArray[np.float64], floor: float, **style: Any) -> None:
    """As `Axes.stairs`, without the limits that it works out for each bar: they are set anyway."""
    axes.add_artist(StepPatch(heights, edges, baseline=floor, **style))


def _mark_threshold(axes: Axes, threshold: float | None) -> None:
    if threshold is None:
        return
    axes.axvspan(-threshold, threshold, color=_BAND, zorder=0, linewidth=0, label="−θ to θ")
    for end in (-threshold, threshold):
        axes.axvline(end, color=GREY, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)


def stairs(distribution: Distribution, span: Span) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts, and the edges half-way between the centres. A constant tensor is one bar, wide enough to be seen."""
    centres, counts = np.array(distribution.centres), np.array(distribution.counts, dtype=np.float64)
    step = _step(distribution)
    if step == 0 or not np.all(np.diff(centres) > 0):
        half = (span[1] - span[0]) / 400
        return np.array([counts.sum()]), distribution.min + np.array([-half, half])
    return counts, np.append(centres - step / 2, centres[-1] + step / 2)


def _step(distribution: Distribution) -> float:
    return (distribution.max - distribution.min) / (len(distribution.centres) - 1)


def span_of(distributions: Collection[Distribution]) -> Span:
    """From the least value to the greatest with a margin, whether the marks at ±θ are in sight or not."""
    low, high = min(each.min for each in distributions), max(each.max for each in distributions)
    least = max(1e-6, 1e-3 * max(abs(low), abs(high)))
    margin = max(0.03 * (high - low), least)
    return low - margin, high + margin


def scale_values(axes: Axes) -> None:
    """Few marks: of values that are close to each other the numbers are long."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _scale_linear(axes: Axes, highest: float) -> None:
    axes.set_ylim(0, highest)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _scale_log(axes: Axes, floor: float, highest: float) -> None:
    """With a twentieth of room at the top, and over more than a power of ten: there are three whole numbers in it."""
    top = max(highest * (highest / floor) ** 0.05, 11 * floor)
    axes.set_yscale("log")
    axes.set_ylim(floor, top)
    mark(axes.yaxis, log_marks(floor, top, axes.bbox.height / DPI, lambda _: TICK / 72, whole=True), _spelt)


def _spelt(count: float) -> str:
    return f"{count:,.10g}"


def _figure(rows: int, words: str) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """Two columns of axes below `words`, laid out by rulers: every label's size is known here, and a layout engine
    would draw all of it twice to find out."""
    height = rows * _ROW + 0.4 + LINE * lines_of(words)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    figure.set_facecolor("white")
    head(figure, words)
    left, right, top, bottom, between = 0.95, 0.4, height - rows * _ROW + 0.1, 0.75, 0.55
    axes = (height - top - bottom - (rows - 1) * between) / rows
    places = {"left": left / WIDTH, "right": 1 - right / WIDTH, "top": 1 - top / height, "bottom": bottom / height}
    grid = figure.subplots(rows, 2, squeeze=False, gridspec_kw={**places, "hspace": between / axes, "wspace": 0.2})
    for each in grid.flat:
        bare(each)
    return figure, [(left, right) for left, right in grid]


def bare(axes: Axes) -> None:
    """Without the sides that have no marks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=TICK)


def mark(axis: Axis, marks: Sequence[float], spelt: Callable[[float], str]) -> None:
    """There and nowhere else."""
    axis.set_major_locator(FixedLocator(marks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: spelt(value)))
    axis.set_minor_locator(NullLocator())


def entitle(axes: Axes, words: str) -> None:
    axes.set_title(words, loc="left", fontsize=9, fontweight="bold", parse_math=False)


def head(figure: Figure, words: str) -> None:
    """At the top, however tall the picture is: a layout engine finds the place by itself."""
    place = 1 - 0.1 / figure.get_size_inches()[1] if figure.get_layout_engine() is None else None
    figure.suptitle(words, y=place, fontsize=HEADLINE, parse_math=False, fontfamily=FONT)


def lines_of(words: str) -> int:
    return 1 + words.count("\n")


def png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()
