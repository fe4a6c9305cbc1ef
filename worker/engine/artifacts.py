"""Turns a finished run into the documents and files that it publishes. Pure: nothing is written here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from app.contract.network import PARAMETER_NAMES, DataShape
from app.contract.pruning import OneShot, Pruning, ThresholdPruning
from app.contract.report import Accuracy, EpochMetrics, Histogram, Report, Sensitivity, SizeReport
from app.contract.spec import ModelSpec, PruneSpec, TrainSpec
from worker.engine.checkpoint import to_safetensors, to_torch
from worker.engine.drawing import draw_histogram, draw_sensitivity
from worker.engine.evidence import Exports, class_reports, exports
from worker.engine.export import to_json
from worker.engine.histogram import histogram
from worker.engine.pruning import Mask
from worker.engine.report import layer_reports, size_report, tensor_reports, to_csv, total_report


@dataclass(frozen=True, eq=False)
class Outcome:
    """Whole state dicts when the pruning began and at the end, on the CPU; the same one twice when nothing was to be
    pruned."""

    model: ModelSpec
    shape: DataShape
    """Of the data set."""
    dataset_name: str | None
    """Of one that was uploaded."""
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    mask: Mask | None
    thresholds: Mapping[str, float | None]
    """By which entries were dropped, of the tensors that have one."""
    accuracy_before: Accuracy
    accuracy_pruned: Accuracy | None
    accuracy_after: Accuracy
    probes: Tensor
    """A few test images, on which the exported forms of the network are held against it."""
    labels: Tensor
    """[N], of the test images; the classes that each network gives to them likewise."""
    predictions_before: Tensor
    predictions_after: Tensor
    sensitivity: Sensitivity | None


def parameters_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without BatchNorm's running statistics, which are no parameters: never counted, never pruned."""
    return {name: state[name] for name in PARAMETER_NAMES}


def network_files(
    spec: TrainSpec | PruneSpec, outcome: Outcome, history: Sequence[EpochMetrics], latency_seconds: float
) -> tuple[Report, dict[str, bytes]]:
    """The report, and every file but the manifest; `history` is empty when nothing was trained."""
    dense, pruned = to_safetensors(outcome.before), to_safetensors(outcome.after)
    before, after = outcome.before, outcome.after
    exported = exports(outcome.model, outcome.shape, before, after, outcome.probes, seconds=latency_seconds)
    report = _report(spec, outcome, exported, size_report(dense, pruned, exported.files))
    counted = _histogram(spec, outcome, report)
    files = {
        "model.safetensors": pruned,
        "model.pt": to_torch(outcome.after),
        "dense.safetensors": dense,
        **exported.files,
        "report.json": to_json(report, indent=2),
        "report.csv": to_csv(report.tensors).encode(),
        "histogram.json": to_json(counted),
    }
    if counted.tensors:
        files["histogram.png"] = draw_histogram(counted, report, spec.display_name)
    if outcome.sensitivity is not None:
        files["sensitivity.json"] = to_json(outcome.sensitivity, indent=2)
        files["sensitivity.png"] = draw_sensitivity(outcome.sensitivity, report, spec.display_name)
    if history:
        files["metrics.jsonl"] = b"".join(to_json(metrics) for metrics in history)
    return report, files


def _report(spec: TrainSpec | PruneSpec, outcome: Outcome, exported: Exports, sizes: SizeReport) -> Report:
    assert spec.dataset is not None
    pruning, penalty = spec.pruning, spec.regularization if isinstance(spec, TrainSpec) else None
    before, after = parameters_of(outcome.before), parameters_of(outcome.after)
    tensors = tensor_reports(before, after, pruning, outcome.mask, outcome.thresholds)
    layers = layer_reports(tensors, outcome.shape)
    return Report(
        kind=spec.kind,
        channels=outcome.model.channels,
        hidden=outcome.model.hidden,
        dataset=spec.dataset.called,
        dataset_name=outcome.dataset_name,
        penalty=penalty and penalty.penalty,
        strength=penalty and penalty.strength,
        method=pruning and pruning.method,
        schedule=pruning and _schedule(pruning),
        threshold=pruning.threshold if isinstance(pruning, ThresholdPruning) else None,
        accuracy_before=outcome.accuracy_before,
        accuracy_pruned=outcome.accuracy_pruned,
        accuracy_after=outcome.accuracy_after,
        accuracy_difference=outcome.accuracy_after.accuracy - outcome.accuracy_before.accuracy,
        total=total_report(tensors, layers),
        layers=layers,
        tensors=tensors,
        sizes=sizes,
        compact=exported.compact,
        classes=class_reports(outcome.labels, outcome.predictions_before, outcome.predictions_after),
        agreement=float((outcome.predictions_before == outcome.predictions_after).double().mean()),
        latency=exported.latency,
    )


def _schedule(pruning: Pruning) -> str:
    schedule = pruning.schedule
    return schedule.when if isinstance(schedule, OneShot) and schedule.when == "before-training" else schedule.name


def _histogram(spec: TrainSpec | PruneSpec, outcome: Outcome, report: Report) -> Histogram:
    thresholds = {tensor.name: tensor.threshold for tensor in report.tensors}
    return histogram(spec.histogram, outcome.before, None if spec.pruning is None else outcome.after, thresholds)
