"""The members of a sweep: what each of them is, as a train spec of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from app.contract.grid import Grid, Point, spelt
from app.contract.pruning import Amount, ChannelPruning, ThresholdPruning, Widths
from app.contract.spec import SweepSpec, TrainSpec

TRAIN_SPEC = TypeAdapter(TrainSpec)

_MOST_LETTERS = 128
"""Of a display name."""


class Member(NamedTuple):
    number: int
    """From 0, in the grid's order."""
    point: Point
    spec: TrainSpec


def members(spec: SweepSpec) -> Iterator[Member]:
    """All members, each validated as if it had been submitted by itself. Raises `pydantic.ValidationError` at the first
    one that is not valid."""
    for number, (point, document) in enumerate(documents(spec)):
        yield Member(number, point, TRAIN_SPEC.validate_json(document))


def documents(spec: SweepSpec) -> Iterator[tuple[Point, str]]:
    """Each point of the grid, and its member's spec as JSON that nobody has validated."""
    base = spec.base.model_dump(mode="json")
    name = spec.base.display_name or spec.display_name
    for point in spec.grid.points():
        yield point, json.dumps(_at(base, point) | {"display_name": _named(name, point)})


def _named(name: str | None, point: Point) -> str:
    """After the sweep, as far as there is room for its name."""
    where = str(point)
    room = _MOST_LETTERS - len(where) - 2
    if not name or room < 1:
        return where[:_MOST_LETTERS]
    return f"{name if len(name) <= room else name[: room - 1] + '…'}: {where}"


def _at(base: dict[str, Any], point: Point) -> dict[str, Any]:
    """The base with the values of this point in their places."""
    changed = dict(base)
    pruning = dict(base["pruning"] or {})
    if point.widths is not None:
        changed["model"] = base["model"] | point.widths.model_dump(mode="json")
    if point.strength is not None:
        changed["regularization"] = base["regularization"] | {"strength": point.strength} if point.strength else None
    if point.threshold is not None:
        pruning["threshold"] = point.threshold
    if point.sparsity is not None:
        pruning |= {"sparsity": point.sparsity, "keep": None}
    if point.keep is not None:
        pruning |= {"sparsity": None, "keep": point.keep}
    if point.seed is not None:
        _seed(changed, pruning, point.seed)
    return changed | {"pruning": pruning or None}


def _seed(changed: dict[str, Any], pruning: dict[str, Any], seed: int) -> None:
    """All that draws random numbers draws others."""
    for course in ("training", "fine_tuning"):
        if changed[course] is not None:
            changed[course] = changed[course] | {"seed": seed}
    if "seed" in pruning:
        pruning["seed"] = seed


_PLACES = {
    "/model": "widths",
    "/regularization/strength": "strengths",
    "/pruning/threshold": "thresholds",
    "/pruning/sparsity": "sparsities",
    "/pruning/keep": "keeps",
    "/training/seed": "seeds",
}


def place_in_sweep(pointer: str, grid: Grid, point: Point) -> str:
    """Where in the sweep's spec that stands which this JSON Pointer means in the spec of the member at this point."""
    for place, axis in _PLACES.items():
        values = getattr(grid, axis)
        if values and (pointer == place or pointer.startswith(f"{place}/")):
            at = values.index(getattr(point, _POINT_OF[axis]))
            return f"/grid/{axis}/{at}" + (pointer.removeprefix(place) if axis == "widths" else "")
    return f"/base{pointer}"


_POINT_OF = dict(zip(Grid.model_fields, Point._fields, strict=True))


def widths_of(spec: TrainSpec) -> Widths:
    return Widths(channels=spec.model.channels, hidden=spec.model.hidden)


def of_same_shape(specs: Iterable[TrainSpec]) -> tuple[tuple[int, ...], ...]:
    """The members, by their numbers, whose networks have the same shapes. All else that shapes a training is the
    base's: such members make the same steps on batches of the same size, and differ in numbers alone."""
    found: dict[str, list[int]] = {}
    for number, spec in enumerate(specs):
        found.setdefault(spelt(widths_of(spec)), []).append(number)
    return tuple(tuple(numbers) for numbers in found.values())


def settings_of(spec: TrainSpec) -> Point:
    """What a member has on every axis, whether it varies or not; without a penalty, the strength 0."""
    pruning = spec.pruning
    amount = pruning if isinstance(pruning, Amount | ChannelPruning) else None
    return Point(
        widths=widths_of(spec),
        strength=spec.regularization.strength if spec.regularization is not None else 0.0,
        threshold=pruning.threshold if isinstance(pruning, ThresholdPruning) else None,
        sparsity=amount.sparsity if amount is not None else None,
        keep=pruning.keep if isinstance(pruning, Amount) else None,
        seed=spec.training.seed,
    )
