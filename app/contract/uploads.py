"""Specs of jobs that take in an uploaded file; the service writes them, no client does."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, StringConstraints

from app.contract import patterns
from app.contract.closed import Closed
from app.contract.datasets import DatasetPart
from app.contract.job import JobSpec, Limits


class ImportLimits(Limits):
    """A file is checked and converted in seconds."""

    max_runtime_seconds: Annotated[int, Field(ge=1, le=604_800)] = 900


UploadFormat: TypeAlias = Literal["safetensors", "torch"]


class UploadSpec(JobSpec):
    """What is known of a file that was uploaded, when nobody has looked into it."""

    size: Annotated[int, Field(ge=1, description="Bytes that were uploaded.")]
    sha256: Annotated[str, StringConstraints(pattern=patterns.SHA256)]
    limits: ImportLimits = ImportLimits()


class ImportSpec(UploadSpec):
    """Check a network that was trained elsewhere, so that later jobs can build on it. Made by `POST /v1/checkpoints`
    with the file as its body, not submitted."""

    kind: Literal["import"]
    format: Annotated[UploadFormat, Field(description="As found in the file: safetensors, or a zip of torch.save.")]


class UploadedFile(Closed):
    """A part of what was uploaded."""

    name: DatasetPart
    size: Annotated[int, Field(ge=1, description="Bytes.")]


class DatasetImportSpec(UploadSpec):
    """Check a data set, so that later jobs can train on it. Made by `POST /v1/datasets`, not submitted."""

    kind: Literal["dataset"]
    files: Annotated[
        tuple[UploadedFile, ...],
        Field(min_length=1, max_length=4, description="As they lie in the upload, one after the other."),
    ]
