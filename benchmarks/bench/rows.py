"""What was measured: rows of figures, each with its bound, and what they were measured on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from app.core.cores import usable_cores
from worker.engine.device import name_of
from worker.engine.export import versions


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Document):
    """On what, and when, a row was measured."""

    date: str
    processor: str
    cores: int
    memory_gb: float
    gpu: str | None
    system: str
    versions: dict[str, str]

    @classmethod
    def here(cls) -> Machine:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(
            date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
            processor=name_of(torch.device("cpu")),
            cores=usable_cores(),
            memory_gb=round(memory / 1e9, 1),
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            system=f"{platform.system()} {platform.release()}",
            versions=versions(),
        )


Kind = Literal["speed-up", "rate", "cost", "value"]
"""How a figure comes of what was measured.

speed-up: the plain alternative's seconds over ours, the more the better; rate: our requests a second over the plain
alternative's, likewise; cost: our seconds or bytes over the plain alternative's, the less the better; value: ours
alone, which has no alternative, the less the better.
"""


class Row(_Document):
    """One figure, from the medians of what was measured in turn in one run: `ours[i]` right beside `plain[i]`."""

    what: str
    against: str = "—"
    kind: Kind
    unit: str = "s"
    ours: tuple[float, ...] = ()
    plain: tuple[float, ...] = ()
    must: float | None = None
    aim: float | None = None
    skipped: str | None = None
    """Why there is no figure."""
    remark: str = ""

    @property
    def figure(self) -> float | None:
        if self.skipped is not None:
            return None
        return self._of(statistics.median(self.ours), statistics.median(self.plain) if self.plain else 1.0)

    @property
    def spread(self) -> tuple[float, float] | None:
        """Least and most of the rounds' own figures."""
        if self.skipped is not None:
            return None
        found = [self._of(*each) for each in zip(self.ours, self.plain or (1.0,) * len(self.ours), strict=True)]
        return min(found), max(found)

    def _of(self, ours: float, plain: float) -> float:
        return plain / ours if self.kind == "speed-up" else ours / plain

    @property
    def more_is_better(self) -> bool:
        return self.kind in ("speed-up", "rate")

    def reaches(self, bound: float | None) -> bool | None:
        """None where there is no such bound, or no figure."""
        if bound is None or self.figure is None:
            return None
        return self.figure >= bound if self.more_is_better else self.figure <= bound

    @property
    def margin(self) -> float | None:
        """How many times over the figure reaches what it must: 1 is just so, below 1 it falls short."""
        if self.must is None or self.figure is None:
            return None
        return self.figure / self.must if self.more_is_better else self.must / self.figure


class Part(_Document):
    """What one part of the benchmark found. Parts that are not run again are kept as they were."""

    name: str
    title: str
    rows: tuple[Row, ...]
    details: str = ""
    """Markdown."""
    quick: bool = False
    seconds: float
    """That it took to measure."""
    machine: Machine


class Results(_Document):
    parts: tuple[Part, ...] = ()

    def renewed(self, part: Part, order: Sequence[str]) -> Results:
        """With this part in the place of the one of its name; in that order, without those it does not name."""
        found = {each.name: each for each in self.parts} | {part.name: part}
        return Results(parts=tuple(found[name] for name in order if name in found))

    @classmethod
    def read(cls, path: Path) -> Results:
        return cls.model_validate_json(path.read_text()) if path.is_file() else cls()
