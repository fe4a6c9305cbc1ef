"""The results as a picture."""

from __future__ import annotations

import io
import math

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.bench.rows import Results, Row
from benchmarks.bench.writing import bound, number

_REACHED, _AIMED, _SHORT, _AIM = "#56B4E9", "#0072B2", "#D55E00", "#333333"
_TICKS = (0.1, 0.25, 0.5, 1, 2, 4, 10, 30, 100)


def draw(results: Results) -> bytes:
    """A PNG: how many times over each figure reaches what it must, and where its aim is."""
    rows = [row for part in results.parts for row in part.rows if row.margin is not None]
    figure = Figure(figsize=(11, 1.4 + 0.42 * max(1, len(rows))), dpi=110, layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        margin = row.margin
        assert margin is not None
        axes.barh(place, math.log(margin), height=0.6, color=_color(row))
        # In a column beside the bars, where no stroke crosses it.
        axes.text(1.01, place, _told(row), transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        if row.aim is not None and row.must is not None:
            aim = row.aim / row.must if row.more_is_better else row.must / row.aim
            axes.plot([math.log(aim)] * 2, [place - 0.42, place + 0.42], color=_AIM, linewidth=2)
    axes.axvline(0, color="#000000", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.what for row in reversed(rows)], fontsize=8)
    margins = [row.margin for row in rows if row.margin is not None]
    aims = [row.aim / row.must if row.more_is_better else row.must / row.aim for row in rows if row.aim and row.must]
    least, most = min([0.8, *margins]), max([2.5, *margins, *aims])
    axes.set_xlim(math.log(least) - 0.1, math.log(most) + 0.1)
    axes.set_ylim(-0.7, max(1, len(rows)) - 0.3)
    shown = [tick for tick in _TICKS if least / 2 <= tick <= most * 2]
    axes.xaxis.set_major_locator(FixedLocator([math.log(tick) for tick in shown]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{math.exp(value):g}×"))
    axes.set_xlabel("times over what it must reach (line: just so; dark stroke: the aim)")
    axes.grid(visible=True, axis="x", color="#EEEEEE", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _color(row: Row) -> str:
    if row.reaches(row.aim):
        return _AIMED
    return _REACHED if row.reaches(row.must) else _SHORT


def _told(row: Row) -> str:
    assert row.figure is not None
    figure = f"{number(row.figure)}{'×' if row.plain else f' {row.unit}'}"
    return f"{figure}, must be {bound(row, row.must)}"
