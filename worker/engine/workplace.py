"""What a run has at hand, and what its receipt and its result tell of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from app.contract.report import Receipt, Report, Resume
from app.contract.result import NetworkResult
from app.contract.spec import StoredSpec
from app.contract.training import FineTuningSpec
from worker.engine import device, kernels
from worker.engine.data import Dataset, DatasetStore
from worker.engine.export import versions
from worker.engine.observer import Observer
from worker.engine.placed import Placed
from worker.engine.resume import Recovery

Inputs = Mapping[str, Path]


@dataclass(frozen=True, eq=False)
class Workplace:
    """What a run has at hand."""

    device: torch.device
    datasets: DatasetStore
    inputs: Inputs
    out: Path
    observer: Observer
    recovery: Recovery
    placed: Placed
    latency_seconds: float
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def network_result(report: Report, dataset: Dataset, at: Workplace) -> NetworkResult:
    return NetworkResult(
        kind=report.kind,
        image_channels=dataset.shape.channels,
        features=dataset.shape.features,
        classes=dataset.shape.classes,
        accuracy_before=report.accuracy_before.accuracy,
        accuracy_after=report.accuracy_after.accuracy,
        parameters=report.total.parameters,
        nonzero_before=report.total.nonzero_before,
        nonzero_after=report.total.nonzero_after,
        sparsity=report.total.sparsity,
        emptied=report.total.emptied,
        threshold=report.threshold,
        compact_parameters=report.compact and report.compact.parameters,
        dataset=dataset.name,
        dataset_sha256=dataset.sha256,
        device=at.device.type,
        engine_seconds=at.seconds,
        channels=report.channels,
        hidden=report.hidden,
    )


class Content(NamedTuple):
    """What a data set is called, and its digest."""

    name: str | None = None
    sha256: str | None = None


NO_DATA = Content()


def receipt(
    spec: StoredSpec,
    at: Workplace,
    read: Mapping[str, str],
    dataset: Content = NO_DATA,
    *,
    course: FineTuningSpec | None = None,
    resumes: tuple[Resume, ...] = (),
    together: int | None = None,
) -> Receipt:
    return Receipt(
        spec=spec.model_dump(mode="json"),
        seed=None if course is None else course.seed,
        precision=None if course is None else course.precision,
        dataset=dataset.name,
        dataset_sha256=dataset.sha256,
        inputs=dict(read),
        versions=versions(),
        device=at.device.type,
        device_name=device.name_of(at.device),
        threads=torch.get_num_threads(),
        kernels=None if course is None else _kernels(at.device),
        attempt=at.recovery.attempt,
        resumes=resumes,
        together=together,
        duration_seconds=at.seconds,
    )


def _kernels(on: torch.device) -> Literal["own", "pytorch"] | None:
    if on.type != "cuda":
        return None
    return "own" if kernels.at_hand() else "pytorch"
