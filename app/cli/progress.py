"""Progress of running jobs: bars on a terminal, one line a change anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from app.cli.tables import STATUS_STYLES, progress_text
from app.client import Job

Show: TypeAlias = Callable[[Job], None]
"""Takes each state of a job as it is seen."""

_STEPS = 5
"""Into how many parts a line-by-line log divides a job's progress."""


@contextmanager
def watching(console: Console, titles: dict[str, str] | None = None) -> Iterator[Show]:
    """Show jobs by id; `titles` replaces what they call themselves."""
    known = titles or {}

    def title(job: Job) -> str:
        return known.get(job["id"]) or job["display_name"] or job["id"]

    if not console.is_terminal:
        yield Lines(console, title).show
        return
    with _bars(console) as progress:
        yield Bars(progress, title).show


class Lines:
    def __init__(self, console: Console, title: Callable[[Job], str]) -> None:
        self._console = console
        self._title = title
        self._last: dict[str, tuple[object, ...]] = {}

    def show(self, job: Job) -> None:
        progress = job["progress"]
        step = int(_STEPS * progress["fraction"]) if progress and not job["done"] else None
        state = (job["status"], None if job["done"] else job["phase"], step)
        if self._last.get(job["id"]) != state:
            self._last[job["id"]] = state
            words = ", ".join(filter(None, (job["status"], progress_text(job))))
            self._console.print(f"{self._title(job)}: {words}", soft_wrap=True)


class Bars:
    def __init__(self, progress: Progress, title: Callable[[Job], str]) -> None:
        self._progress = progress
        self._title = title
        self._tasks: dict[str, TaskID] = {}

    def show(self, job: Job) -> None:
        task = self._tasks.get(job["id"])
        if task is None:
            task = self._progress.add_task(self._title(job), total=1.0, start=False, words="", style="")
            self._tasks[job["id"]] = task
        fraction = job["progress"]["fraction"] if job["progress"] else 0.0
        self._progress.update(
            task,
            completed=1.0 if job["status"] == "succeeded" else fraction,
            words=progress_text(job) or job["status"],
            style=STATUS_STYLES.get(job["status"], ""),
        )
        if job["status"] != "queued":
            self._progress.start_task(task)
        if job["done"]:
            self._progress.stop_task(task)


class _Seconds(ProgressColumn):
    """Time since the job left the queue; nothing while it waits there."""

    def render(self, task: Task) -> Text:
        seconds = task.elapsed
        return Text("" if seconds is None else f"{seconds:4.0f} s", style="dim", justify="right")


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=24, complete_style="cyan", finished_style="green"),
        TextColumn("{task.fields[words]}", style="default", markup=False),
        _Seconds(),
        console=console,
        refresh_per_second=8,
    )
