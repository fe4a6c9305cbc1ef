"""One attempt at a delivery: a POST, whose answer's status is all that is wanted of it."""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import suppress
from functools import cached_property

import httpcore

from app.core.signing import signature
from app.core.version import VERSION
from app.db.webhooks import Claim
from app.delivery.guard import GuardedBackend, PeerRefused, Resolve
from app.delivery.outcome import Outcome

TOTAL_SECONDS = 15.0
"""From the look-up of the host to the answer's status."""

CONNECT_SECONDS = 5.0
"""For each of a host's addresses."""

MOST_HEARD_SECONDS = 1.0
"""Of the answer's body."""


class Sender:
    """Sends deliveries; any number at once, each over a connection of its own."""

    def __init__(
        self,
        resolve: Resolve,
        *,
        allow_private: bool,
        tls: ssl.SSLContext | None = None,
        seconds: float = TOTAL_SECONDS,
    ) -> None:
        self._backend = GuardedBackend(resolve, allow_private=allow_private)
        self._given_tls, self._seconds = tls, seconds

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        # Made when it is needed: reading all the authorities that there are takes its time.
        return self._given_tls or httpcore.default_ssl_context()

    async def send(self, claim: Claim) -> Outcome:
        """Never raises for what the endpoint does, or fails to do."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._post(claim)
        except (TimeoutError, httpcore.TimeoutException):
            return Outcome(None, f"no answer within {self._seconds:g} s")
        except PeerRefused:
            return Outcome(None, "the host has no address that may be connected to")
        except httpcore.ConnectError as error:
            return Outcome(None, _untrusted(error) or "the connection failed")
        except (httpcore.NetworkError, httpcore.ProtocolError):
            return Outcome(None, "the connection broke, or the answer was not HTTP")

    async def _post(self, claim: Claim) -> Outcome:
        url = httpcore.URL(claim.url)
        timeouts = {"connect": CONNECT_SECONDS, "read": self._seconds, "write": self._seconds}
        connection = httpcore.AsyncHTTPConnection(
            url.origin, self._tls if url.scheme == b"https" else None, network_backend=self._backend
        )
        async with (
            connection,
            connection.stream(
                "POST", url, headers=headers(claim), content=claim.payload, extensions={"timeout": timeouts}
            ) as response,
        ):
            await _hear_out(response)
            return _outcome(response)


async def _hear_out(response: httpcore.Response) -> None:
    """Its status is all that counts, but an endpoint should not find itself cut off amid an answer of usual size."""
    with suppress(TimeoutError, httpcore.NetworkError, httpcore.ProtocolError):
        async with asyncio.timeout(MOST_HEARD_SECONDS):
            async for _ in response.aiter_stream():
                pass


def headers(claim: Claim) -> dict[bytes | str, bytes | str]:
    """Signed with each of the webhook's secrets, as of now."""
    timestamp = int(time.time())
    signatures = [signature(secret, claim.delivery_id, timestamp, claim.payload) for secret in claim.secrets]
    return {
        "Content-Type": "application/json",
        "User-Agent": f"Secateur/{VERSION}",
        "webhook-id": claim.delivery_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def _outcome(response: httpcore.Response) -> Outcome:
    status = response.status
    if 200 <= status < 300:
        return Outcome(status, None)
    hint = ": redirects are not followed" if 300 <= status < 400 else ""
    return Outcome(status, f"the endpoint answered {status}{hint}", _retry_after(response))


def _retry_after(response: httpcore.Response) -> int:
    """Seconds; a date is not understood, and our own schedule then does."""
    given = next((value for name, value in response.headers if name.lower() == b"retry-after"), b"")
    return int(given) if given.isdigit() and len(given) < 8 else 0


def _untrusted(error: httpcore.ConnectError) -> str | None:
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate was not accepted: {cause.verify_message}"
    return "TLS could not be agreed upon" if isinstance(cause, ssl.SSLError) else None
