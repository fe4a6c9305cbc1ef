"""All parts of the benchmark, in the order in which they are measured and written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.bench import distributions, together, training
from benchmarks.bench.measuring import Setting
from benchmarks.bench.rows import Row


@dataclass(frozen=True)
class Measured:
    """A part: `measure` gives its rows, and what is to be said of them in Markdown."""

    title: str
    measure: Callable[[Setting], tuple[Sequence[Row], str]]


PARTS: Mapping[str, Measured] = {
    "training": Measured("Training on a CPU", training.measure),
    "penalty": Measured("The L1 term", training.penalty),
    "together": Measured("Many at once", together.measure),
    "distributions": Measured("Weight distributions", distributions.measure),
}
