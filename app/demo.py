"""The service in a minute: train without and with L1, prune both at the same threshold, and compare.

Nothing is special about it: the jobs go through the HTTP API to a Celery worker of an embedded stack of its own, and
the figures are read from the reports that come back.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import ROUNDED
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.consoles import standard_output
from app.cli.progress import watching
from app.cli.tables import percent, size
from app.client import Client, Job
from app.contract.datasets import DatasetName
from app.contract.report import Report
from app.local import Stack, stack

THRESHOLD = 0.01
STRENGTH = 0.001
POLL_SECONDS = 0.25

SOURCE_EPOCHS = 5
DIGITS_EPOCHS = 15
"""An epoch of digits has 15 steps, one of MNIST 600: it takes more of them until the L1 term has done its work."""


class JobFailed(Exception):
    def __init__(self, job: Job) -> None:
        error = job["error"]
        reason = f"{error['message']} ({error['code']})" if error else f"it was {job['status']}"
        super().__init__(f"The job {job['display_name']!r} did not succeed: {reason}")


class ForeignFolder(Exception):
    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} holds files that no job of ours made: choose another folder with --output.")


class Experiment(NamedTuple):
    title: str
    folder: str
    spec: Mapping[str, Any]


def run(*, dataset: str, data_dir: Path | None, output: Path, state_dir: Path | None) -> int:
    """Run the demo and return the exit code: 1 when a job failed, whose logs are then kept; 2 on wrong usage."""
    console = standard_output()
    if dataset not in list(DatasetName):
        console.print(f"There is no data set {dataset!r}; there are: {', '.join(DatasetName)}.", soft_wrap=True)
        return 2
    began = time.monotonic()
    with _state(state_dir) as state:
        try:
            with _running(console, state, data_dir) as running, Client(running.url, running.api_key) as client:
                reports = _run_jobs(console, client, dataset, output)
        except (JobFailed, ForeignFolder) as error:
            console.print(Text(str(error), style="bold red"), soft_wrap=True)
            console.print(f"Logs: {state.keep() / 'logs'}", soft_wrap=True)
            return 1
    console.print(results_table(reports))
    _tell_files(console, output, time.monotonic() - began)
    return 0


class _State:
    """The stack's folder, removed at the end unless it is the user's own or somebody wants to read its logs."""

    def __init__(self, given: Path | None) -> None:
        self.path = given or Path(tempfile.mkdtemp(prefix="secateur-demo-"))
        self._kept = given is not None

    def keep(self) -> Path:
        self._kept = True
        return self.path

    def close(self) -> None:
        if not self._kept:
            shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def _state(given: Path | None) -> Iterator[_State]:
    state = _State(given)
    try:
        yield state
    finally:
        state.close()


@contextmanager
def _running(console: Console, state: _State, data_dir: Path | None) -> Iterator[Stack]:
    with ExitStack() as cleanup:
        with console.status("Starting PostgreSQL, Valkey, the API and a worker …"):
            running = cleanup.enter_context(stack(state_dir=state.path, port=0, workers=1, data_dir=data_dir))
        console.print(f"Running: PostgreSQL, Valkey, a Celery worker, and the API at {running.url}", soft_wrap=True)
        yield running


def _experiments(dataset: str) -> tuple[Experiment, Experiment]:
    spec: dict[str, Any] = {
        "kind": "train",
        "dataset": {"name": dataset},
        "training": {"epochs": DIGITS_EPOCHS if dataset == DatasetName.DIGITS else SOURCE_EPOCHS},
        "pruning": {"method": "threshold", "threshold": THRESHOLD},
    }
    penalty = {"regularization": {"penalty": "l1", "strength": STRENGTH}}
    return (
        Experiment("without L1", "without-l1", {**spec, "display_name": "without L1"}),
        Experiment("with L1", "with-l1", {**spec, **penalty, "display_name": "with L1"}),
    )


def _run_jobs(console: Console, client: Client, dataset: str, output: Path) -> dict[str, Report]:
    """Both trainings and their comparison, each downloaded into its folder. Returns the reports by title."""
    experiments = _experiments(dataset)
    ids = [client.submit(experiment.spec)["id"] for experiment in experiments]
    _wait(console, client, ids)
    comparison = client.submit({"kind": "compare", "jobs": ids, "display_name": "comparison"})["id"]
    _wait(console, client, [comparison])
    for job_id, folder in zip([*ids, comparison], [*(each.folder for each in experiments), "comparison"], strict=True):
        _download(client, job_id, output / folder)
    return {
        each.title: Report.model_validate_json((output / each.folder / "report.json").read_bytes())
        for each in experiments
    }


def _wait(console: Console, client: Client, job_ids: list[str]) -> None:
    """Show the jobs until all are done. Raises JobFailed."""
    with watching(console) as show:
        for job in client.wait(*job_ids, every=POLL_SECONDS):
            show(job)
    for job in map(client.get, job_ids):
        if job["status"] != "succeeded":
            raise JobFailed(job)


def _download(client: Client, job_id: str, folder: Path) -> None:
    """All artifacts of a job, in place of those of an earlier demo. Raises ForeignFolder."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "manifest.json").is_file():
            raise ForeignFolder(folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for artifact in client.artifacts(job_id):
        client.download(job_id, artifact, folder)


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


def _tell_files(console: Console, output: Path, seconds: float) -> None:
    console.print(f"All artifacts are in {output}, one folder a job; done in {seconds:.0f} s. Look at:", soft_wrap=True)
    for picture in ("without-l1/histogram.png", "with-l1/histogram.png", "comparison/comparison.png"):
        console.print(f"  {output / picture}", soft_wrap=True)
