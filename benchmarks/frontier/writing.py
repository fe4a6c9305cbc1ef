"""The figures as text and as a picture."""

from __future__ import annotations

import io
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from benchmarks.frontier.results import Result


class Wanted(NamedTuple):
    """A row of the table: what is to be reached, and what has been published near it."""

    target: int
    bound: str
    published: str


WANTED = (
    Wanted(4_812, "≤ 0.60 %", "Dynamic Network Surgery, 108× at 0.91 %"),
    Wanted(2_406, "≤ 0.70 %", "Soft weight-sharing, 200× at 0.97 %"),
    Wanted(1_540, "≤ 0.85 %", "Sparse Variational Dropout, 280× at 0.75 % (weights alone, one run)"),
    Wanted(1_000, "≤ 1.0 %", "none"),
)

ANCHORS = (
    ("Han 2015", 12, 0.77),
    ("SNIP", 50, 0.8),
    ("Dynamic Sparse Training", 61, 0.89),
    ("ADMM", 71, 0.8),
    ("Dynamic Network Surgery", 108, 0.91),
    ("Soft weight-sharing", 200, 0.97),
    ("Sparse Variational Dropout", 280, 0.75),
)
"""Published for LeNet-5-Caffe (430,500 weights), by the factor of their own network and their test error in percent."""

CONTROLS = {
    "direct-lamp": "this service's scores, pruned once",
    "direct-global": "magnitude, one ranking of all tensors",
    "direct-random": "a random mask with the same number of entries in each tensor",
    "small-dense": "a dense network of that size from new weights",
}


def write(results: Sequence[Result]) -> str:
    by_line = _grouped(results)
    parts = [
        _INTRODUCTION,
        _frontier(by_line),
        _FRONTIER_NOTES,
        _controls(by_line),
        _channels(by_line),
        _bytes(by_line),
        _recipe(results),
        _receipt(results),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


Grouped = Mapping[tuple[str, int], Sequence[Result]]


def _grouped(results: Iterable[Result]) -> Grouped:
    found: dict[tuple[str, int], list[Result]] = defaultdict(list)
    for result in sorted(results, key=lambda each: each.seed):
        found[result.line, result.target].append(result)
    return found


_INTRODUCTION = """# How far MNIST networks can be pruned

Made by `make frontier DATA_DIR=folder`, which runs the specs below through the engine and writes this file.
`make recount DATA_DIR=folder` reads the kept networks with numpy alone, counts their non-zeros and measures them again.
All of 481,214 parameters are counted, biases and BatchNorm included. Recipe and epochs are chosen by 5,000 training
images set aside; the 10,000 test images are measured, and nothing is chosen by them.

![Test error against parameters left](frontier.png)"""

_FRONTIER_NOTES = """`left` is of the network as it was trained, and in brackets with BatchNorm folded into the
convolutions, as it is packed and recounted. Errors are mean ± standard deviation over the seeds. What is published is
of another network (LeNet-5-Caffe, 430,500 weights), mostly of one run, and some of it counts weights alone."""


def _frontier(by_line: Grouped) -> str:
    rows = ["| target | left | factor | test error | each seed | validation error | aim | published |", _rule(8)]
    for wanted in WANTED:
        found = by_line.get(("lamp", wanted.target), [])
        if found:
            most = max(found, key=lambda each: each.nonzero)
            rows.append(
                f"| ≤ {wanted.target:,} | {most.nonzero:,} ({_span(found, lambda each: each.packed_nonzero)}) "
                f"| {most.parameters / most.nonzero:.0f}× | **{_mean(found)}** | {_each(found)} "
                f"| {_mean(found, lambda each: each.validation_error)} | {wanted.bound} | {wanted.published} |"
            )
        else:
            rows.append(f"| ≤ {wanted.target:,} | | | not measured yet | | | {wanted.bound} | {wanted.published} |")
    return "## The frontier\n\n" + "\n".join(rows)


def _controls(by_line: Grouped) -> str:
    rows = ["| at most 1,540 left | left | epochs | test error | each seed |", _rule(5)]
    for line, what in CONTROLS.items():
        found = by_line.get((line, 1_540), [])
        if found:
            left = _span(found, lambda each: each.nonzero)
            rows.append(f"| {what} | {left} | {found[0].epochs} | {_mean(found)} | {_each(found)} |")
    text = """## Controls

The first three begin with the same dense network and take the same epochs, fewer than the frontier's networks of that
size; the last has as many epochs in all, and no more parameters to begin with."""
    return f"{text}\n\n" + "\n".join(rows)


def _channels(by_line: Grouped) -> str:
    rows = [
        "| seed | widths | parameters, compact | fewer | test error | batch | dense, ms | compact, ms | faster |",
        _rule(9),
    ]
    found = by_line.get(("channels", 9_624), [])
    if not found:
        return ""
    for result in found:
        compact = result.compact
        widths = ", ".join(map(str, (*compact.channels, compact.hidden)))
        for batch in (1, 64):
            dense, small = (_latency(result, model, batch) for model in ("dense", "compact"))
            fewer, error = result.parameters / compact.parameters, f"{100 * result.error:.2f} %"
            rows.append(
                f"| {result.seed} | {widths} | {compact.parameters:,} | {fewer:.0f}× | {error} | {batch} "
                f"| {dense:.3f} | {small:.3f} | {dense / small:.1f}× |"
            )
    text = """## Whole channels

The same dense network, its channels and hidden units pruned in three rounds: fewer parameters that are all used, and
so faster. Latency is the median in ONNX Runtime on one thread, dense and compact taking turns."""
    return f"{text}\n\n" + "\n".join(rows)


def _latency(result: Result, model: str, batch: int) -> float:
    measured = result.latency.measured
    return next(each.median_ms for each in measured if (each.model, each.batch) == (model, batch))


def _bytes(by_line: Grouped) -> str:
    rows = ["| left | packed, bytes | dense file, bytes | smaller |", _rule(4)]
    for wanted in WANTED:
        found = by_line.get(("lamp", wanted.target), [])
        if found:
            most = max(found, key=lambda each: each.packed_bytes)
            smaller = most.dense_bytes / most.packed_bytes
            rows.append(f"| ≤ {wanted.target:,} | {most.packed_bytes:,} | {most.dense_bytes:,} | {smaller:.0f}× |")
    return "## Bytes\n\nThe largest of the seeds.\n\n" + "\n".join(rows)


def _recipe(results: Sequence[Result]) -> str:
    first = min((each for each in results if each.line == "lamp"), key=lambda each: (each.target, each.seed))
    specs = "\n".join(json.dumps(_without_defaults(spec), ensure_ascii=False) for spec in first.specs)
    text = f"""## Recipe

Of seed {first.seed}; others differ in `seed` alone. Each job begins with what the one before it published, so that the
smallest network has been through all of them ({first.epochs} epochs). The receipts in `benchmarks/frontier/models` have
every spec in full, with versions, threads and processor."""
    return f"{text}\n\n```json\n{specs}\n```"


_SAID_ELSEWHERE = ("dataset", "histogram", "sensitivity", "limits", "labels", "display_name", "job_id")


def _without_defaults(spec: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in spec.items() if key not in _SAID_ELSEWHERE and value is not None}


def _receipt(results: Sequence[Result]) -> str:
    devices = sorted({f"{each.device}, {each.threads} thread, PyTorch {each.versions['torch']}" for each in results})
    hours = sum(_own_seconds(results).values()) / 3600
    return f"Run on: {'; '.join(devices)}. {hours:.1f} hours of one thread for {len(results)} networks."


def _own_seconds(results: Sequence[Result]) -> dict[str, float]:
    """Of each job once, though chains share jobs."""
    found: dict[str, float] = {}
    for result in results:
        found |= result.seconds
    return found


def _mean(found: Sequence[Result], of: Callable[[Result], float] = lambda each: each.error) -> str:
    values = [100 * of(each) for each in found]
    if len(values) == 1:
        return f"{values[0]:.2f} % (one seed)"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} %"


def _each(found: Sequence[Result]) -> str:
    return ", ".join(f"{100 * each.error:.2f}" for each in found)


def _span(found: Sequence[Result], of: Callable[[Result], int]) -> str:
    least, most = min(map(of, found)), max(map(of, found))
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def _rule(columns: int) -> str:
    return "|" + " --- |" * columns


def _scatter(axes: Axes, found: Sequence[Result], color: str, marker: str, label: str) -> None:
    if found:
        left, errors = [each.nonzero for each in found], [100 * each.error for each in found]
        axes.scatter(left, errors, s=20, color=color, marker=marker, label=label, zorder=3)


def draw(results: Sequence[Result]) -> bytes:
    """A PNG: test error against parameters left, a point a network, a line through the means."""
    figure = Figure(figsize=(8.5, 5.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    by_line = _grouped(results)
    frontier = [by_line[key] for key in sorted(by_line) if key[0] == "lamp"]
    left = [max(each.nonzero for each in found) for found in frontier]
    means = [100 * statistics.mean(each.error for each in found) for found in frontier]
    axes.plot(left, means, color="#0072B2", linewidth=1.5, label="this service, mean of the seeds")
    _scatter(axes, [each for found in frontier for each in found], "#0072B2", "o", "each seed")
    _scatter(axes, by_line.get(("small-dense", 1_540), []), "#E69F00", "s", "control: small dense network")
    _scatter(axes, by_line.get(("direct-lamp", 1_540), []), "#56B4E9", "^", "pruned once, fewer epochs")
    published = "published, of LeNet-5-Caffe, by factor"
    spots = [(481_214 / factor, error) for _, factor, error in ANCHORS]
    axes.scatter([x for x, _ in spots], [y for _, y in spots], s=34, color="#D55E00", marker="x", label=published)
    for (name, factor, _), spot in zip(ANCHORS, spots, strict=True):
        words = f"{name} {factor}×"
        axes.annotate(words, spot, xytext=(5, 5), textcoords="offset points", fontsize=7.5, color="#555555")
    axes.set_xscale("log")
    axes.set_xlim(800, 80_000)
    axes.set_xticks([1_000, 1_540, 2_406, 4_812, 10_000, 20_000, 40_000])
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("parameters left of 481,214, all counted")
    axes.set_ylabel("test error, %")
    axes.set_title("MNIST: how far pruning goes", fontsize=11)
    axes.grid(visible=True, color="#EEEEEE", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
