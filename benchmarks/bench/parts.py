"""All parts of the benchmark, in the order in which they are measured and written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.bench.measuring import Setting
from benchmarks.bench.rows import Row

Found = tuple[Sequence[Row], str]


@dataclass(frozen=True)
class Measured:
    """A part: `measure` gives its rows, and what is to be said of them in Markdown."""

    title: str
    measure: Callable[[Setting], Found]


# Imported when they are measured: no part is to want the libraries of another.


def _training(setting: Setting) -> Found:
    from benchmarks.bench import training

    return training.measure(setting)


def _penalty(setting: Setting) -> Found:
    from benchmarks.bench import training

    return training.penalty(setting)


def _precision(setting: Setting) -> Found:
    from benchmarks.bench import training

    return training.precision(setting)


def _distributions(setting: Setting) -> Found:
    from benchmarks.bench import distributions

    return distributions.measure(setting)


def _gpu(setting: Setting) -> Found:
    from benchmarks.bench import gpu

    return gpu.measure(setting)


def _together(setting: Setting) -> Found:
    from benchmarks.bench import together

    return together.on_cpu(setting)


def _together_gpu(setting: Setting) -> Found:
    from benchmarks.bench import together

    return together.on_gpu(setting)


PARTS: Mapping[str, Measured] = {
    "training": Measured("Training on a CPU", _training),
    "precision": Measured("What bf16 costs in accuracy", _precision),
    "penalty": Measured("The L1 term", _penalty),
    "distributions": Measured("Weight distributions", _distributions),
    "gpu": Measured("Training on a GPU", _gpu),
    "together": Measured("Many at once on a CPU", _together),
    "together-gpu": Measured("Many at once on a GPU", _together_gpu),
}
