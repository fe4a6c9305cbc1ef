"""Why a job failed: stable codes that clients branch on, and what to do about each."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class FailureCode(StrEnum):
    WORKER_LOST = "worker_lost"
    QUEUE_TIMEOUT = "queue_timeout"
    RUNTIME_TIMEOUT = "runtime_timeout"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    NON_FINITE_LOSS = "non_finite_loss"
    DATASET_UNAVAILABLE = "dataset_unavailable"
    DEVICE_UNAVAILABLE = "device_unavailable"
    INVALID_DATASET = "invalid_dataset"
    INVALID_CHECKPOINT = "invalid_checkpoint"
    PRUNING_IMPOSSIBLE = "pruning_impossible"
    ARTIFACT_CORRUPT = "artifact_corrupt"
    NO_MEMBER_SUCCEEDED = "no_member_succeeded"
    INTERNAL_ERROR = "internal_error"

    @property
    def retryable(self) -> bool:
        """Whether the same spec may well succeed when it is submitted again unchanged."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        FailureCode.WORKER_LOST,
        FailureCode.QUEUE_TIMEOUT,
        FailureCode.DISK_FULL,
        FailureCode.DATASET_UNAVAILABLE,
        FailureCode.DEVICE_UNAVAILABLE,
        FailureCode.INTERNAL_ERROR,
    }
)


class Failure(BaseModel):
    """The `error` of a failed job."""

    model_config = ConfigDict(frozen=True)

    code: FailureCode
    message: str = Field(description="What happened and what to do about it, in a sentence or two.")
    retryable: bool
    attempt: int = Field(description="The attempt that failed; 0 when none was started.")
    details: dict[str, JsonValue] = {}

    @classmethod
    def of(cls, code: FailureCode, message: str, *, attempt: int, **details: JsonValue) -> Failure:
        return cls(code=code, message=message, retryable=code.retryable, attempt=attempt, details=details)
