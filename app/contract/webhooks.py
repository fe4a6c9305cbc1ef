"""What a client may ask to be told of, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, Url

from app.contract import patterns
from app.contract.closed import NO_REPEATS, UNIQUE, Closed
from app.contract.failure import FailureCode
from app.contract.job import DisplayName
from app.contract.status import Status


class JobEventType(StrEnum):
    """What happens to a job that a webhook may be told of."""

    STARTED = "job.started"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"


TEST: Final = "webhook.test"
"""The event that a client makes happen, and no webhook need ask for."""

OF_STATUS: Mapping[str, JobEventType] = MappingProxyType(
    {
        Status.RUNNING: JobEventType.STARTED,
        Status.SUCCEEDED: JobEventType.SUCCEEDED,
        Status.FAILED: JobEventType.FAILED,
        Status.CANCELLED: JobEventType.CANCELLED,
    }
)
"""By the state that a job has come to."""


def _normal(text: str) -> str:
    """The URL as browsers spell it: ASCII, and an IPv4 address as four numbers, however it was written."""
    try:
        url = Url(text)
    except ValidationError as error:
        raise PydanticCustomError("url_invalid", "this is not a URL") from error
    if url.username is not None or url.password is not None:
        raise PydanticCustomError("url_has_credentials", "the URL must bear no user and no password")
    return str(url)


WebhookUrl = Annotated[str, Field(max_length=2_048, pattern=patterns.WEBHOOK_URL), AfterValidator(_normal)]
EventTypes = Annotated[tuple[JobEventType, ...], Field(min_length=1, json_schema_extra=UNIQUE), NO_REPEATS]


class NewWebhook(Closed):
    """An address that is to be told of what happens to the tenant's jobs."""

    url: WebhookUrl
    events: EventTypes
    description: DisplayName | None = None


class WebhookPatch(Closed):
    """A merge patch (RFC 7396): a field that is left out stays as it is, and its default here is read by nobody."""

    url: WebhookUrl = Field(default_factory=str)
    events: EventTypes = Field(default_factory=tuple)
    description: DisplayName | None = None
    enabled: bool = Field(default_factory=bool, description="Enabling clears the reason for which it was disabled.")


NEW_WEBHOOK: TypeAdapter[NewWebhook] = TypeAdapter(NewWebhook)
WEBHOOK_PATCH: TypeAdapter[WebhookPatch] = TypeAdapter(WebhookPatch)


class Told(BaseModel):
    model_config = ConfigDict(frozen=True)


class JobEventData(Told):
    job_id: str
    kind: str
    status: Status
    error_code: FailureCode | None = Field(None, description="Of a job that failed; else left out.")
    sweep_id: str | None = Field(None, description="Of a member of a sweep; else left out.")
    href: str = Field(description="Where the job is to be read, on the service that sends this.")


class JobEvent(Told):
    """The body of a delivery. It is thin: read the job for all else, and for what has become of it since."""

    type: JobEventType
    timestamp: datetime = Field(description="When it happened, however late this arrives.")
    data: JobEventData


class WebhookTestData(Told):
    webhook_id: str


class WebhookTest(Told):
    """The body of a delivery that a client asked for, to see one arrive."""

    type: Literal["webhook.test"]
    timestamp: datetime
    data: WebhookTestData
