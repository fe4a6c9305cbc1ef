"""`report.json`, `histogram.json`, `comparison.json`, `metrics.jsonl` and `manifest.json` as models;
`app.contract.frontier` has that of `frontier.json`.

Their JSON Schemas are published (`GET /v1/schemas/{name}`). Readers must accept fields they do not know; a change
that is not an addition raises the version.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from app.contract.frontier import Frontier


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True)


class Accuracy(_Document):
    """Test accuracy as a share of `total`, and the mean cross-entropy loss."""

    correct: int
    total: int
    accuracy: float
    loss: float


class TensorReport(_Document):
    name: str
    layer: str = Field(description="The layer that it belongs to, such as layer2.0 or fc1.")
    kind: Literal["weight", "bias"]
    layer_kind: Literal["conv", "batchnorm", "linear"]
    shape: tuple[int, ...]
    total: int
    eligible: bool = Field(description="Whether the pruning was to touch it.")
    nonzero_before: int
    nonzero_after: int
    sparsity: float = Field(description="Zeros over total, at the end.")
    masked: int = Field(0, description="Entries that the mask holds at zero; other zeros came by themselves.")
    threshold: float | None = Field(
        description="Half-width of the interval that was set to zero; null where there was none, or one a round."
    )
    min: float = Field(description="Smallest value before pruning.")
    max: float = Field(description="Largest value before pruning.")
    emptied: bool = Field(description="Had non-zeros before pruning and has none now.")


class LayerReport(_Document):
    name: str
    layer_kind: Literal["conv", "batchnorm", "linear"]
    total: int
    nonzero_before: int
    nonzero_after: int
    sparsity: float
    masked: int = 0
    macs_dense: int = Field(description="Multiply-accumulates per image; 0 for BatchNorm.")
    macs_nonzero: int = Field(description="The same, of non-zero weights alone; nothing runs faster by it by itself.")


class TotalReport(_Document):
    parameters: int
    eligible: int
    nonzero_before: int
    nonzero_after: int
    sparsity: float
    eligible_nonzero_before: int = 0
    eligible_nonzero_after: int = 0
    eligible_sparsity: float | None = Field(None, description="null when nothing was eligible.")
    masked: int = 0
    emptied: tuple[str, ...]
    macs_dense: int
    macs_nonzero: int


class CompactReport(_Document):
    """The network without its dead channels, hidden units and inputs, BatchNorm folded in: the same function."""

    channels: tuple[int, int, int]
    hidden: int
    inputs: int = Field(description="Features of the last convolution that the hidden layer reads.")
    parameters: int
    nonzero: int
    macs: int = Field(description="Realised: what one image costs in it, zeros included.")
    macs_effective: int = Field(description="Of its non-zero weights alone, which are all that do any work.")
    differences: dict[str, float] = Field(
        description="By file, the largest difference of a logit from the network with zeros in place, in PyTorch, on "
        "a few test images."
    )


class Latency(_Document):
    """Of one batch, by that many runs; the models of one batch size took turns."""

    model: Literal["dense", "compact"]
    batch: int
    median_ms: float
    p95_ms: float
    runs: int


class LatencyReport(_Document):
    """Measured on the worker, as busy as it was."""

    runtime: str
    threads: int
    cpu: str
    measured: tuple[Latency, ...]


class ClassReport(_Document):
    """How many test images of a class were classified rightly, before the pruning and at the end."""

    label: int
    total: int
    correct_before: int
    correct_after: int
    accuracy_before: float
    accuracy_after: float


class FileSize(_Document):
    """Bytes of a checkpoint as it is, and after gzip (level 6, its default; no name or time)."""

    raw: int
    gzipped: int


class SizeReport(_Document):
    """Bytes of the network before its pruning (dense) and at the end. Zeros in place make a file smaller only when
    packed."""

    dense: FileSize
    pruned: FileSize
    compact: FileSize | None = None
    packed: int | None = Field(None, description="packed.npz: the compact network's non-zeros and where they are.")
    model_onnx: int | None = None
    compact_onnx: int | None = None


class Report(_Document):
    """What pruning did to each tensor, each layer and the whole network, and what it cost in accuracy."""

    version: Literal[1] = 1
    kind: Literal["train", "prune"]
    channels: tuple[int, int, int]
    hidden: int
    dataset: str
    dataset_name: str | None = Field(None, description="Of an uploaded data set: the one that came with the upload.")
    penalty: str | None
    strength: float | None
    method: str | None
    schedule: str | None = Field(None, description="one-shot, before-training (at once, too), iterative or gradual.")
    threshold: float | None
    accuracy_before: Accuracy = Field(description="Of the network as it was when its pruning began.")
    accuracy_pruned: Accuracy | None = Field(
        None,
        description="Right after the last pruning, or at the end of the training in which it happened gradually; "
        "before any further training. null without a pruning.",
    )
    accuracy_after: Accuracy = Field(description="Of the network that is published.")
    accuracy_difference: float | None = Field(None, description="After less before.")
    total: TotalReport
    layers: tuple[LayerReport, ...]
    tensors: tuple[TensorReport, ...]
    sizes: SizeReport
    compact: CompactReport | None = None
    classes: tuple[ClassReport, ...] = ()
    agreement: float | None = Field(
        None, description="Share of the test images to which the network gives the same class at the end as before."
    )
    latency: LatencyReport | None = Field(None, description="The only part that another run does not repeat.")


class SensitivityPoint(_Document):
    sparsity: float = Field(description="As asked for.")
    nonzero: int = Field(description="Left in the tensor.")
    accuracy: float


class TensorSensitivity(_Document):
    name: str
    total: int
    points: tuple[SensitivityPoint, ...]


class Sensitivity(_Document):
    """Accuracy when one weight tensor alone loses its smallest weights, without any training after it. Of the network
    as it was when its pruning began; of the trained network when nothing is pruned."""

    version: Literal[1] = 1
    images: Literal["validation", "test"] = Field(description="The validation images where the data set has some.")
    count: int = Field(description="Images that each accuracy is a share of.")
    accuracy: float = Field(description="Of the whole network.")
    tensors: tuple[TensorSensitivity, ...]


class Distribution(_Document):
    """`bins` centres evenly spaced from min to max, each weight counted at its nearest centre (ties go down)."""

    min: float
    max: float
    centres: tuple[float, ...]
    counts: tuple[int, ...]


class TensorHistogram(_Document):
    name: str
    total: int
    threshold: float | None
    before: Distribution
    after: Distribution | None = Field(description="null when nothing was pruned.")


class Histogram(_Document):
    version: Literal[1] = 1
    bins: int
    tensors: tuple[TensorHistogram, ...]


class EpochMetrics(_Document):
    """One line of `metrics.jsonl`: means over the epoch's training images."""

    epoch: int = Field(ge=1)
    loss: float = Field(
        description="Mean cross-entropy, with label smoothing and distillation if any, without the penalty."
    )
    penalty: float = Field(description="Mean of the penalty term that was added to the loss; 0 without one.")
    accuracy: float = Field(description="On the training images, as they were met during the epoch.")
    seconds: float
    course: Literal["training", "fine_tuning"] = "training"
    round: int | None = Field(None, description="Of iterative pruning; epochs are counted anew in each.")
    learning_rate: float | None = Field(None, description="At the epoch's last step.")
    sparsity: float = Field(0.0, description="Share of all parameters that a mask held at zero at the epoch's end.")
    validation_loss: float | None = Field(None, description="null without validation images.")
    validation_accuracy: float | None = None


class ComparedJob(_Document):
    job_id: str
    display_name: str | None
    report: Report
    histogram: Histogram


class Comparison(_Document):
    version: Literal[1] = 1
    jobs: tuple[ComparedJob, ...]


class ManifestFile(_Document):
    name: str
    role: str
    media_type: str
    size: int
    sha256: str


class Resume(_Document):
    """A later attempt that went on from a checkpoint of an earlier one, with the same bits as without a break."""

    attempt: int = Field(description="The attempt that went on.")
    step: int = Field(description="Training steps that it did not have to do again.")
    device_name: str = Field(description="Where the checkpoint was written. On another device the bits may differ.")
    torch: str = Field(description="The version that wrote the checkpoint; likewise.")


class Receipt(_Document):
    """How the files came about: enough to make them again."""

    spec: dict[str, JsonValue] = Field(description="The resolved spec, every default filled in.")
    seed: int | None
    dataset: str | None
    dataset_sha256: str | None
    inputs: dict[str, str] = Field(
        description="sha256 of each file read of other jobs, by job_id/artifact; of an uploaded file, by `upload`."
    )
    versions: dict[str, str]
    device: str
    device_name: str
    threads: int
    precision: str | None = Field(
        None, description="Of the first course of training: float32 or bf16; null when nothing was trained."
    )
    kernels: Literal["own", "pytorch"] | None = Field(
        None,
        description="On a GPU, whose kernels this attempt trained by: the service's own, but for convolutions in bf16, "
        "or PyTorch's, where those fell through their trial or cannot be compiled. Last bits differ. Null on a CPU, or "
        "when nothing is trained.",
    )
    attempt: int = Field(1, description="The attempt that made the files; those before it were lost or handed back.")
    resumes: tuple[Resume, ...] = ()
    together: int | None = Field(
        None,
        description="How many members of its sweep a GPU has trained at once, this one among them; null when it was "
        "trained by itself. Such a result is that of a training alone to rounding, not to the bit.",
    )
    duration_seconds: float = Field(description="Of this attempt.")


class Manifest(_Document):
    version: Literal[1] = 1
    files: tuple[ManifestFile, ...]
    receipt: Receipt


SCHEMAS: dict[str, type[BaseModel]] = {
    "report": Report,
    "histogram": Histogram,
    "epoch-metrics": EpochMetrics,
    "comparison": Comparison,
    "frontier": Frontier,
    "sensitivity": Sensitivity,
    "manifest": Manifest,
}
