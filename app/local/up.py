"""`secateur up`: the stack in the foreground, until a signal."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from app.local.errors import LocalError, StartCancelled
from app.local.stack import Stack, stack

_DEFAULT_URL = "http://127.0.0.1:8000"
_DEFAULT_STATE_DIR = Path(".secateur")


@dataclass
class _StopRequest:
    """Set by a signal and polled: an Event's lock could be held by the very code that the signal interrupts."""

    arrived: bool = False

    def __call__(self) -> bool:
        return self.arrived

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        self.arrived = True


def up(host: str, port: int, workers: int, state_dir: Path, data_dir: Path | None) -> None:
    """Run the stack until Ctrl-C, SIGTERM or the terminal's end, then stop all of it and keep its data."""
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    try:
        with _stop_request() as stop:
            _run(console, stop, host=host, port=port, workers=workers, state_dir=state_dir, data_dir=data_dir)
    except StartCancelled:
        console.print(f"Stopped before it ran. The data stays in {state_dir}.")
    except LocalError as error:
        console.print(f"Cannot start: {error}", style="red")
        sys.exit(1)


def _run(
    console: Console,
    stop: _StopRequest,
    *,
    host: str,
    port: int,
    workers: int,
    state_dir: Path,
    data_dir: Path | None,
) -> None:
    console.print("Starting PostgreSQL, Valkey, the API and the workers …", style="dim")
    with stack(
        host=host,
        port=port,
        workers=workers,
        state_dir=state_dir,
        data_dir=data_dir,
        notify=lambda text: console.print(text, style="yellow"),
        cancelled=stop,
    ) as running:
        _announce(console, running, state_dir)
        while not stop():
            time.sleep(0.1)
        console.print("Stopping …", style="dim")
    console.print(f"Stopped. The data stays in {state_dir}.")


@contextmanager
def _stop_request() -> Iterator[_StopRequest]:
    """Signals become a request, also a second one: the stop under way must not be cut short."""
    request = _StopRequest()
    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored under nohup
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, request.handle) for number in wanted}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(console: Console, running: Stack, state_dir: Path) -> None:
    console.print("Secateur is running. Ctrl-C stops it.", style="green")
    console.print(f"API     {running.url}  (reference: {running.url}/docs)")
    console.print(f"Key     {state_dir / 'api-key'}")
    console.print(f"Logs    {state_dir / 'logs'}")
    console.print(f"Submit  {_example(running.url, state_dir)}")


def _example(url: str, state_dir: Path) -> str:
    """A command that works as it stands, from the folder in which this one was started."""
    address = [] if url == _DEFAULT_URL else [f"SECATEUR_URL={url}"]
    state = [] if state_dir == _DEFAULT_STATE_DIR else ["--state-dir", shlex.quote(str(state_dir))]
    return " ".join([*address, "secateur", "submit", "spec.json", "--wait", "--download", "results", *state])
