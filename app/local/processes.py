"""Child processes that we own: started in a session of their own, stopped in order, found again after our own death."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from app.local.errors import ServerDidNotStart, StartCancelled
from app.local.folders import write_private

_POLL_SECONDS = 0.02


@functools.cache
def setpriv() -> str | None:
    """util-linux's `setpriv`, part of every glibc distribution's base system; None where it is missing or too old."""
    path = shutil.which("setpriv")
    if path is None:
        return None
    probe = subprocess.run([path, "--pdeathsig", "keep", "true"], capture_output=True, check=False)  # noqa: S603
    return path if probe.returncode == 0 else None


def dies_with_parent(command: Sequence[str], signal_name: str) -> list[str]:
    """`command`, told by the kernel when this thread ends, kill -9 included; elsewhere the next start ends it."""
    tool = setpriv()
    return [tool, "--pdeathsig", signal_name, "--", *command] if tool else list(command)


@dataclass
class Child:
    """One process and how to start, watch and stop it. `stop` and `start` may be repeated."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    record: Path
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    stop_descendants: bool = False
    """Whether its own children get the signal too, or only it, which then ends them."""
    _asked_to_stop: bool = field(default=False, init=False, repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _group_may_live: bool = field(default=False, init=False, repr=False)
    _log_begins: int = field(default=0, init=False, repr=False)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Start it, in its own session: a Ctrl-C in our terminal must reach us alone, so that we can stop in order."""
        end_leftover(self.record, self.stop_signal)
        with self.log.open("ab") as log:
            self._log_begins = log.tell()
            self._process = subprocess.Popen(  # noqa: S603
                self.command,
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._group_may_live, self._asked_to_stop = True, False
        _remember(self.record, self._process.pid)

    def stop(self) -> None:
        """Ask, wait `stop_seconds`, then kill it with its whole group."""
        self.ask_to_stop()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self.stop_seconds)
        self.kill()
        self.record.unlink(missing_ok=True)

    def ask_to_stop(self) -> None:
        """The polite signal alone, and only once: to Celery a second one means to hurry, and so to drop the job."""
        if self._process is None or not self.is_running or self._asked_to_stop:
            return
        self._asked_to_stop = True
        if self.stop_descendants:
            os.killpg(self._process.pid, self.stop_signal)
        else:
            self._process.send_signal(self.stop_signal)

    def kill(self) -> None:
        """SIGKILL to the group, which outlives a dead leader, and reap it."""
        if self._process is None or not self._group_may_live:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._group_may_live = False  # from here on the number may be somebody else's

    def last_lines(self, count: int = 20) -> str:
        """The end of its log since its start: what an earlier run complained of may long be mended."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(max(self._log_begins, self.log.stat().st_size - 16_384))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])

    def wait_until_ready(self, ready: Callable[[], bool], seconds: float, cancelled: Callable[[], bool]) -> None:
        """Poll `ready`. Raise ServerDidNotStart when the process ends or the time does; StartCancelled when told to."""
        deadline = time.monotonic() + seconds
        while True:
            if cancelled():
                raise StartCancelled
            if not self.is_running:
                raise self._did_not_start(f"it ended with exit code {self.exit_code}")
            if ready():
                return
            if time.monotonic() > deadline:
                raise self._did_not_start(f"not ready after {seconds:g} s")
            time.sleep(_POLL_SECONDS)

    def _did_not_start(self, why: str) -> ServerDidNotStart:
        return ServerDidNotStart(self.name, why, self.log, self.last_lines())


@dataclass(frozen=True)
class Server:
    """A running server: where to reach it, and its process."""

    url: str
    child: Child


def never() -> bool:
    return False


def end_leftover(record: Path, polite: signal.Signals) -> None:
    """End what an earlier run, killed before it could tidy up, left running under `record`."""
    process = _recorded(record)
    if process is not None:
        end(process, polite)
    record.unlink(missing_ok=True)


def end(process: psutil.Process, polite: signal.Signals, seconds: float = 5.0) -> None:
    """Stop a process that is not our child, politely first; then its group, of which every child of ours is leader."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(polite)
    if not _ends(process, seconds):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        _ends(process, seconds)


def _ends(process: psutil.Process, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _is_alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _is_alive(process: psutil.Process) -> bool:
    """A zombie counts as gone: in a container there may be nobody to reap it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _remember(record: Path, pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        write_private(record, json.dumps({"pid": pid, "started": psutil.Process(pid).create_time()}))


def _recorded(record: Path) -> psutil.Process | None:
    """The process that `record` names, if it still runs: the start time tells it from a later one with its number."""
    try:
        told = json.loads(record.read_text())
        process = psutil.Process(told["pid"])
        is_same = abs(process.create_time() - told["started"]) < 1
    except (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        return None
    return process if is_same and _is_alive(process) else None
