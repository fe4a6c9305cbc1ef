"""Turns a finished run into the documents and files that it publishes. Pure: nothing is written here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from app.contract.network import PARAMETER_NAMES
from app.contract.report import Accuracy, EpochMetrics, Histogram, Report
from app.contract.spec import ModelSpec, PruneSpec, TrainSpec
from worker.engine.checkpoint import to_safetensors, to_torch
from worker.engine.drawing import draw_histogram
from worker.engine.export import to_json
from worker.engine.histogram import histogram
from worker.engine.report import layer_reports, size_report, tensor_reports, to_csv, total_report


@dataclass(frozen=True, eq=False)
class Outcome:
    """Whole state dicts before and after pruning, on the CPU; the same one twice when nothing was to be pruned."""

    model: ModelSpec
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    accuracy_before: Accuracy
    accuracy_after: Accuracy


def parameters_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without BatchNorm's running statistics, which are no parameters: never counted, never pruned."""
    return {name: state[name] for name in PARAMETER_NAMES}


def network_files(
    spec: TrainSpec | PruneSpec, outcome: Outcome, history: Iterable[EpochMetrics] | None
) -> tuple[Report, dict[str, bytes]]:
    """The report, and every file but the manifest; `history` is None when nothing was trained."""
    dense, pruned = to_safetensors(outcome.before), to_safetensors(outcome.after)
    report = _report(spec, outcome, dense, pruned)
    counted = _histogram(spec, outcome, report)
    files = {
        "model.safetensors": pruned,
        "model.pt": to_torch(outcome.after),
        "dense.safetensors": dense,
        "report.json": to_json(report, indent=2),
        "report.csv": to_csv(report.tensors).encode(),
        "histogram.json": to_json(counted),
    }
    if counted.tensors:
        files["histogram.png"] = draw_histogram(counted, report, spec.display_name)
    if history is not None:
        files["metrics.jsonl"] = b"".join(to_json(metrics) for metrics in history)
    return report, files


def _report(spec: TrainSpec | PruneSpec, outcome: Outcome, dense: bytes, pruned: bytes) -> Report:
    assert spec.dataset is not None
    pruning, penalty = spec.pruning, spec.regularization if isinstance(spec, TrainSpec) else None
    tensors = tensor_reports(parameters_of(outcome.before), parameters_of(outcome.after), pruning)
    layers = layer_reports(tensors)
    return Report(
        kind=spec.kind,
        channels=outcome.model.channels,
        hidden=outcome.model.hidden,
        dataset=spec.dataset.name,
        penalty=penalty and penalty.penalty,
        strength=penalty and penalty.strength,
        method=pruning and pruning.method,
        threshold=pruning and pruning.threshold,
        accuracy_before=outcome.accuracy_before,
        accuracy_after=outcome.accuracy_after,
        total=total_report(tensors, layers),
        layers=layers,
        tensors=tensors,
        sizes=size_report(dense, pruned),
    )


def _histogram(spec: TrainSpec | PruneSpec, outcome: Outcome, report: Report) -> Histogram:
    thresholds = {tensor.name: tensor.threshold for tensor in report.tensors}
    return histogram(spec.histogram, outcome.before, None if spec.pruning is None else outcome.after, thresholds)
