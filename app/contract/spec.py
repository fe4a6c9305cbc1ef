"""Job specs: what a client asks for. Frozen, closed (unknown fields are refused), every number bounded and finite.

`pruning` and `regularization` are tagged on the wire (`method`, `penalty`) although each has one member today.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    model_validator,
)

from app.contract.datasets import DATASETS, DatasetName
from app.contract.network import PARAMETER_NAMES, macs_per_image, parameter_count

SPEC_VERSION = 1

MAX_TRAINING_MACS = 10**16
"""Most multiply-accumulates that one job may ask for: three thousand times the default run on MNIST."""

JOB_ID_PATTERN = r"^job_[0-9a-f]{32}$"

JobId = Annotated[str, StringConstraints(pattern=JOB_ID_PATTERN)]
# Printable and single-line: these end up in logs, headers and terminals.
DisplayName = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$")
]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?$")]
LabelValue = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]
Channels = Annotated[int, Field(ge=1, le=512)]
TensorName = Literal[PARAMETER_NAMES]  # type: ignore[valid-type]


class Closed(BaseModel):
    """Refuses what it does not know, and anything that would have to be guessed (`"5"` is no number)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DatasetSpec(Closed):
    name: Annotated[DatasetName, Field(strict=False)]


class ModelSpec(Closed):
    architecture: Literal["cnn"] = "cnn"
    channels: Annotated[tuple[Channels, Channels, Channels], Field(description="Widths of the three convolutions.")] = (
        16,
        16,
        32,
    )
    hidden: Annotated[int, Field(ge=1, le=4096, description="Width of the hidden linear layer.")] = 300

    @property
    def parameters(self) -> int:
        return parameter_count(self.channels, self.hidden)

    @property
    def macs(self) -> int:
        return macs_per_image(self.channels, self.hidden)


class CheckpointRef(Closed):
    """A checkpoint that an earlier job published."""

    job_id: JobId
    artifact: Literal["model.safetensors", "dense.safetensors"] = "model.safetensors"


class TrainingSpec(Closed):
    epochs: Annotated[int, Field(ge=1, le=1000)] = 5
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 100
    learning_rate: Annotated[float, Field(gt=0, le=10, description="Adam's learning rate.")] = 0.001
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Field(description="`auto` takes a GPU where the worker has one.")
    ] = "auto"


class L1Penalty(Closed):
    """Adds strength·Σ|p| over all trainable parameters (weights, biases, BatchNorm scale and shift) to the loss.

    The gradient form shrinks values towards zero but leaves none at exactly zero: prune to get zeros.
    """

    penalty: Literal["l1"]
    strength: Annotated[float, Field(gt=0, le=1)] = 0.001


Regularization: TypeAlias = L1Penalty

ParameterKind = Literal["weight", "bias"]
LayerKind = Literal["conv", "batchnorm", "linear"]


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError("entries must not repeat")
    return values


NO_REPEATS = AfterValidator(_distinct)
UNIQUE: dict[str, JsonValue] = {"uniqueItems": True}
"""The same for readers of the JSON Schema."""


class ThresholdPruning(Closed):
    """Sets an entry w to 0 where −threshold ≤ w ≤ threshold, both ends included."""

    method: Literal["threshold"]
    threshold: Annotated[float, Field(ge=0, le=1000)] = 0.01
    parameters: Annotated[
        tuple[ParameterKind, ...], Field(min_length=1, max_length=2, json_schema_extra=UNIQUE), NO_REPEATS
    ] = ("weight", "bias")
    layers: Annotated[
        tuple[LayerKind, ...], Field(min_length=1, max_length=3, json_schema_extra=UNIQUE), NO_REPEATS
    ] = ("conv", "batchnorm", "linear")


Pruning: TypeAlias = ThresholdPruning


class HistogramSpec(Closed):
    """Which tensors' weight distributions are counted and drawn, and with how many evenly spaced centres."""

    tensors: Annotated[
        tuple[TensorName, ...], Field(max_length=len(PARAMETER_NAMES), json_schema_extra=UNIQUE), NO_REPEATS
    ] = (
        "layer2.0.weight",
        "fc1.weight",
        "fc2.weight",
    )
    bins: Annotated[int, Field(ge=2, le=4096)] = 256


class Limits(Closed):
    max_queue_seconds: Annotated[int, Field(ge=1, le=604_800)] = 86_400
    max_runtime_seconds: Annotated[int, Field(ge=1, le=604_800)] = 86_400


class JobSpec(Closed):
    """What every kind of job has."""

    display_name: DisplayName | None = None
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = {}
    limits: Limits = Limits()


class TrainSpec(JobSpec):
    """Train the network, optionally with a penalty, and optionally prune it afterwards."""

    kind: Literal["train"]
    dataset: DatasetSpec
    model: ModelSpec = ModelSpec()
    initial: Annotated[
        CheckpointRef | None, Field(description="Continue from this checkpoint; null starts from new weights.")
    ] = None
    training: TrainingSpec = TrainingSpec()
    regularization: Regularization | None = None
    pruning: Pruning | None = None
    histogram: HistogramSpec = HistogramSpec()

    @property
    def training_macs(self) -> int:
        """Multiply-accumulates of the whole training: a backward pass costs about twice a forward pass."""
        return 3 * self.model.macs * DATASETS[self.dataset.name].train_images * self.training.epochs

    @model_validator(mode="after")
    def _within_budget(self) -> TrainSpec:
        if self.training_macs > MAX_TRAINING_MACS:
            raise ValueError(
                f"epochs × images × network size asks for {self.training_macs:.2e} multiply-accumulates, "
                f"more than the {MAX_TRAINING_MACS:.0e} that one job may use: take fewer epochs or smaller widths"
            )
        return self


class PruneSpec(JobSpec):
    """Prune a checkpoint of an earlier job, without training."""

    kind: Literal["prune"]
    source: CheckpointRef
    pruning: Pruning
    dataset: Annotated[DatasetSpec | None, Field(description="null evaluates on the source's data set.")] = None
    histogram: HistogramSpec = HistogramSpec()


class CompareSpec(JobSpec):
    """Put finished jobs side by side: their reports and their weight distributions."""

    kind: Literal["compare"]
    jobs: Annotated[tuple[JobId, ...], Field(min_length=2, max_length=8, json_schema_extra=UNIQUE), NO_REPEATS]


Kind = Literal["train", "prune", "compare"]
Spec: TypeAlias = Annotated[TrainSpec | PruneSpec | CompareSpec, Field(discriminator="kind")]
SPEC: TypeAdapter[TrainSpec | PruneSpec | CompareSpec] = TypeAdapter(Spec)


def parse_spec(document: bytes | str | Mapping[str, Any]) -> TrainSpec | PruneSpec | CompareSpec:
    """Validate a spec from JSON text or a JSON-like mapping. Raises `pydantic.ValidationError`."""
    if not isinstance(document, bytes | str):
        document = json.dumps(document)
    return SPEC.validate_json(document)
