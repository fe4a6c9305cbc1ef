"""What a sweep varies: a few values along each of some axes of one train spec."""

from __future__ import annotations

import math
from itertools import product
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from app.contract.closed import NO_REPEATS, UNIQUE, Closed
from app.contract.pruning import Widths

MAX_MEMBERS = 256
"""Of one sweep; each is a job."""

_BOUNDS: dict[str, Any] = {"max_length": MAX_MEMBERS, "json_schema_extra": UNIQUE}


class Point(NamedTuple):
    """One value of each axis; None of those that do not vary."""

    widths: Widths | None = None
    strength: float | None = None
    threshold: float | None = None
    sparsity: float | None = None
    keep: int | None = None
    seed: int | None = None

    def __str__(self) -> str:
        """For people, such as "strength 0.001, seed 2"."""
        return ", ".join(f"{name} {_spelt(value)}" for name, value in self._asdict().items() if value is not None)


def spelt(widths: Widths) -> str:
    return "×".join(map(str, widths.channels)) + f"+{widths.hidden}"


def _spelt(value: Widths | float) -> str:
    if isinstance(value, Widths):
        return spelt(value)
    return f"{value:.12g}" if isinstance(value, float) else str(value)


class Grid(Closed):
    """The values of each axis. Members are all combinations; what an axis leaves empty is the base's."""

    widths: Annotated[
        tuple[Widths, ...], Field(**_BOUNDS, description="Of the network, instead of `model`'s."), NO_REPEATS
    ] = ()
    strengths: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], ...],
        Field(**_BOUNDS, description="Of the base's penalty; 0 leaves the penalty out."),
        NO_REPEATS,
    ] = ()
    thresholds: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1000)], ...],
        Field(**_BOUNDS, description="Of a pruning by `threshold`."),
        NO_REPEATS,
    ] = ()
    sparsities: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], ...],
        Field(**_BOUNDS, description="Of a pruning that takes an amount, instead of `keep`."),
        NO_REPEATS,
    ] = ()
    keeps: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(**_BOUNDS, description="Entries that stay, of a pruning of entries by an amount, instead of `sparsity`."),
        NO_REPEATS,
    ] = ()
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**63)], ...],
        Field(**_BOUNDS, description="Of the training, of the fine-tuning, and of a pruning at random."),
        NO_REPEATS,
    ] = ()

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Those that have values, by the name that a point has for them, in the order in which members are counted."""
        every = (self.widths, self.strengths, self.thresholds, self.sparsities, self.keeps, self.seeds)
        return {name: values for name, values in zip(Point._fields, every, strict=True) if values}

    @property
    def size(self) -> int:
        """How many members there are."""
        return math.prod(len(values) for values in self.axes.values())

    def points(self) -> tuple[Point, ...]:
        """In the order of the members: the last axis changes the fastest."""
        axes = self.axes
        return tuple(Point(**dict(zip(axes, values, strict=True))) for values in product(*axes.values()))
