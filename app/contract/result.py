"""The short answer of a finished job (`result`); the evidence is in its artifacts."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.contract.datasets import DatasetFacts, DatasetFormat
from app.contract.network import Ends
from app.contract.uploads import UploadFormat


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)


class _OfNetwork(_Result):
    image_channels: int = 1
    features: int = Field(49, description="Of each channel of the last convolution that the hidden layer reads.")
    classes: int = 10

    @property
    def ends(self) -> Ends:
        return Ends(self.image_channels, self.features, self.classes)


class NetworkResult(_OfNetwork):
    """Of a train or prune job. "Before" is when the pruning began, "after" is the network that is published,
    fine-tuned or not; they are equal when nothing was pruned."""

    kind: Literal["train", "prune"]
    accuracy_before: float = Field(ge=0, le=1, description="Share of the test images classified rightly.")
    accuracy_after: float = Field(ge=0, le=1)
    parameters: int
    nonzero_before: int
    nonzero_after: int
    sparsity: float = Field(ge=0, le=1, description="Zeros over all parameters, at the end.")
    emptied: tuple[str, ...] = Field(description="Tensors that pruning left without a single non-zero.")
    threshold: float | None
    compact_parameters: int | None = Field(None, description="Parameters of the compact network.")
    dataset: str
    dataset_sha256: str
    device: str
    engine_seconds: float
    channels: tuple[int, int, int] | None = Field(
        None, description="Of the network, as is `hidden`; null of a job of a release that did not tell."
    )
    hidden: int | None = None


class CompareResult(_Result):
    kind: Literal["compare"]
    jobs: tuple[str, ...]


class SweepResult(_Result):
    """What became of the members, when they were put side by side."""

    kind: Literal["sweep"]
    members: int
    succeeded: int
    failed: int
    cancelled: int
    unfinished: int = Field(description="Retried by then, or deleted.")
    front: tuple[str, ...] = Field(
        description="The jobs to which no other member is superior: none has as few non-zeros and as good an accuracy, "
        "and one of both better. The fewest non-zeros first."
    )


class ImportResult(_OfNetwork):
    """Of the network that was uploaded, as later jobs find it."""

    kind: Literal["import"]
    channels: tuple[int, int, int]
    hidden: int
    parameters: int
    nonzero: int
    format: UploadFormat
    size: int = Field(description="Bytes of the upload.")
    sha256: str = Field(description="Of the upload; model.safetensors has its own.")


class DatasetResult(_Result):
    """Of the data set that was uploaded, as later jobs find it."""

    kind: Literal["dataset"]
    format: DatasetFormat
    facts: DatasetFacts
    class_names: tuple[str, ...] | None = Field(description="In the order of the labels; null where there are none.")
    dataset_sha256: str = Field(description="Of the content: of equal data sets the same, however they were sent.")
    size: int = Field(description="Bytes of the upload.")
    sha256: str = Field(description="Of the upload.")


AnyResult: TypeAlias = NetworkResult | CompareResult | SweepResult | ImportResult | DatasetResult
Result: TypeAlias = Annotated[AnyResult, Field(discriminator="kind")]
RESULT: TypeAdapter[AnyResult] = TypeAdapter(Result)
