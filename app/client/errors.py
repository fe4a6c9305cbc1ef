"""What can go wrong between a client and a server.

ClientError
├── BadAddress              what was given as the server's URL or key cannot be one
├── Unreachable             no answer: nothing listens there, the name is unknown, the connection broke
├── NotSecateur             an answer, but none that this API gives
├── Problem                 the server refused; carries the problem details (RFC 9457)
└── DownloadFailed
    └── DigestMismatch      all bytes came, and they are not the ones that were published
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict


class ClientError(Exception):
    """Base of all that this client raises. The message is a sentence for people."""


class BadAddress(ClientError):
    pass


class Unreachable(ClientError):
    pass


class NotSecateur(ClientError):
    pass


class DownloadFailed(ClientError):
    pass


class DigestMismatch(DownloadFailed):
    pass


class FieldError(TypedDict):
    pointer: str
    code: str
    detail: str


class Problem(ClientError):
    """The server refused. Branch on `code`; `errors` names the fields at fault by JSON Pointer."""

    def __init__(self, status: int, body: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        self.title = str(body.get("title") or f"Status {status}")
        self.detail = str(body.get("detail") or "")
        self.code = str(body.get("code") or "")
        self.request_id = str(body.get("request_id") or "")
        self.errors: list[FieldError] = list(body.get("errors") or ())
        self.retry_after = retry_after
        super().__init__(f"{self.title}: {self.detail}" if self.detail else self.title)
