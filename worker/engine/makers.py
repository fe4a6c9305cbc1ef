"""Processes that make the files of finished networks, while this one goes on with other runs. Most of the time of a
small network that was trained together with others goes into its files, and they need no GPU."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import torch
from torch import Tensor

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

PATIENCE_SECONDS = 300.0
"""For the files of one: default networks' take 2.5, and libraries that are yet to be imported 4."""

ON_CPU = torch.device("cpu")
_AS_HERE = (
    *("MPLCONFIGDIR", "MATPLOTLIBRC", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"),
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR"),
)
"""What pictures and sums depend on."""

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

    @property
    def size(self) -> int:
        """Bytes of its tensors, but for a few small ones."""
        of = self.outcome
        states: Sequence[Mapping[str, Tensor]] = (of.before, of.after, of.mask or {}, {"probes": of.probes})
        return sum(tensor.nbytes for state in states for tensor in state.values())


class NotMade(Exception):
    """Another process could not, for whatever reason: it is to be tried here."""


class Makers:
    """They end with this process, however it ends."""

    def __init__(self, count: int, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Raises OSError."""
        self._patience = patience_seconds
        self._threads = ThreadPoolExecutor(count, "makers")
        """Each waits for an answer."""
        self._all: list[_Maker] = []
        self._idle: SimpleQueue[_Maker] = SimpleQueue()
        self._closing = False
        try:
            for _ in range(count):  # libraries are imported there while networks are trained here
                self._idle.put(self._started())
        except BaseException:
            self.close()
            raise

    def send(self, making: Making) -> Future[Made] | None:
        """Raises NotMade when it is asked for what is made. None of what is too large."""
        if making.size > SENT:
            return None
        content = pickle.dumps(making._replace(observer=Observer()))
        return self._threads.submit(self._made, content)

    def _made(self, content: bytes) -> Made:
        maker = self._idle.get()
        try:
            return maker.made(content, self._patience)
        finally:
            self._idle.put(self._replaced(maker) if maker.is_gone and not self._closing else maker)

    def _replaced(self, maker: _Maker) -> _Maker:
        """One that is gone has no more to do than to fail, and would take what others could make."""
        try:
            return self._started()
        except OSError:
            return maker

    def _started(self) -> _Maker:
        self._all.append(_Maker())
        return self._all[-1]

    def close(self) -> None:
        """Whatever they are at."""
        self._closing = True
        for maker in self._all:
            maker.kill()
        self._threads.shutdown(cancel_futures=True)
        for maker in self._all:  # and those that came in place of others meanwhile
            maker.close()


def makers_for(runs: int, most: int) -> Makers | None:
    """As many as are of use, at most so many, in half of the memory that is free. None when that is fewer than two."""
    count = min(runs // WORTH, most, MOST, memory_free(ON_CPU) // 2 // MEMORY)
    if count < 2:
        return None
    try:
        return Makers(count)
    except OSError as error:
        logger.warning("no processes to make files: they are made here", extra={"error": str(error)})
        return None


class _Maker:
    """This program in a process of its own, which answers one request after another."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._log = TemporaryFile()  # noqa: SIM115 - `close` does
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", __name__, str(os.getpid())],
                env=environment(os.environ, _AS_HERE),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,  # signals to the worker's group are for the worker to answer
            )
        except BaseException:
            self._log.close()
            raise

    def made(self, content: bytes, patience_seconds: float) -> Made:
        """Raises NotMade."""
        limit = threading.Timer(patience_seconds, self.kill)
        limit.start()
        try:
            answer: Made | str = self._answer(content)
        except Exception as error:
            self.kill()  # what is left of its answer must not be taken for the next one
            self._process.wait()
            raise NotMade(f"its process is gone: {error!r}, {self._last_words()}") from error
        finally:
            limit.cancel()
        if isinstance(answer, str):
            raise NotMade(answer)
        return answer

    def _answer(self, content: bytes) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(content)
        self._process.stdin.flush()
        return pickle.load(self._process.stdout)  # noqa: S301 - of our own code

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read()[-1000:].decode(errors="replace")

    @property
    def is_gone(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self.kill()
        with suppress(BrokenPipeError), self._log, self._process:
            pass


def _serve(parent: int) -> None:
    """The process's side: as long as it is asked."""
    end_with(parent)
    with suppress(OSError):  # who lacks memory ends this one, not the worker with all that it is at
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(1)  # the others have the other cores
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # where a library may say what it likes
    with suppress(EOFError), reproducible(ON_CPU):
        while True:
            answers.write(_answer(pickle.load(sys.stdin.buffer)))  # noqa: S301 - of our parent
            answers.flush()


def _answer(making: Making) -> bytes:
    """What is made, or why it is not."""
    try:
        return pickle.dumps(making.made())
    except Exception as error:
        return pickle.dumps(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
