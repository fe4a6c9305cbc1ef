"""How a run tells what it is doing, without knowing to whom."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import JsonValue

from app.contract.status import Phase
from worker.engine.resume import TrainingState


class Observer:
    """Hears of everything and does nothing. Whatever a method raises ends the run and reaches the caller as it is."""

    def enter(self, phase: Phase) -> None:
        """A phase begins."""

    def advance(self, completed: int, total: int, unit: str) -> None:
        """After every training step (`steps`), every evaluated batch (`batches`) and before every member of a
        sweep that is read (`members`), counted within the phase."""

    def check(self) -> None:
        """Between pieces of work that are not counted: whoever wants to end the run may do so here too."""

    def record(self, type: str, data: dict[str, JsonValue]) -> None:
        """A fact worth keeping: `resumed`, `epoch`, `evaluated`, `pruned` or `imported`."""

    def checkpoint(self, state: Callable[[], TrainingState], epoch_ended: bool) -> None:
        """After every training step. To be able to go on from here later, call `state` now and keep what it gives."""


class Quiet(Observer):
    """Lets another observer end a piece of work of which it is told nothing."""

    def __init__(self, other: Observer) -> None:
        self._other = other

    def advance(self, completed: int, total: int, unit: str) -> None:  # noqa: ARG002 - its only use is the moment
        self._other.check()
