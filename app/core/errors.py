"""The error tree of the light side: facts about the domain, each with its HTTP status and stable code.

SecateurError
├── Malformed 400: InvalidCursor · Unauthenticated 401 · Forbidden 403 · RequestTimeout 408: BodyStalled
├── PayloadTooLarge 413 · TooDeep 413 · TooManyValues 413
├── UnsupportedMediaType 415: UnsupportedContentCoding · RangeBeyondEnd 416
├── NotFound 404: JobNotFound, ArtifactNotFound, DatasetNotFound, WebhookNotFound, DeliveryNotFound
├── Conflict 409: JobNotCancellable, JobNotRetryable, UploadNotKept, SourceNotFinished, SourceHasNoResult,
│   JobNotDone, JobInUse, JobHasNoReport, TooManyWebhooks, WebhookDisabled
├── JobGone 410 · JobChanged 412
├── InvalidSpec 422 (with one entry a field), InvalidPatch 422, InvalidParameter 422, InvalidCheckpoint 422,
│   InvalidDataset 422, IdempotencyKeyReused 422, InvalidWebhook 422, UnexpectedBody 422
├── QuotaExceeded 429 (with the limit, and what is in use): QueueFull, QueueTooShort, StorageFull, RateLimited
├── ArtifactUnavailable 500 (the bytes no longer match)
└── Unavailable 503: StoreFull
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import ClassVar

from pydantic import JsonValue

from app.contract.explain import FieldError
from app.core.times import rfc_3339

# What the client still sends of its body is not going to be read.
_REST_UNREAD: Mapping[str, str] = MappingProxyType({"Connection": "close"})


class SecateurError(Exception):
    """Base of every error that a client may see. The message is the problem's `detail`."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False
    headers: Mapping[str, str] = MappingProxyType({})
    members: Mapping[str, JsonValue] = MappingProxyType({})
    """Of the problem, beside those that every one has."""

    def __init__(self, detail: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)


class Malformed(SecateurError):
    status, code, title = 400, "malformed_request", "Malformed request"


class InvalidCursor(Malformed):
    code = "invalid_cursor"


class Unauthenticated(SecateurError):
    """One answer for every reason, so that it tells an attacker nothing."""

    status, code, title = 401, "unauthenticated", "Authentication needed"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})

    def __init__(self) -> None:
        super().__init__("Send a valid key as `Authorization: Bearer sk_…`; make one with `secateur keys create`.")


class Forbidden(SecateurError):
    status, code, title = 403, "forbidden", "The key lacks a scope"


class NotFound(SecateurError):
    status, code, title = 404, "not_found", "Not found"


class JobNotFound(NotFound):
    """Also when the job is another tenant's: the two must not be told apart."""

    code, title = "job_not_found", "No such job"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no job {job_id[:64]!r}.")


class ArtifactNotFound(NotFound):
    code, title = "artifact_not_found", "No such artifact"


class DatasetNotFound(NotFound):
    """Also when it is another tenant's."""

    code, title = "dataset_not_found", "No such data set"

    def __init__(self, dataset_id: str) -> None:
        super().__init__(f"There is no data set {dataset_id[:64]!r} that was uploaded.")


class WebhookNotFound(NotFound):
    """Also when the webhook is another tenant's."""

    code, title = "webhook_not_found", "No such webhook"

    def __init__(self, webhook_id: str) -> None:
        super().__init__(f"There is no webhook {webhook_id[:64]!r}.")


class DeliveryNotFound(NotFound):
    code, title = "delivery_not_found", "No such delivery"

    def __init__(self, delivery_id: str) -> None:
        super().__init__(f"The webhook has no delivery {delivery_id[:64]!r}; each is removed after 30 days.")


class Conflict(SecateurError):
    status, code, title = 409, "conflict", "Conflict"


class JobNotCancellable(Conflict):
    code, title = "job_not_cancellable", "The job has already ended"


class JobNotRetryable(Conflict):
    code, title = "job_not_retryable", "The job has not failed"


class UploadNotKept(Conflict):
    code, title = "upload_not_kept", "The uploaded file is not kept"


class SourceNotFinished(Conflict):
    code, title, retryable = "source_not_finished", "A job that this one needs has not ended", True


class SourceHasNoResult(Conflict):
    code, title = "source_has_no_result", "A job that this one needs has failed or was cancelled"


class JobNotDone(Conflict):
    code, title = "job_not_done", "The job has not ended"


class JobInUse(Conflict):
    code, title, retryable = "job_in_use", "Another job still reads this one's files", True


class JobHasNoReport(Conflict):
    code, title = "job_has_no_report", "The job has no report"


class TooManyWebhooks(Conflict):
    code, title = "too_many_webhooks", "There are as many webhooks as there may be"

    def __init__(self, limit: int) -> None:
        super().__init__(f"You have {limit} webhooks, and may have no more: delete one, or change one.")
        self.members = {"limit": limit}


class WebhookDisabled(Conflict):
    code, title = "webhook_disabled", "The webhook is disabled"


class JobGone(SecateurError):
    status, code, title = 410, "job_purged", "The job was deleted"

    def __init__(self, job_id: str, purged_at: datetime) -> None:
        super().__init__(f"The job {job_id} and its files were deleted, by a client or at the end of its retention.")
        self.members = {"purged_at": rfc_3339(purged_at)}


class JobChanged(SecateurError):
    status, code, title, retryable = 412, "job_changed", "The job has changed meanwhile", True


class RequestTimeout(SecateurError):
    status, code, title, retryable = 408, "request_timeout", "The body did not arrive in time", True
    headers = _REST_UNREAD

    def __init__(self, seconds: float) -> None:
        super().__init__(self._detail(seconds))

    def _detail(self, seconds: float) -> str:
        return f"The whole body must arrive within {seconds:g} s of the headers."


class BodyStalled(RequestTimeout):
    def _detail(self, seconds: float) -> str:
        return f"Nothing more of the body came for {seconds:g} s."


class PayloadTooLarge(SecateurError):
    status, code, title = 413, "payload_too_large", "The body is too large"
    headers = _REST_UNREAD

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"The body may have at most {max_bytes} bytes.")


class TooDeep(SecateurError):
    status, code, title = 413, "body_too_deep", "The body is nested too deeply"

    def __init__(self) -> None:
        super().__init__("No spec is nested deeper than a few levels, and this body is by hundreds.")


class TooManyValues(SecateurError):
    status, code, title = 413, "body_too_many_values", "The body has too many values"

    def __init__(self, most: int) -> None:
        super().__init__(f"No spec has a tenth of the {most} values that a body may have, and this one has more.")


class RangeBeyondEnd(SecateurError):
    status, code, title = 416, "range_not_satisfiable", "The range lies beyond the end"

    def __init__(self, size: int) -> None:
        super().__init__(f"The file has {size} bytes.")
        self.headers = {"Content-Range": f"bytes */{size}"}


class UnsupportedMediaType(SecateurError):
    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class UnsupportedContentCoding(UnsupportedMediaType):
    headers = MappingProxyType({"Accept-Encoding": "identity"})

    def __init__(self, coding: str) -> None:
        super().__init__(f"Send the body as it is, without Content-Encoding: {coding[:64]!r} is not undone here.")


class InvalidSpec(SecateurError):
    status, code, title = 422, "invalid_spec", "The spec is invalid"


class InvalidPatch(SecateurError):
    status, code, title = 422, "invalid_patch", "The patch is invalid"


class InvalidWebhook(SecateurError):
    status, code, title = 422, "invalid_webhook", "The webhook is invalid"


class IdempotencyKeyReused(SecateurError):
    status, code, title = 422, "idempotency_key_reused", "The key belongs to another request"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key came with another content before: make a new key for each request.")


class UnexpectedBody(SecateurError):
    """What a client asks for in a body that nobody reads would be done otherwise, without a word."""

    status, code, title = 422, "unexpected_body", "The request takes no body"

    def __init__(self) -> None:
        super().__init__(
            "This request takes no body, and nothing was done: send it without one. A job by another spec is submitted "
            "with POST /v1/jobs, and a webhook is changed with PATCH /v1/webhooks/{id}."
        )


class InvalidParameter(SecateurError):
    status, code, title = 422, "invalid_parameter", "A parameter is invalid"


class InvalidCheckpoint(SecateurError):
    status, code, title = 422, "invalid_checkpoint", "The file is no checkpoint of the cnn architecture"


class InvalidDataset(SecateurError):
    status, code, title = 422, "invalid_dataset", "The files are no data set"


class QuotaExceeded(SecateurError):
    status, code, title, retryable = 429, "quota_exceeded", "A limit of the tenant is reached", True

    def __init__(self, detail: str, *, quota: str, limit: int, in_use: int, retry_after: int) -> None:
        super().__init__(detail)
        self.members = {"quota": quota, "limit": limit, "in_use": in_use}
        self.headers = {"Retry-After": str(retry_after)}


class QueueFull(QuotaExceeded):
    def __init__(self, limit: int, in_use: int, more: int = 1) -> None:
        wanted = f", and this is {more} more" if more > 1 else ""
        detail = f"{in_use} jobs wait{wanted}, and {limit} may: send this again when some have begun, or cancel some."
        super().__init__(detail, quota="queued_jobs", limit=limit, in_use=in_use, retry_after=30)


class QueueTooShort(QuotaExceeded):
    # No time mends it.
    retryable = False

    def __init__(self, limit: int, in_use: int, more: int) -> None:
        what = "This is a job" if more == 1 else f"These are {more} jobs"
        mend = "have the limit raised" if limit == 0 else "submit fewer at once, or have the limit raised"
        super().__init__(
            f"{what}, and {limit} of the tenant may wait: {mend}.",
            quota="queued_jobs",
            limit=limit,
            in_use=in_use,
            retry_after=60,
        )


class StorageFull(QuotaExceeded):
    # No time mends it.
    retryable = False

    def __init__(self, limit: int, in_use: int, more: int) -> None:
        wanted = f", and this needs {more} more" if more else ""
        detail = f"The files of your jobs take {in_use} of {limit} bytes{wanted}: delete jobs that you no longer need."
        super().__init__(detail, quota="stored_bytes", limit=limit, in_use=in_use, retry_after=60)


class RateLimited(QuotaExceeded):
    code, title = "rate_limited", "Too many requests"

    def __init__(self, limit: int, wait_seconds: float) -> None:
        detail = (
            f"There may be {limit} requests a minute, over all keys of the tenant: send fewer, or wait for changes."
        )
        again = max(1, math.ceil(wait_seconds))
        super().__init__(detail, quota="requests_per_minute", limit=limit, in_use=limit, retry_after=again)


class ArtifactUnavailable(SecateurError):
    """The record is there and the bytes are not, or not the ones that were published: never serve them."""

    status, code, title = 500, "artifact_corrupt", "The artifact's bytes are damaged"


class Unavailable(SecateurError):
    status, code, title, retryable = 503, "unavailable", "A part of the service is away", True
    headers = MappingProxyType({"Retry-After": "5"})


class StoreFull(Unavailable):
    code, title = "disk_full", "There is no room for the upload"
    headers = MappingProxyType({"Retry-After": "60"})

    def __init__(self) -> None:
        super().__init__("The artifact folder is full, and nothing of the file was kept: upload it again later.")
