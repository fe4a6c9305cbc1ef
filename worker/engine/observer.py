"""How a run tells what it is doing, without knowing to whom."""

from __future__ import annotations

from pydantic import JsonValue

from app.contract.status import Phase


class Observer:
    """Hears of everything and does nothing. Whatever a method raises ends the run and reaches the caller as it is."""

    def enter(self, phase: Phase) -> None:
        """A phase begins."""

    def advance(self, completed: int, total: int, unit: str) -> None:
        """After every training step (`steps`) and every evaluated batch (`batches`), counted within the phase."""

    def record(self, type: str, data: dict[str, JsonValue]) -> None:
        """A fact worth keeping: `epoch`, `evaluated` or `pruned`."""
