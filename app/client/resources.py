"""The API's own JSON objects, as far as this client reads them; a newer server may send more."""

from __future__ import annotations

from typing import Any, TypedDict


class Progress(TypedDict):
    phase: str
    completed: int
    total: int
    unit: str
    fraction: float


class JobError(TypedDict):
    code: str
    message: str
    retryable: bool
    attempt: int


class Job(TypedDict):
    id: str
    kind: str
    status: str
    done: bool
    phase: str
    display_name: str | None
    labels: dict[str, str]
    revision: int
    parent_job_id: str | None
    attempt: int
    progress: Progress | None
    estimated_finish_at: str | None
    result: dict[str, Any] | None
    error: JobError | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    expires_at: str | None
    spec: dict[str, Any]


class Estimate(TypedDict):
    parameters: int | None
    macs_per_image: int | None
    training_macs: int | None
    checkpoint_bytes: int | None


class Validation(TypedDict):
    spec: dict[str, Any]
    estimate: Estimate


class Artifact(TypedDict):
    name: str
    role: str
    media_type: str
    size: int
    sha256: str
    created_at: str
    expires_at: str | None
    href: str


class Event(TypedDict):
    seq: int
    type: str
    level: str
    at: str
    attempt: int
    data: dict[str, Any]


class Dataset(TypedDict):
    name: str
    description: str
    train_images: int
    test_images: int
    classes: int


class Worker(TypedDict):
    id: str
    device: str
    device_name: str
    threads: int
    versions: dict[str, str]
    busy: bool
    last_seen_at: str
    alive: bool


class System(TypedDict):
    version: str
    workers: list[Worker]
    queued: int
    running: int
    oldest_queued_seconds: float | None
    database: bool
    broker: bool
