"""The API's resources. They grow: what this client does not know is kept as it came, and no word is a closed set."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Resource(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    def as_json(self) -> dict[str, Any]:
        """The resource as the server sent it."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Progress(Resource):
    """Of the phase that it names; `fraction` is from 0 to 1."""

    phase: str
    completed: int
    total: int
    unit: str
    fraction: float


class Queue(Resource):
    """`position` 1 is next; the estimate is null when nothing is known to reckon with."""

    position: int
    ahead_seconds_estimate: float | None = None


class JobError(Resource):
    """Why a job failed. Branch on `code`."""

    code: str
    message: str
    retryable: bool = False
    attempt: int = 0
    details: dict[str, Any] = Field(default_factory=dict)


class Job(Resource):
    """Loop until `done`: `status` and `phase` are open words, and a newer server may have others."""

    id: str
    kind: str
    status: str
    done: bool
    phase: str | None = None
    display_name: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    revision: int = 0
    parent_job_id: str | None = None
    sweep_id: str | None = None
    attempt: int = 0
    queue: Queue | None = None
    progress: Progress | None = None
    estimated_finish_at: datetime | None = None
    result: dict[str, Any] | None = None
    error: JobError | None = None
    created_at: datetime
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    updated_at: datetime | None = None
    expires_at: datetime | None = None
    spec: dict[str, Any] = Field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        return self.status == "succeeded"


class Estimate(Resource):
    """Arithmetic on the spec; null where no network is made. Of a sweep, sizes are those of its largest network, work
    and bytes those of all `members` together."""

    members: int | None = None
    parameters: int | None = None
    macs_per_image: int | None = None
    training_macs: int | None = None
    checkpoint_bytes: int | None = None


class Validation(Resource):
    """The resolved spec; nothing was stored."""

    spec: dict[str, Any]
    estimate: Estimate


class Artifact(Resource):
    """A published file: `size` bytes whose SHA-256 is `sha256`, in hexadecimal."""

    name: str
    role: str
    media_type: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created_at: datetime
    expires_at: datetime | None = None
    href: str


class Event(Resource):
    """An entry of a job's log; `seq` is 1, 2, 3 … without a gap."""

    seq: int
    type: str
    level: str
    at: datetime
    attempt: int
    data: dict[str, Any]


class LineageJob(Resource):
    id: str
    kind: str
    status: str
    display_name: str | None = None
    created_at: datetime


class LineageEdge(Resource):
    """`to` has read `artifact` of `from_`, or will; or is a rerun of it."""

    from_: str = Field(alias="from")
    to: str
    relation: str
    artifact: str | None = None
    sha256: str | None = None


class Lineage(Resource):
    """A graph whose edges may name jobs that are deleted, and so are not among `jobs`."""

    jobs: list[LineageJob]
    edges: list[LineageEdge]
    truncated: bool = False


class Compared(Resource):
    """A job and its `report.json`."""

    job: Job
    report: dict[str, Any]


class Comparison(Resource):
    items: list[Compared]


class Dataset(Resource):
    """An uploaded data set: `ready`, and then with all of its facts, once its job has checked it."""

    id: str
    name: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    status: str
    job_id: str
    error: JobError | None = None
    format: str | None = None
    shape: dict[str, int] | None = None
    class_names: list[str] | None = None
    train_images: int | None = None
    test_images: int | None = None
    sha256: str | None = None
    size: int = 0


class Worker(Resource):
    id: str
    device: str
    device_name: str
    threads: int
    versions: dict[str, str]
    busy: bool
    last_seen_at: datetime
    alive: bool


class System(Resource):
    version: str
    workers: list[Worker]
    queued: int
    running: int
    oldest_queued_seconds: float | None = None
    database: bool
    broker: bool


class Quota(Resource):
    """`limit` is null for none, `in_use` when it is not known."""

    limit: int | None = None
    in_use: int | None = None


class Quotas(Resource):
    """What the key's tenant may have, and has."""

    tenant: str
    queued_jobs: Quota
    running_jobs: Quota
    stored_bytes: Quota
    requests_per_minute: Quota


class Webhook(Resource):
    """An address that is told of what happens to jobs. Its `secret`, for `verify_webhook`, is known to those alone who
    made it or have just rotated it."""

    id: str
    url: str
    events: list[str]
    description: str | None = None
    enabled: bool
    disabled_reason: str | None = None
    disabled_at: datetime | None = None
    failing_since: datetime | None = None
    previous_secret_expires_at: datetime | None = None
    created_at: datetime
    secret: str | None = Field(None, repr=False)


class Delivery(Resource):
    """An event on its way to a webhook; `id` is the `webhook-id` of all its attempts."""

    id: str
    event: str
    job_id: str | None = None
    status: str
    attempts: int = 0
    next_attempt_at: datetime | None = None
    last_attempt_at: datetime | None = None
    response_status: int | None = None
    error: str | None = None
    created_at: datetime


class WebhookEvent(Resource):
    """What a webhook is told; `data["job_id"]` is the job's, except in a test."""

    type: str
    timestamp: datetime
    data: dict[str, Any]


class Page(Resource):
    """One page of any list; `next_cursor` is null on the last."""

    items: list[dict[str, Any]]
    next_cursor: str | None = None
