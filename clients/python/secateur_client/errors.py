"""What can go wrong between a client and a server.

ClientError
├── BadAddress              what was given as the server's URL or key cannot be one
├── Unreachable             no answer: nothing listens there, the name is unknown, the connection broke
├── NotSecateur             an answer, but none that this API gives
├── Problem                 the server refused; carries the problem details (RFC 9457)
│   ├── Unauthenticated 401 · Forbidden 403 · NotFound 404 · Conflict 409 · Gone 410 · Changed 412
│   ├── Invalid 400, 413, 415, 416, 422
│   └── Busy 429, 502, 503, 504
├── WaitTimeout             the job was not done in the time given; it goes on
├── DownloadFailed
│   └── DigestMismatch      all bytes came, and they are not the ones that were published
└── BadSignature            what came to a webhook is not the service's, or is too old
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from secateur_client.resources import Job


class ClientError(Exception):
    """Base of all that this client raises. The message is a sentence for people."""


class BadAddress(ClientError):
    pass


class Unreachable(ClientError):
    """`hopeless`: nothing ever answered at this address, so that trying again would only take time."""

    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless


class NotSecateur(ClientError):
    pass


class WaitTimeout(ClientError):
    """`job` is the job as it was seen last."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"{job.id} was not done in the time given: it is {job.status}.")
        self.job = job


class DownloadFailed(ClientError):
    pass


class DigestMismatch(DownloadFailed):
    pass


class BadSignature(ClientError):
    pass


class FieldError(NamedTuple):
    """One thing wrong with a request; `pointer` is a JSON Pointer into its body, "" the whole."""

    pointer: str
    code: str
    detail: str


class Problem(ClientError):
    """The server refused. Branch on `code`; `errors` names the fields at fault by JSON Pointer, as the message does.

    `retryable` is the server's word for "the same request may go well later", `retry_after` the seconds that it named,
    `body` the whole problem, members that this client does not know included.
    """

    def __init__(self, status: int, body: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        self.title = str(body.get("title") or f"Status {status}")
        self.detail = str(body.get("detail") or "")
        self.code = str(body.get("code") or "")
        self.request_id = str(body.get("request_id") or "")
        self.retryable = body.get("retryable") is True
        self.errors = [_field_error(each) for each in body.get("errors") or () if isinstance(each, Mapping)]
        self.retry_after = retry_after
        self.body = dict(body)
        fields = [f"  {field.pointer or '(the whole)'}: {field.detail}" for field in self.errors]
        super().__init__("\n".join([f"{self.title}: {self.detail}" if self.detail else self.title, *fields]))


class Invalid(Problem):
    pass


class Unauthenticated(Problem):
    pass


class Forbidden(Problem):
    pass


class NotFound(Problem):
    pass


class Conflict(Problem):
    pass


class Gone(Problem):
    pass


class Changed(Problem):
    pass


class Busy(Problem):
    """A quota, a rate, or a part of the service that is away: for now."""


_BY_STATUS: dict[int, type[Problem]] = {
    HTTPStatus.BAD_REQUEST: Invalid,
    HTTPStatus.UNAUTHORIZED: Unauthenticated,
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.GONE: Gone,
    HTTPStatus.PRECONDITION_FAILED: Changed,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: Invalid,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: Invalid,
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: Invalid,
    HTTPStatus.UNPROCESSABLE_ENTITY: Invalid,
    HTTPStatus.TOO_MANY_REQUESTS: Busy,
    HTTPStatus.BAD_GATEWAY: Busy,
    HTTPStatus.SERVICE_UNAVAILABLE: Busy,
    HTTPStatus.GATEWAY_TIMEOUT: Busy,
}


def refusal(status: int, body: Mapping[str, Any], retry_after: float | None) -> Problem:
    """The problem, as the type that its status has."""
    return _BY_STATUS.get(status, Problem)(status, body, retry_after)


def is_busy(status: int) -> bool:
    """Whether this status alone, from whatever stands in between, says that a later request may go well."""
    return _BY_STATUS.get(status) is Busy


def _field_error(entry: Mapping[str, Any]) -> FieldError:
    return FieldError(*(str(entry.get(name) or "") for name in FieldError._fields))
