"""Processes that make the files of finished networks, while this one goes on with other runs. Most of the time of a
small network that was trained together with others goes into its files, and they need no GPU."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import NamedTuple

import torch

from app.contract.report import EpochMetrics, Report
from app.contract.spec import PruneSpec, TrainSpec
from worker.engine.apart import end_with, environment
from worker.engine.artifacts import Outcome, network_files
from worker.engine.observer import Observer
from worker.engine.resources import memory_free
from worker.engine.seeding import reproducible

MOST = 8
WORTH = 2
"""Runs for each: to start takes as much of the processor as the files of one."""

MEMORY = 1 << 30
"""Of each, in bytes: half of it was measured with default networks, nearly all of that PyTorch and other libraries."""

SENT = 64 << 20
"""Bytes of a network, before and after, that are sent to another process at most. Of larger ones the copies would take
more memory than there may be."""

ON_CPU = torch.device("cpu")

logger = logging.getLogger(__name__)

Made = tuple[Report, dict[str, bytes]]
"""The report, and every file but the manifest."""


class Making(NamedTuple):
    """The files of a finished network, which a run waits for."""

    spec: TrainSpec | PruneSpec
    outcome: Outcome
    history: Sequence[EpochMetrics]
    latency_seconds: float
    observer: Observer

    def made(self) -> Made:
        return network_files(self.spec, self.outcome, self.history, self.latency_seconds)


class Gone(Exception):
    """A process is no more, and what it was asked for is to be made here."""


class Makers:
    """They end with this process, however it ends."""

    def __init__(self, count: int) -> None:
        """Raises OSError."""
        self._threads = ThreadPoolExecutor(count, "makers")
        """Each waits for an answer."""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        try:
            for _ in range(count):  # libraries are imported there while networks are trained here
                self._processes.append(_started())
                self._idle.put(self._processes[-1])
        except OSError:
            self.close()
            raise

    def send(self, making: Making) -> Future[Made] | None:
        """Comes to what is made, what making it raised, or Gone. None of what is too large."""
        content = pickle.dumps(making._replace(observer=Observer()))
        return self._threads.submit(self._asked, content) if len(content) <= SENT else None

    def _asked(self, content: bytes) -> Made:
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(content)
            process.stdin.flush()
            made, failure = pickle.load(process.stdout)  # noqa: S301 - of our own code
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise Gone from error
        finally:
            self._idle.put(process)
        if failure is not None:
            raise failure
        answer: Made = made
        return answer

    def close(self) -> None:
        """Whatever they are at."""
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            with suppress(BrokenPipeError), process:
                pass


def makers_for(runs: int, most: int) -> Makers | None:
    """As many as are of use, at most so many, in the memory that is free. None when that is fewer than two."""
    count = min(runs // WORTH, most, MOST, memory_free(ON_CPU) // MEMORY)
    if count < 2:
        return None
    try:
        return Makers(count)
    except OSError as error:
        logger.warning("no processes to make files: they are made here", extra={"error": str(error)})
        return None


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-m", __name__, str(os.getpid())],
        env=environment(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # signals to the worker's group are for the worker to answer
    )


def _serve(parent: int) -> None:
    """The process's side: as long as it is asked."""
    end_with(parent)
    torch.set_num_threads(1)  # the others have the other cores
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # where a library may say what it likes
    with suppress(EOFError), reproducible(ON_CPU):
        while True:
            answers.write(_answer(pickle.load(sys.stdin.buffer)))  # noqa: S301 - of our parent
            answers.flush()


def _answer(making: Making) -> bytes:
    try:
        return pickle.dumps((making.made(), None))
    except Exception as error:
        error.add_note(traceback.format_exc())  # which is not sent
        return pickle.dumps((None, _sendable(error)))


def _sendable(error: Exception) -> Exception:
    """Some that libraries raise are lost on the way, or cannot be put together again."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:
        return RuntimeError("".join(traceback.format_exception_only(error)))
    return error


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
