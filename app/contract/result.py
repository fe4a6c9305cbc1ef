"""The short answer of a finished job (`result`); the evidence is in its artifacts."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.contract.spec import UploadFormat


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)


class NetworkResult(_Result):
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


class CompareResult(_Result):
    kind: Literal["compare"]
    jobs: tuple[str, ...]


class ImportResult(_Result):
    """Of the network that was uploaded, as later jobs find it."""

    kind: Literal["import"]
    channels: tuple[int, int, int]
    hidden: int
    image_channels: int = 1
    features: int = Field(49, description="Of each channel of the last convolution that the hidden layer reads.")
    classes: int = 10
    parameters: int
    nonzero: int
    format: UploadFormat
    size: int = Field(description="Bytes of the upload.")
    sha256: str = Field(description="Of the upload; model.safetensors has its own.")


Result: TypeAlias = Annotated[NetworkResult | CompareResult | ImportResult, Field(discriminator="kind")]
RESULT: TypeAdapter[NetworkResult | CompareResult | ImportResult] = TypeAdapter(Result)
