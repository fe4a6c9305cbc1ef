"""Processes that measure, one for each side: neither is to find memory, caches or settings of the other."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection

from benchmarks.bench.measuring import seconds

Worker = Callable[[Callable[[], object]], object]
"""Does a piece of work, which can be pickled, in its process, and gives what it returns."""


@contextmanager
def workers(count: int) -> Iterator[list[Worker]]:
    """So many, which keep what they have loaded until the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(_worker()) for _ in range(count)]


@contextmanager
def _worker() -> Iterator[Worker]:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()

    def work(what: Callable[[], object]) -> object:
        here.send(what)
        failed, found = here.recv()
        if failed:
            raise RuntimeError(str(found))
        return found

    try:
        yield work
    finally:
        here.close()
        process.join()


def _serve(requests: Connection) -> None:
    while True:
        try:
            work = requests.recv()
        except EOFError:
            return
        try:
            requests.send((False, work()))
        except Exception as error:
            requests.send((True, f"{type(error).__name__}: {error}"))


def timed(worker: Worker, work: Callable[[], object]) -> Callable[[], float]:
    """A measure of how long the work takes in that process, without the way there."""

    def measure() -> float:
        found = worker(_Timed(work))
        assert isinstance(found, float)
        return found

    return measure


class _Timed:
    """A function that can be pickled."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work

    def __call__(self) -> float:
        return seconds(self._work)()
