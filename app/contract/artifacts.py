"""The files that a job publishes: their names, what each is for, and its media type. No other name is ever served."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

Role: TypeAlias = Literal[
    "checkpoint",
    "dense_checkpoint",
    "compact_checkpoint",
    "onnx",
    "compact_onnx",
    "packed",
    "report",
    "histogram",
    "sensitivity",
    "metrics",
    "comparison",
    "frontier",
    "dataset",
    "manifest",
]


class ArtifactKind(NamedTuple):
    role: Role
    media_type: str


_JSON, _PNG, _SAFETENSORS = "application/json", "image/png", "application/vnd.safetensors"
_ONNX = "application/onnx"

DATASET = "dataset.safetensors"
"""All arrays of an uploaded data set, as later jobs read them."""

MANIFEST = "manifest.json"

ARTIFACTS: dict[str, ArtifactKind] = {
    "model.safetensors": ArtifactKind("checkpoint", _SAFETENSORS),
    "model.pt": ArtifactKind("checkpoint", "application/vnd.pytorch"),
    "dense.safetensors": ArtifactKind("dense_checkpoint", _SAFETENSORS),
    "compact.safetensors": ArtifactKind("compact_checkpoint", _SAFETENSORS),
    "compact.onnx": ArtifactKind("compact_onnx", _ONNX),
    "model.onnx": ArtifactKind("onnx", _ONNX),
    "packed.npz": ArtifactKind("packed", "application/x-npz"),
    "report.json": ArtifactKind("report", _JSON),
    "report.csv": ArtifactKind("report", "text/csv; charset=utf-8"),
    "sensitivity.json": ArtifactKind("sensitivity", _JSON),
    "sensitivity.png": ArtifactKind("sensitivity", _PNG),
    "histogram.json": ArtifactKind("histogram", _JSON),
    "histogram.png": ArtifactKind("histogram", _PNG),
    "metrics.jsonl": ArtifactKind("metrics", "application/jsonl"),
    "comparison.json": ArtifactKind("comparison", _JSON),
    "comparison.png": ArtifactKind("comparison", _PNG),
    "frontier.json": ArtifactKind("frontier", _JSON),
    "frontier.csv": ArtifactKind("frontier", "text/csv; charset=utf-8"),
    "frontier.png": ArtifactKind("frontier", _PNG),
    DATASET: ArtifactKind("dataset", _SAFETENSORS),
    MANIFEST: ArtifactKind("manifest", _JSON),
}
