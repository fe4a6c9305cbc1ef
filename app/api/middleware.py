"""Around every request: an id, a bound on the body, one log entry."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Mapping
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import of_error
from app.api.metrics import Metrics
from app.core import tracing
from app.core.errors import BodyStalled, PayloadTooLarge, RequestTimeout
from app.core.logging import about

logger = logging.getLogger("secateur.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestContext:
    """Gives each request an id (the client's `X-Request-Id` when it is harmless), echoes it, and logs the outcome."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        with tracing.continued(headers), about(request_id=request_id, **tracing.trace_field()) as fields:
            scope["state"]["about"] = fields
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                seconds, method = time.perf_counter() - started, scope["method"]
                route = getattr(scope.get("route"), "path", None)
                self._metrics.observe(method=method, route=route, status=status, seconds=seconds)
                entry = {"method": method, "route": route, "path": scope["path"], "status": status}
                logger.info("request", extra=entry | {"ms": round(seconds * 1000, 1)})


class Bounds(NamedTuple):
    """Of a request's body: how large it may be, how long the whole may take, and how long a pause in it."""

    max_bytes: int
    seconds: float
    stall_seconds: float


class BodyLimit:
    """Answers 413 as soon as a body is announced or found to be larger than it may be, without holding it, and 408 when
    it does not arrive in time: the server itself would wait for ever. `of_paths` has the bounds that differ."""

    def __init__(self, app: ASGIApp, *, usual: Bounds, of_paths: Mapping[str, Bounds]) -> None:
        self._app, self._usual, self._of_paths = app, usual, of_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        bounds = self._of_paths.get(scope["path"], self._usual)
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdigit() and int(announced) > bounds.max_bytes:
            error, request_id = PayloadTooLarge(bounds.max_bytes), scope["state"]["request_id"]
            await of_error(error, path=scope["path"], request_id=request_id)(scope, receive, send)
            return
        await self._app(scope, _bounded(receive, bounds), send)


def _bounded(receive: Receive, bounds: Bounds) -> Receive:
    clock = asyncio.get_running_loop().time
    seen, whole, until = 0, False, clock() + bounds.seconds

    async def bounded_receive() -> Message:
        nonlocal seen, whole
        stalled = clock() + bounds.stall_seconds
        try:
            # Once the body is whole, this waits for the client to leave, which may take as long as it likes.
            async with asyncio.timeout_at(None if whole else min(until, stalled)):
                message = await receive()
        except TimeoutError:
            if stalled < until:
                raise BodyStalled(bounds.stall_seconds) from None
            raise RequestTimeout(bounds.seconds) from None
        whole = not message.get("more_body", False)
        seen += len(message.get("body", b""))
        if seen > bounds.max_bytes:
            raise PayloadTooLarge(bounds.max_bytes)
        return message

    return bounded_receive
