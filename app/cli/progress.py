"""Progress of running jobs: bars on a terminal, one line a change anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from app.cli.tables import progress_text
from secateur_client import Job

Show: TypeAlias = Callable[[Job], None]
"""Takes each state of a job as it is seen."""

_STEPS = 5
"""Into how many parts a line-by-line log divides a job's progress."""


@contextmanager
def watching(console: Console) -> Iterator[Show]:
    """What to call with every state of the jobs that are followed, of which there may be several."""
    if not console.is_terminal:
        yield Lines(console).show
        return
    with _bars(console) as progress:
        yield Bars(progress).show


def _title(job: Job) -> str:
    return job.display_name or job.id


class Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: dict[str, tuple[object, ...]] = {}

    def show(self, job: Job) -> None:
        progress = job.progress
        step = int(_STEPS * progress.fraction) if progress and not job.done else None
        state = (job.status, None if job.done else job.phase, step)
        if self._last.get(job.id) != state:
            self._last[job.id] = state
            words = ", ".join(filter(None, (job.status, progress_text(job))))
            self._console.print(f"{_title(job)}: {words}", soft_wrap=True)


class Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, job: Job) -> None:
        task = self._tasks.get(job.id)
        if task is None:
            task = self._progress.add_task(_title(job), total=1.0, start=False, words="")
            self._tasks[job.id] = task
        self._progress.update(
            task,
            completed=_completed(job),
            words=progress_text(job) or job.status,
        )
        if job.status != "queued":
            self._progress.start_task(task)
        if job.done:
            self._progress.stop_task(task)


def _completed(job: Job) -> float | None:
    """From 0 to 1; None, which leaves the bar as it is, in a phase that does not count."""
    if job.succeeded:
        return 1.0
    if job.status == "queued":
        return 0.0
    return job.progress.fraction if job.progress else None


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
