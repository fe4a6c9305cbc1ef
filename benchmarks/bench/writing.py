"""The results as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.bench.rows import Machine, Part, Results, Row

_HEAD = """# How fast it is

Written by `make bench`. A figure is a ratio against a plain alternative in the same run, the two in turn; in brackets
the least and the most of its rounds. Medians and spreads of what was measured are below, part by part, and so is what
it was measured on: a part that was not run again keeps the figures of its own run.

![Figures against what they must reach](results.png)"""


def write(results: Results) -> str:
    """Markdown."""
    machines = _machines(results)
    parts = [_part(part, machines) for part in results.parts]
    return "\n\n".join((_HEAD, _summary(results, machines), _machine_table(machines), *parts)) + "\n"


def _machines(results: Results) -> list[Machine]:
    """Each machine once, dates left aside."""
    found: list[Machine] = []
    for part in results.parts:
        if all(_apart_from_date(part.machine) != _apart_from_date(each) for each in found):
            found.append(part.machine)
    return found


def _apart_from_date(machine: Machine) -> Machine:
    return machine.model_copy(update={"date": ""})


def _place(part: Part, machines: Sequence[Machine]) -> int:
    return 1 + [_apart_from_date(each) for each in machines].index(_apart_from_date(part.machine))


def _summary(results: Results, machines: Sequence[Machine]) -> str:
    lines = [
        (
            row.what,
            row.against,
            figure(row),
            bound(row, row.must),
            bound(row, row.aim),
            verdict(row),
            f"{part.machine.date[:10]}, machine {_place(part, machines)}{', quick' if part.quick else ''}",
        )
        for part in results.parts
        for row in part.rows
    ]
    return table(("what", "against", "figure", "must reach", "aim", "reached", "run"), lines)


def figure(row: Row) -> str:
    if row.figure is None or row.spread is None:
        return f"skipped: {row.skipped}"
    least, most = row.spread
    times = "×" if row.plain else f" {row.unit}"
    return f"**{number(row.figure)}{times}** ({number(least)} – {number(most)})"


def bound(row: Row, value: float | None) -> str:
    if value is None:
        return ""
    return f"{'≥' if row.more_is_better else '≤'} {value:g}{'×' if _is_ratio(row) else f' {row.unit}'}"


def _is_ratio(row: Row) -> bool:
    return row.kind != "value"


def verdict(row: Row) -> str:
    if row.reaches(row.aim):
        return "aim"
    reached = row.reaches(row.must)
    if reached is None:
        return ""
    return "yes" if reached else "**no**"


def number(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def _machine_table(machines: Sequence[Machine]) -> str:
    lines = [
        (
            str(place),
            f"{each.processor}, {each.cores} cores, {each.memory_gb:g} GB",
            each.gpu or "none",
            each.system,
            ", ".join(f"{name} {version}" for name, version in each.versions.items()),
        )
        for place, each in enumerate(machines, start=1)
    ]
    return table(("machine", "processor", "GPU", "system", "versions"), lines)


def _part(part: Part, machines: Sequence[Machine]) -> str:
    lines = [
        (row.what, _measured(row.ours, row.unit), _measured(row.plain, row.unit), str(len(row.ours)), row.remark)
        for row in part.rows
        if row.skipped is None
    ]
    head = f"## {part.title}\n\n`--only {part.name}`, {part.machine.date}, machine {_place(part, machines)}, "
    blocks = [head + f"{part.seconds:.0f} s{', quick: not for comparison' if part.quick else ''}."]
    if lines:
        blocks.append(table(("what", "ours: median, spread", "the plain alternative", "rounds", "remark"), lines))
    blocks.extend(f"{row.what}: skipped. {row.skipped}" for row in part.rows if row.skipped is not None)
    return "\n\n".join(blocks + [part.details] * bool(part.details))


def _measured(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    least, middle, most = min(values), statistics.median(values), max(values)
    return f"{number(middle)} {unit} ({number(least)} – {number(most)})"
