"""All parts of the benchmark, in the order in which they are measured and written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from benchmarks.bench.measuring import Setting
from benchmarks.bench.rows import Row

Found = tuple[Sequence[Row], str]


@dataclass(frozen=True)
class Measured:
    """A part, by the module and the function that measure it. Imported only then: no part is to want
    the libraries of another."""

    title: str
    module: str
    function: str = "measure"

    def measure(self, setting: Setting) -> Found:
        """Its rows, and what is to be said of them in Markdown."""
        found: Found = getattr(import_module(self.module), self.function)(setting)
        return found


_HERE = __package__

PARTS: Mapping[str, Measured] = {
    "training": Measured("Training on a CPU", f"{_HERE}.training"),
    "precision": Measured("What bf16 costs in accuracy", f"{_HERE}.training", "precision"),
    "penalty": Measured("The L1 term", f"{_HERE}.training", "penalty"),
    "distributions": Measured("Weight distributions", f"{_HERE}.distributions"),
    "gpu": Measured("Training on a GPU", f"{_HERE}.gpu"),
    "together": Measured("Many at once on a CPU", f"{_HERE}.together", "on_cpu"),
    "together-gpu": Measured("Many at once on a GPU", f"{_HERE}.together", "on_gpu"),
    "files": Measured("Files of many at once", f"{_HERE}.whole", "files"),
    "whole-gpu": Measured("Many whole runs at once on a GPU", f"{_HERE}.whole", "on_gpu"),
    "overhead": Measured("What a job costs beside the engine's work", f"{_HERE}.running", "overhead"),
    "serving": Measured("The API's process", f"{_HERE}.serving"),
    "listing": Measured("Lists", f"{_HERE}.listing"),
    "sweep": Measured("A sweep", f"{_HERE}.running", "sweep"),
    "growth": Measured("Cost as work grows", f"{_HERE}.growth"),
    "holding": Measured("A worker's memory", f"{_HERE}.holding"),
    "workers": Measured("Many workers", f"{_HERE}.running", "workers"),
}
