"""How something is measured: in turn with its plain alternative, since machines differ and drift."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """What a part may use."""

    data_dir: Path | None = None
    """Has MNIST in torchvision's layout; the digits take its place where there is none."""
    quick: bool = False
    """Fewer rounds and shorter work: whether it works, rather than how fast."""

    def rounds(self, usual: int) -> int:
        return min(usual, 2) if self.quick else usual

    def work(self, usual: int, quick: int) -> int:
        return quick if self.quick else usual

    @property
    def dataset(self) -> str:
        return "digits" if self.data_dir is None else "mnist"


def in_turn(rounds: int, *what: Callable[[], float]) -> tuple[tuple[float, ...], ...]:
    """What each returned, by round: A B A B …, so that a machine that slows down slows them all."""
    found: list[list[float]] = [[] for _ in what]
    for _ in range(rounds):
        for values, measure in zip(found, what, strict=True):
            values.append(measure())
    return tuple(tuple(values) for values in found)


def seconds(work: Callable[[], object]) -> Callable[[], float]:
    """A measure of how long that takes, garbage of before not included."""

    def measure() -> float:
        gc.collect()
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return measure


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch's, for all that is measured within."""
    # Imported here: it takes seconds, and not every process that measures needs it.
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
