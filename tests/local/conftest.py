from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest

from tests.command import run
from tests.waiting import wait_until

STOP_SECONDS = 10.0


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state of it"


@dataclass
class Up:
    """A `secateur up` of its own process."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def url(self) -> str:
        return str(re.findall(r"^API +(\S+)", self.text, re.MULTILINE)[0])

    def family(self) -> Sequence[psutil.Process]:
        """All that it started, down to the job process."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: signal.Signals) -> int:
        """Signal it and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def kill_all(self) -> None:
        """Kill it and all that it started, as a machine does that loses its power."""
        family = self.family()
        self.process.kill()
        for member in family:
            # What its parent takes along is gone before its turn.
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait()


@contextmanager
def starting_up(state_dir: Path, output: Path) -> Iterator[Up]:
    """`secateur up` on `state_dir`, as soon as there is a process."""
    command = [sys.executable, "-m", "app.cli", "up", "--port", "0", "--state-dir", str(state_dir)]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    up = Up(process, output)
    try:
        yield up
    finally:
        if process.poll() is None:  # a failed test left it
            up.kill_all()


@contextmanager
def running_up(state_dir: Path, output: Path) -> Iterator[Up]:
    """The same, once it has told that it runs."""
    with starting_up(state_dir, output) as up:
        # The last line of what it tells: the first may be read before the others are written.
        wait_until(lambda: "\nSubmit " in up.text or up.process.poll(), timeout=60, what="up is running")
        assert up.process.poll() is None, up.text
        yield up


def refused_up(*arguments: object, settings: Mapping[str, str] = MappingProxyType({})) -> str:
    """What `secateur up` with these says when it refuses to start."""
    done = run("up", *arguments, folder=Path.cwd(), environment={**os.environ, **settings}, timeout=30)
    assert done.code == 1, done.out + done.err
    return done.out + done.err


def all_gone(processes: Sequence[psutil.Process]) -> bool:
    """Whether none of them runs; one that nobody has reaped yet is gone."""
    return not any(_runs(process) for process in processes)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
