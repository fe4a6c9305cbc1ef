"""The service in a minute: train without and with L1, prune both at the same threshold, and compare.

Nothing is special about it: the jobs go through the HTTP API to a Celery worker of an embedded stack of its own, and
the figures are read from the reports that come back.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from pydantic import ValidationError
from rich.box import ROUNDED
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.consoles import standard_output
from app.cli.progress import Show, watching
from app.cli.tables import percent, size
from app.contract.datasets import DatasetName
from app.contract.report import Manifest, Report
from app.local import Stack, stack
from secateur_client import AsyncClient, Client, Job

THRESHOLD = 0.01
STRENGTH = 0.001
FOLDERS = ("without-l1", "with-l1", "comparison")
MANIFEST = "manifest.json"

SOURCE_EPOCHS = 5
DIGITS_EPOCHS = 15
"""An epoch of digits has 15 steps, one of MNIST 600: it takes more of them until the L1 term has done its work."""


class JobFailed(Exception):
    def __init__(self, job: Job) -> None:
        error = job.error
        reason = f"{error.message} ({error.code})" if error else f"it was {job.status}"
        super().__init__(f"The job {job.display_name!r} did not succeed: {reason}")


class ForeignFolder(Exception):
    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} holds something that no demo put there: choose another folder with --output.")


class Experiment(NamedTuple):
    title: str
    folder: str
    spec: Mapping[str, Any]


def run(*, dataset: str, data_dir: Path | None, output: Path, state_dir: Path | None) -> int:
    """Run the demo and return the exit code: 1 when a job did not succeed, 2 on wrong usage.

    Without `state_dir` the stack's own files are gone at the end. Of the folders below `output` only those are written
    to that are new, empty or an earlier demo's.
    """
    console = standard_output()
    if dataset not in list(DatasetName):
        console.print(f"There is no data set {dataset!r}; there are: {', '.join(DatasetName)}.", soft_wrap=True)
        return 2
    began = time.monotonic()
    try:
        for folder in FOLDERS:
            _require_ours(output / folder)
        with _running(console, state_dir, data_dir) as running, Client(running.url, running.api_key) as client:
            reports = _run_jobs(console, running, client, dataset, output)
    except ForeignFolder as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 2
    except JobFailed as error:
        console.print(str(error), style="red", soft_wrap=True)
        if state_dir is None:
            console.print("To keep the logs, run it again with --state-dir.", soft_wrap=True)
        return 1
    _show_results(console, reports, output, time.monotonic() - began)
    return 0


@contextmanager
def _running(console: Console, state_dir: Path | None, data_dir: Path | None) -> Iterator[Stack]:
    """The stack, in a folder that is removed at the end unless it was given."""
    with ExitStack() as cleanup:
        cleanup.enter_context(_signals_interrupt())
        state = state_dir or Path(cleanup.enter_context(TemporaryDirectory(prefix="secateur-demo-")))
        with console.status("Starting PostgreSQL, Valkey, the API and a worker …"):
            running = cleanup.enter_context(stack(state_dir=state, port=0, workers=1, data_dir=data_dir))
        console.print(f"Running: PostgreSQL, Valkey, a Celery worker, and the API at {running.url}", soft_wrap=True)
        yield running


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let the first signal that asks for the end raise KeyboardInterrupt, and no second one disturb the clean-up."""
    wanted = [
        each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN
    ]

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        for each in wanted:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in wanted}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _experiments(dataset: str) -> tuple[Experiment, Experiment]:
    spec: dict[str, Any] = {
        "kind": "train",
        "dataset": {"name": dataset},
        "training": {"epochs": DIGITS_EPOCHS if dataset == DatasetName.DIGITS else SOURCE_EPOCHS},
        "pruning": {"method": "threshold", "threshold": THRESHOLD},
    }
    penalty = {"regularization": {"penalty": "l1", "strength": STRENGTH}}
    return (
        Experiment("without L1", FOLDERS[0], {**spec, "display_name": "without L1"}),
        Experiment("with L1", FOLDERS[1], {**spec, **penalty, "display_name": "with L1"}),
    )


def _run_jobs(console: Console, running: Stack, client: Client, dataset: str, output: Path) -> dict[str, Report]:
    """Both trainings and their comparison, each downloaded into its folder. Returns the reports by title."""
    experiments = _experiments(dataset)
    ids = [client.submit(experiment.spec).id for experiment in experiments]
    _wait(console, running, ids)
    comparison = client.submit({"kind": "compare", "jobs": ids, "display_name": "comparison"}).id
    _wait(console, running, [comparison])
    for job_id, folder in zip([*ids, comparison], FOLDERS, strict=True):
        _download(client, job_id, output / folder)
    return {
        each.title: Report.model_validate_json((output / each.folder / "report.json").read_bytes())
        for each in experiments
    }


def _wait(console: Console, running: Stack, job_ids: Sequence[str]) -> None:
    """Show the jobs, side by side, until all are done. Raises JobFailed."""
    with watching(console) as show:
        jobs = asyncio.run(_followed(running, job_ids, show))
    for job in jobs:
        if not job.succeeded:
            raise JobFailed(job)


async def _followed(running: Stack, job_ids: Sequence[str], show: Show) -> Sequence[Job]:
    async with AsyncClient(running.url, running.api_key) as client:

        async def follow(job_id: str) -> Job:
            async for job in client.watch(job_id):
                show(job)
            return job

        return await asyncio.gather(*map(follow, job_ids))


def _require_ours(folder: Path) -> None:
    """Raises ForeignFolder unless it is new, empty, or holds a job's artifacts."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        raise ForeignFolder(folder) from None


def _download(client: Client, job_id: str, folder: Path) -> None:
    """All artifacts of a job, in place of those of an earlier demo; files of other names stay."""
    # The manifest first: it marks the folder as ours should the rest be cut short.
    folder.mkdir(parents=True, exist_ok=True)
    for artifact in sorted(client.artifacts(job_id), key=lambda each: each.name != MANIFEST):
        client.download(job_id, artifact, folder)


def _show_results(console: Console, reports: Mapping[str, Report], output: Path, seconds: float) -> None:
    console.print()
    console.print(results_table(reports))
    console.print(
        f"\nDone in {seconds:.0f} s. All artifacts are in {output}, one folder a job. Look at:", soft_wrap=True
    )
    for picture in ("without-l1/histogram.png", "with-l1/histogram.png", "comparison/comparison.png"):
        console.print(f"  {output / picture}", soft_wrap=True)


def results_table(reports: Mapping[str, Report]) -> Table:
    """The trainings side by side."""
    any_report = next(iter(reports.values()))
    table = Table(
        box=ROUNDED, title=f"{any_report.dataset}, pruned at θ = {any_report.threshold:g}", title_style="bold"
    )
    table.add_column()
    for title in reports:
        table.add_column(title, justify="right")
    for name, cells in _rows(list(reports.values())):
        table.add_row(Text(name, style="bold"), *map(Text, cells))
    return table


def _rows(reports: list[Report]) -> Iterator[tuple[str, list[str]]]:
    yield "L1 penalty β", ["none" if report.strength is None else f"{report.strength:g}" for report in reports]
    yield "accuracy before pruning", [percent(report.accuracy_before.accuracy) for report in reports]
    yield "accuracy after pruning", [percent(report.accuracy_after.accuracy) for report in reports]
    yield "non-zeros before pruning", [f"{report.total.nonzero_before:,}" for report in reports]
    yield "non-zeros after pruning", [f"{report.total.nonzero_after:,}" for report in reports]
    yield "sparsity", [percent(report.total.sparsity) for report in reports]
    yield "checkpoint, gzipped", [f"{size(report.sizes.pruned.gzipped)}" for report in reports]
    yield "emptied by pruning", ["\n".join(report.total.emptied) or "none" for report in reports]
