"""Starts children again when they die, ever more slowly while they keep dying."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.local.processes import Child

_LOOK_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 30.0
_STEADY_SECONDS = 60.0
"""A child that lived this long is well again: its next death is a first one."""


@dataclass
class _Watched:
    child: Child
    deaths: int = 0
    started: float = 0.0
    due: float | None = None

    def look(self, notify: Callable[[str], None]) -> None:
        now = time.monotonic()
        if self.due is not None:
            if now >= self.due:
                self._start(now)
        elif not self.child.is_running:
            self._schedule(now, notify)

    def _schedule(self, now: float, notify: Callable[[str], None]) -> None:
        code = self.child.exit_code
        self.child.kill()  # what is left of its group
        self.deaths = 1 if now - self.started > _STEADY_SECONDS else self.deaths + 1
        wait = min(_LONGEST_WAIT_SECONDS, 0.25 * 2**self.deaths)
        self.due = now + wait
        notify(f"{self.child.name} ended with exit code {code}: starting it again in {wait:g} s, see {self.child.log}")

    def _start(self, now: float) -> None:
        self.child.start()
        self.started = now
        self.due = None


class Supervisor:
    """A thread that outlives the children's stop: the kernel ends what a thread started when that thread ends."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._watched: list[_Watched] = []
        self._restarting = threading.Lock()
        self._halted = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def watch(self, children: Sequence[Child]) -> None:
        self._watched = [_Watched(child, started=time.monotonic()) for child in children]
        self._thread.start()

    def halt(self) -> None:
        """No restart begins after this returns."""
        with self._restarting:
            self._halted = True

    def end(self) -> None:
        """Let the thread go, once all children are stopped."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            for watched in self._watched:
                with self._restarting:
                    if not self._halted:
                        self._look(watched)

    def _look(self, watched: _Watched) -> None:
        try:
            watched.look(self._notify)
        except OSError as error:  # no memory or no descriptors left for a new process: the next look tries again
            self._notify(f"{watched.child.name} cannot be started: {error}")
