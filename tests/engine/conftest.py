from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import JsonValue

from app.contract.report import Histogram, Manifest, Report
from app.contract.result import Result
from app.contract.spec import parse_spec
from app.contract.status import Phase
from tests.engine.emulated import COMPILER, NO_COMPILER, Gpu, in_place_of_cuda
from tests.engine.few import ALL
from tests.specs import Document, compare_spec, prune_spec, train_spec
from worker.engine import pipeline
from worker.engine.observer import Observer

JOBS = {"plain": "job_" + "a" * 32, "l1": "job_" + "b" * 32}


class Listener(Observer):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.records: list[tuple[str, dict[str, JsonValue]]] = []
        self.steps: list[tuple[int, int, str]] = []

    def enter(self, phase: Phase) -> None:
        self.heard.append(phase)

    def advance(self, completed: int, total: int, unit: str) -> None:
        self.steps.append((completed, total, unit))

    def record(self, type: str, data: dict[str, JsonValue]) -> None:
        self.heard.append(type)
        self.records.append((type, data))


class Run(NamedTuple):
    """A finished run of the engine."""

    result: Result
    folder: Path
    heard: Listener

    @property
    def report(self) -> Report:
        return Report.model_validate_json((self.folder / "report.json").read_bytes())

    @property
    def histogram(self) -> Histogram:
        return Histogram.model_validate_json((self.folder / "histogram.json").read_bytes())

    @property
    def manifest(self) -> Manifest:
        return Manifest.model_validate_json((self.folder / "manifest.json").read_bytes())


def run(spec: Document, folder: Path, inputs: Mapping[str, Path] | None = None, **options: Any) -> Run:
    folder.mkdir()
    heard = Listener()
    # Latency of so small networks takes as long to measure as their training.
    given = {"datasets": ALL, "inputs": inputs or {}, "latency_seconds": 0, **options}
    result = pipeline.run(parse_spec(spec), out=folder, observer=heard, **given)
    return Run(result, folder, heard)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small network trained on digits without a penalty, and pruned."""
    spec = train_spec(display_name="plain", histogram={}, training={"epochs": 2})
    return run(spec, tmp_path_factory.mktemp("engine") / "plain")


@pytest.fixture(scope="session")
def l1(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same with an L1 penalty strong enough to empty tensors in a few epochs."""
    penalty = {"penalty": "l1", "strength": 0.05}
    spec = train_spec(display_name="l1", histogram={}, training={"epochs": 4, "batch_size": 50}, regularization=penalty)
    return run(spec, tmp_path_factory.mktemp("engine") / "l1")


@pytest.fixture(scope="session")
def pruned_again(plain: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The plain run's dense network, pruned harder."""
    spec = prune_spec(JOBS["plain"], histogram={"tensors": ["fc2.weight"]}, dataset={"name": "digits"})
    return run(spec, tmp_path_factory.mktemp("engine") / "pruned", {JOBS["plain"]: plain.folder})


@pytest.fixture(scope="session")
def compared(plain: Run, l1: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    inputs = {JOBS["plain"]: plain.folder, JOBS["l1"]: l1.folder}
    return run(compare_spec(*inputs), tmp_path_factory.mktemp("engine") / "compared", inputs)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So little work is done sooner than it is shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def emulated() -> Iterator[Gpu]:
    """In place of a GPU for as long as the test runs."""
    if COMPILER is None:
        pytest.skip(NO_COMPILER)
    with in_place_of_cuda() as gpu:
        yield gpu
