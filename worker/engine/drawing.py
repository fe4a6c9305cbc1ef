"""Pictures for people. Matplotlib's objects without pyplot: no display, no global state, same input same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from app.contract.report import ComparedJob, Comparison, Distribution, Histogram, Report, TensorHistogram, TensorReport

_DPI = 110
_WIDTH = 11.5
_ROW = 2.6
_BEFORE, _AFTER, _BAND = "#A9D3F0", "#0072B2", "#EEEEEE"
# Okabe and Ito's colours, which people with any kind of colour vision tell apart; as many as jobs may be compared.
_JOBS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#9A8B00")
_GREY = "#555555"
_FONT = "DejaVu Sans"


def draw_histogram(histogram: Histogram, report: Report, title: str | None) -> bytes:
    """A PNG with one row a tensor, its weights before and after pruning: linear count on the left, log on the right."""
    facts = {tensor.name: tensor for tensor in report.tensors}
    figure, rows = _figure(len(histogram.tensors), _headline(title, report))
    for (left, right), tensor in zip(rows, histogram.tensors, strict=True):
        _draw_tensor(left, tensor, log=False)
        _draw_tensor(right, tensor, log=True)
        _name_row(left, f"{tensor.name}: {_facts(facts[tensor.name])}")
    rows[0][1].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=8, borderaxespad=0.2)
    rows[-1][0].set_xlabel("weight")
    rows[-1][1].set_xlabel("weight")
    return _png(figure)


def _headline(title: str | None, report: Report) -> str:
    trained = f"{report.penalty.upper()} penalty β = {report.strength:g}" if report.penalty else "no penalty"
    pruned = f"pruned at θ = {report.threshold:g}" if report.threshold is not None else "not pruned"
    how = f"{report.dataset}, {trained}, {pruned}" if report.kind == "train" else f"{report.dataset}, {pruned}"
    accuracy = f"accuracy {_percent(report.accuracy_before.accuracy)}"
    if report.threshold is not None:
        accuracy += f" → {_percent(report.accuracy_after.accuracy)}"
        accuracy += f", {_percent(report.total.sparsity)} of all parameters are zero"
    return "\n".join(filter(None, (_legible(title, 100), f"{how}: {accuracy}")))


def _facts(tensor: TensorReport) -> str:
    words = f"{tensor.total:,} weights from {tensor.min:.4g} to {tensor.max:.4g}".replace("-", "−")
    if tensor.threshold is None:
        return words
    return f"{words}, {tensor.nonzero_after:,} left ({_percent(tensor.sparsity)} zero)"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _draw_tensor(axes: Axes, tensor: TensorHistogram, *, log: bool) -> None:
    _mark_threshold(axes, tensor.threshold)
    axes.stairs(*_stairs(tensor.before), fill=True, baseline=_floor(log), color=_BEFORE, label="before pruning")
    if tensor.after is not None:
        # Over it: what stays pale is what pruning took away.
        axes.stairs(*_stairs(tensor.after), fill=True, baseline=_floor(log), color=_AFTER, label="after pruning")
    _scale(axes, log)
    axes.set_ylabel("weights, log scale" if log else "weights")
    if not log:
        highest = 1.12 * max(tensor.before.counts)
        axes.set_ylim(0, highest)
        if tensor.after is not None:
            _tell_what_is_cut_off(axes, tensor.after, highest)


def _tell_what_is_cut_off(axes: Axes, after: Distribution, highest: float) -> None:
    """Pruning heaps up zeros; drawn to scale, they would flatten all the rest."""
    peak = max(after.counts)
    if peak > highest:
        where = after.centres[after.counts.index(peak)]
        axes.annotate(
            f"{peak:,} at 0 ↑",
            (where, highest),
            xytext=(6, -3),
            textcoords="offset points",
            va="top",
            color=_AFTER,
            fontsize=8,
        )


def draw_comparison(comparison: Comparison) -> bytes:
    """A PNG: accuracy and sparsity side by side, then one row a tensor with all jobs' weights over each other."""
    names = list(dict.fromkeys(tensor.name for job in comparison.jobs for tensor in job.histogram.tensors))
    figure, rows = _figure(1 + len(names), "Comparison", first=0.5 * len(comparison.jobs))
    _draw_accuracy(rows[0][0], comparison.jobs)
    _draw_sparsity(rows[0][1], comparison.jobs)
    for (left, right), name in zip(rows[1:], names, strict=True):
        for job, color in zip(comparison.jobs, _JOBS, strict=False):
            for tensor in job.histogram.tensors:
                if tensor.name == name:
                    _draw_density(left, tensor.before, color)
                    _draw_density(right, tensor.after or tensor.before, color)
                    _mark_threshold(right, tensor.threshold)
        for axes in (left, right):
            _scale(axes, log=True)
            axes.set_ylabel("weights per 0.01")
        _name_row(left, f"{name}, before pruning")
        _name_row(right, f"{name}, after pruning")
    if names:
        rows[-1][0].set_xlabel("weight")
        rows[-1][1].set_xlabel("weight")
    return _png(figure)


def _draw_accuracy(axes: Axes, jobs: Sequence[ComparedJob]) -> None:
    before = [100 * job.report.accuracy_before.accuracy for job in jobs]
    after = [100 * job.report.accuracy_after.accuracy for job in jobs]
    rows = np.arange(len(jobs))
    axes.barh(rows - 0.2, before, 0.36, color=_JOBS[: len(jobs)], alpha=0.45)
    axes.barh(rows + 0.2, after, 0.36, color=_JOBS[: len(jobs)])
    for row, figures in enumerate(zip(before, after, strict=True)):
        for offset, figure, when in zip((-0.2, 0.2), figures, ("before", "after"), strict=True):
            _write_in_bar(axes, row + offset, figure, f"{figure:.2f} % {when}", pale=when == "before")
    _name_bars(axes, jobs)
    _name_row(axes, "Test accuracy before and after pruning, %")


def _draw_sparsity(axes: Axes, jobs: Sequence[ComparedJob]) -> None:
    shares = [100 * job.report.total.sparsity for job in jobs]
    axes.barh(np.arange(len(jobs)), shares, 0.6, color=_JOBS[: len(jobs)])
    for row, (share, job) in enumerate(zip(shares, jobs, strict=True)):
        total = job.report.total
        _write_in_bar(axes, row, share, f"{share:.2f} %: {total.nonzero_after:,} of {total.parameters:,} left")
    _name_bars(axes, jobs)
    axes.set_yticklabels([])
    _name_row(axes, "Sparsity: zeros of all parameters, %")


def _write_in_bar(axes: Axes, row: float, length: float, words: str, *, pale: bool = False) -> None:
    """Within the bar where it is long enough, else beside it."""
    inside = length > 60
    axes.annotate(
        words,
        (length, row),
        xytext=(-4 if inside else 4, 0),
        textcoords="offset points",
        ha="right" if inside else "left",
        va="center",
        fontsize=7.5,
        color="white" if inside and not pale else "black",
    )


def _name_bars(axes: Axes, jobs: Sequence[ComparedJob]) -> None:
    # An id's end tells it from others; its beginning is the time.
    names = [_legible(job.display_name, 24) or f"job …{job.job_id[-8:]}" for job in jobs]
    axes.set_yticks(np.arange(len(jobs)), names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    for label, color in zip(axes.get_yticklabels(), _JOBS, strict=False):
        label.set_color(color)
        label.set_fontweight("bold")


def _draw_density(axes: Axes, distribution: Distribution, color: str) -> None:
    """Heights are divided by the width of a bin, which differs between jobs."""
    counts, edges = _stairs(distribution)
    axes.stairs(counts / np.diff(edges) * 0.01, edges, baseline=_floor(log=True), color=color, linewidth=1.1)


def _mark_threshold(axes: Axes, threshold: float | None) -> None:
    if threshold is None:
        return
    axes.axvspan(-threshold, threshold, color=_BAND, zorder=0, linewidth=0, label=f"−θ to θ, θ = {threshold:g}")
    for end in (-threshold, threshold):
        axes.axvline(end, color=_GREY, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)


def _stairs(distribution: Distribution) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts, and the edges half-way between the centres. A constant tensor is one bar of a width to be seen."""
    centres, counts = np.array(distribution.centres), np.array(distribution.counts, dtype=np.float64)
    step = (distribution.max - distribution.min) / (len(centres) - 1)
    if step == 0 or not np.all(np.diff(centres) > 0):
        width = max(0.01, abs(distribution.min) / 20)
        return np.array([counts.sum()]), distribution.min + np.array([-width / 2, width / 2])
    return counts, np.append(centres - step / 2, centres[-1] + step / 2)


def _floor(log: bool) -> float:
    """Where bars stand: a log scale has no zero, and a bar of one weight must still be seen."""
    return 0.5 if log else 0.0


def _scale(axes: Axes, log: bool) -> None:
    if log:
        axes.set_yscale("log")
        axes.set_ylim(bottom=_floor(log))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _figure(rows: int, headline: str, first: float = 0.0) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """Two columns of axes; `first` is the least height of the first row, in inches."""
    heights = [max(first, _ROW), *[_ROW] * (rows - 1)]
    height = sum(heights) + 0.6 + 0.25 * headline.count("\n")
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    figure.set_facecolor("white")
    figure.suptitle(headline, fontsize=11, parse_math=False, fontfamily=_FONT)
    grid = figure.subplots(rows, 2, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, [(left, right) for left, right in grid]


def _name_row(axes: Axes, words: str) -> None:
    axes.set_title(words, loc="left", fontsize=9, fontweight="bold", parse_math=False)


def _legible(text: str | None, width: int) -> str:
    """`text` on one line of at most `width` characters; those that the font lacks become boxes."""
    known = _characters()
    drawn = "".join(c if ord(c) in known else "□" for c in text or "")
    return drawn if len(drawn) <= width else drawn[: width - 1] + "…"


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(_FONT)).get_charmap())


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()
