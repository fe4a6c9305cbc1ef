"""The resources as clients see them. Responses may grow: clients ignore fields that they do not know."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from app.contract.datasets import DatasetFormat
from app.contract.explain import FieldError
from app.contract.failure import Failure
from app.contract.network import DataShape
from app.contract.result import Result
from app.contract.spec import Spec, StoredSpec
from app.contract.status import Status
from app.contract.webhooks import JobEventType

T = TypeVar("T")


class Resource(BaseModel):
    model_config = ConfigDict(defer_build=True, frozen=True, from_attributes=True)


class Problem(Resource):
    """Any error, as `application/problem+json` (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    code: str = Field(description="Stable; branch on this.")
    request_id: str
    retryable: bool
    errors: list[FieldError] = []


class QuotaProblem(Problem):
    """The problem of a 429: which limit of the tenant it is, and what of it is in use."""

    quota: str = Field(description="queued_jobs, stored_bytes or requests_per_minute; as in /v1/quotas.")
    limit: int
    in_use: int


class Page(Resource, Generic[T]):
    items: list[T]
    next_cursor: str | None = Field(
        description="The next page's `cursor` (of events, its `after`); null on the last. `Link` has its address."
    )

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """As the description calls it: JobPage."""
        return f"{params[0].__name__}Page"


class Progress(Resource):
    phase: str
    completed: int
    total: int
    unit: str
    fraction: float = Field(ge=0, le=1)
    updated_at: datetime


class Queue(Resource):
    position: int = Field(ge=1, description="Among all that wait, as tenants take turns; 1 is next.")
    ahead_seconds_estimate: float | None = Field(
        description="Until it may run and a worker is free for it, if those ahead take as long as the last jobs did; "
        "null when no worker is alive, none has finished a job yet, or the tenant may run none."
    )
    waits_for: str = Field(
        description="`worker`: a free one; `tenant_limit`: its tenant runs as many jobs as it may; an open set of words"
    )


class Links(Resource):
    self: str
    events: str
    artifacts: str
    cancel: str
    retry: str
    rerun: str


class Job(Resource):
    """One accepted spec and its life. Loop until `done`, not until a particular status."""

    id: str
    kind: str
    status: Status
    done: bool
    phase: str | None = Field(description="For people; an open set of words. null once the job is done.")
    display_name: str | None
    labels: dict[str, str]
    revision: int = Field(description="Grows with every change of this resource.")
    parent_job_id: str | None = Field(description="The job that this one is a rerun of.")
    sweep_id: str | None = Field(description="The sweep that this job is a member of.")
    attempt: int = Field(description="Number of the current or last attempt; 0 before the first.")
    queue: Queue | None = Field(description="Of a job that waits, when it is read by itself; null in lists.")
    progress: Progress | None = Field(description="Of the phase that it names; stays when a job ends before its time.")
    estimated_finish_at: datetime | None
    result: Result | None
    error: Failure | None
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None = Field(description="Of the first attempt.")
    finished_at: datetime | None
    updated_at: datetime
    expires_at: datetime | None = Field(description="When a job that is done, and its files, will be deleted.")
    spec: StoredSpec = Field(description="The resolved spec, every default filled in.")
    links: Links


class Estimate(Resource):
    """Arithmetic on the spec, no promise of time. Of a sweep, sizes are those of its largest network, and work and
    bytes those of all members together."""

    members: int | None = Field(description="Of a sweep: how many jobs it becomes.")
    parameters: int | None = Field(description="Trainable parameters; null where no network is made.")
    macs_per_image: int | None
    training_macs: int | None = Field(
        description="Multiply-accumulates of all training and fine-tuning, backward passes included, with validation, "
        "scores, sensitivity and what teachers compute."
    )
    checkpoint_bytes: int | None


class Validation(Resource):
    """The answer to `?validate_only=true`: nothing was stored."""

    spec: Spec
    estimate: Estimate


class Artifact(Resource):
    name: str
    role: str
    media_type: str
    size: int
    sha256: str
    created_at: datetime
    expires_at: datetime | None
    href: str


class Event(Resource):
    """An entry of the job's log; `seq` runs 1, 2, 3 … without a gap."""

    seq: int
    type: str
    level: str
    at: datetime
    attempt: int
    data: dict[str, JsonValue]


class LineageJob(Resource):
    id: str
    kind: str
    status: Status
    display_name: str | None
    created_at: datetime


class LineageEdge(Resource):
    """`to` has read `artifact` of `from`, or will; or is a rerun of it."""

    from_: str = Field(alias="from")
    to: str
    relation: str = Field(
        description="source, initial, teacher, dataset, compared, member or rerun; an open set of words."
    )
    artifact: str | None
    sha256: str | None = Field(description="Of the artifact; null before it is published, and after its deletion.")


class Lineage(Resource):
    """A graph whose edges may name jobs that are deleted, and so are not among `jobs`."""

    jobs: list[LineageJob]
    edges: list[LineageEdge]
    truncated: bool = Field(description="Whether there is more than what is told.")


class Compared(Resource):
    job: Job
    report: dict[str, JsonValue] = Field(description="Its `report.json`, which `/v1/schemas/report` describes.")


class Comparison(Resource):
    items: list[Compared]


class Webhook(Resource):
    """An address that is told of what happens to the tenant's jobs."""

    id: str
    url: str
    events: list[JobEventType]
    description: str | None
    enabled: bool
    disabled_reason: str | None = Field(
        description="client: a PATCH said so; gone: the endpoint answered 410; failing: nothing got through for five "
        "days. null while it is enabled."
    )
    disabled_at: datetime | None
    failing_since: datetime | None = Field(description="The first failure after the last success.")
    previous_secret_expires_at: datetime | None = Field(description="Until then a rotated secret signs too.")
    created_at: datetime
    updated_at: datetime


class WebhookWithSecret(Webhook):
    secret: str = Field(description="What deliveries are signed with. No other answer shows it.")


class Delivery(Resource):
    """An event on its way to a webhook, with all its attempts."""

    id: str = Field(description="The `webhook-id` of all its attempts.")
    event: str
    job_id: str | None = Field(description="null for a test.")
    status: Literal["pending", "succeeded", "failed"]
    attempts: int
    next_attempt_at: datetime | None
    last_attempt_at: datetime | None
    response_status: int | None = Field(description="Of the last attempt; null when there was no answer.")
    error: str | None = Field(description="Of the last attempt, for people.")
    created_at: datetime


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
    oldest_queued_seconds: float | None
    database: bool
    broker: bool


class Quota(Resource):
    limit: int | None = Field(description="null: none.")
    in_use: int | None = Field(description="null: not known.")


class Quotas(Resource):
    """Limits of the key's tenant, and what it has of each at this moment."""

    tenant: str
    queued_jobs: Quota = Field(description="Beyond it, a submission is 429.")
    running_jobs: Quota = Field(description="Beyond it, a job waits.")
    stored_bytes: Quota = Field(
        description="Of published files, and of uploads not imported yet; beyond it, a submission is 429."
    )
    requests_per_minute: Quota = Field(description="Beyond it, a request is 429.")


class Readiness(Resource):
    status: str = Field(description="ok or unavailable")
    database: bool
    migrated: bool | None = Field(description="false: `secateur migrate` is due; null: the database does not answer")
    broker: bool


class DatasetLinks(Resource):
    self: str
    job: str
    events: str


class Dataset(Resource):
    """A data set that was uploaded. It stays until it is deleted; one that was rejected goes as jobs do."""

    id: str = Field(description="Also of the job that checks it.")
    name: str | None
    labels: dict[str, str]
    status: Literal["checking", "ready", "rejected"]
    job_id: str
    error: Failure | None = Field(description="Why it was rejected; null else, and when the check was cancelled.")
    format: DatasetFormat | None = Field(description="As found by the worker; null, as is what follows, until `ready`.")
    shape: DataShape | None
    class_names: tuple[str, ...] | None = Field(description="In the order of the labels, of class folders.")
    train_images: int | None
    test_images: int | None
    sha256: str | None = Field(description="Of the content: of equal data sets the same, however they were sent.")
    size: int = Field(description="Bytes that were uploaded.")
    created_at: datetime
    expires_at: datetime | None
    links: DatasetLinks
