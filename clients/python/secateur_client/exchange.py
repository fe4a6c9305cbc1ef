"""One request and its answer: sent as often as may be, and told from what is none of the API's."""

from __future__ import annotations

import json
import math
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx
from pydantic import ValidationError

from secateur_client.errors import BadAddress, NotSecateur, Problem, Unreachable, is_busy, refusal
from secateur_client.resources import Page, Resource
from secateur_client.retrying import Tries, retry_after
from secateur_client.transport import FileBody, Transport
from secateur_client.version import VERSION

R = TypeVar("R", bound=Resource)

RETRY_SECONDS = 30.0
CONNECT_SECONDS, SILENCE_SECONDS = 5.0, 30.0

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})


class Exchange:
    """With one server, whose address is `url`, with or without a path before `/v1`."""

    def __init__(self, transport: Transport, url: str, api_key: str | None, retry_seconds: float) -> None:
        self.url = str(address_of(url)).rstrip("/")
        self._transport = transport
        self._headers = _headers(api_key)
        self._retry_seconds = retry_seconds
        self._answered = False

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        document: Mapping[str, Any] | None = None,
        file: Path | None = None,
        headers: Mapping[str, str] | None = None,
        silence: float = SILENCE_SECONDS,
    ) -> httpx.Request:
        url = httpx.URL(f"{self.url}{path}")
        if params:
            url = url.copy_merge_params({name: value for name, value in params.items() if value not in (None, "")})
        sent = {**self._headers}
        content, body = None, None
        if document is not None:
            sent["Content-Type"] = "application/json"
            content = json.dumps(document, allow_nan=False).encode()
        if file is not None:
            sent |= {"Content-Type": "application/octet-stream", "Content-Length": str(file.stat().st_size)}
            sent["Host"] = url.netloc.decode("ascii")  # which httpx leaves to those who bring a stream of their own
            body = FileBody(file)
        extensions = {"timeout": httpx.Timeout(silence, connect=CONNECT_SECONDS).as_dict()}
        sent |= headers or {}
        return httpx.Request(method, url, headers=sent, content=content, stream=body, extensions=extensions)

    async def _made(self, resource: type[R], path: str, key: str | None, **content: Any) -> R:
        """What makes something, with a key under which it may be sent as often as a read."""
        headers = {"Idempotency-Key": uuid4().hex if key is None else key}
        return parsed(resource, await self._answer(self._request("POST", path, headers=headers, **content)))

    async def _get(self, resource: type[R], path: str) -> R:
        return parsed(resource, await self._answer(self._request("GET", path)))

    async def _pages(
        self, item: type[R], path: str, params: Mapping[str, Any], *, cursor: str = "cursor"
    ) -> AsyncGenerator[R]:
        following: str | None = None
        while True:
            query = params if following is None else {**params, cursor: following}
            response = await self._answer(self._request("GET", path, params=query))
            page = parsed(Page, response)
            for each in page.items:
                yield validated(item, each, response)
            following = page.next_cursor
            if following is None:
                return

    def _tries(self, until: float = math.inf) -> Tries:
        return Tries(min(self._retry_seconds, until - time.monotonic()))

    async def _answer(
        self, request: httpx.Request, *, repeatable: bool | None = None, until: float = math.inf
    ) -> httpx.Response:
        """The whole answer. What may be repeated is, while the connection breaks or the server is busy; unless told,
        that is what HTTP calls idempotent, and what bears an idempotency key."""
        if repeatable is None:
            repeatable = request.method in _IDEMPOTENT or "Idempotency-Key" in request.headers
        tries = self._tries(until)
        while True:
            try:
                async with self._opened(request) as response:
                    await self._transport.read(response)
                    return response
            except (Unreachable, Problem) as error:
                pause = tries.pause_after(error) if repeatable else None
                if pause is None:
                    raise
                await self._transport.sleep(pause)

    @asynccontextmanager
    async def _opened(self, request: httpx.Request, *, follow_redirects: bool = False) -> AsyncIterator[httpx.Response]:
        """An answer that is no refusal, its body still to come. Raises Unreachable also when that breaks off."""
        try:
            async with self._transport.open(request, follow_redirects=follow_redirects) as response:
                known = response.status_code == httpx.codes.NOT_MODIFIED and "If-None-Match" in request.headers
                if not (response.is_success or known):
                    await self._transport.read(response)
                    raise _refused(response)
                self._answered = True
                yield response
        except httpx.RequestError as error:
            hopeless = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and not self._answered
            message = f"No answer from {self.url}: {error or type(error).__name__}."
            raise Unreachable(message, hopeless=hopeless) from error


def http_options(url: str) -> dict[str, Any]:
    """What both of httpx's clients are made with."""
    if address_of(url).host not in _LOOPBACK:
        return {}
    # A proxy cannot reach what listens here.
    return {"trust_env": False, "verify": _certificates()}


@cache
def _certificates() -> ssl.SSLContext:
    """Of whoever a download may be redirected to. To read them takes longer than a request, so that is done once."""
    return httpx.create_ssl_context(trust_env=False)


def address_of(url: str) -> httpx.URL:
    """Raises BadAddress."""
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise BadAddress(f"{url!r} is no URL: {error}.") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise BadAddress(f"{url!r} is no server's address: it must look like http://127.0.0.1:8000.")
    return address


def _headers(api_key: str | None) -> dict[str, str]:
    headers = {"Accept": "application/json", "User-Agent": f"secateur-client/{VERSION}"}
    if api_key is None:
        return headers
    if not (api_key.isascii() and api_key.isprintable() and " " not in api_key and api_key):
        raise BadAddress("The API key is empty or holds characters that no key has.")
    return {**headers, "Authorization": f"Bearer {api_key}"}


def parsed(resource: type[R], response: httpx.Response) -> R:
    try:
        body = response.json()
    except ValueError:
        body = None
    return validated(resource, body, response)


def validated(resource: type[R], body: Any, response: httpx.Response) -> R:
    try:
        return resource.model_validate(body)
    except ValidationError as error:
        what = f"{response.request.url} answered {response.status_code}"
        raise NotSecateur(f"{what} with something that is no {resource.__name__.lower()}.") from error


def _refused(response: httpx.Response) -> Problem | NotSecateur:
    """What a refusal says. A gateway's own error page is none of the API's, but its status still counts."""
    try:
        body = response.json()
    except ValueError:
        body = None
    pause = pause_named(response)
    if isinstance(body, dict) and "title" in body:
        return refusal(response.status_code, body, pause)
    if is_busy(response.status_code):
        return refusal(response.status_code, {"title": "The server is busy"}, pause)
    return NotSecateur(
        f"{response.request.url} answered {response.status_code} {response.reason_phrase}, "
        "and not as a Secateur server does."
    )


def pause_named(response: httpx.Response) -> float | None:
    return retry_after(response.headers.get("Retry-After", ""))
