"""What routes ask for, as types: a session that commits, the principal, the shared parts of the process."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, TypeAlias

from fastapi import APIRouter, Depends, Header, Query, Request, Security, params
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AwareDatetime, BeforeValidator
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool

from app.api.sharing import Shared
from app.contract import patterns
from app.contract.explain import MOST_ERRORS, FieldError, unknown
from app.contract.job import MAX_LABELS, Label
from app.contract.patch import JobPatch
from app.contract.spec import AnySpec
from app.contract.webhooks import NewWebhook, WebhookPatch
from app.core.errors import (
    Forbidden,
    InvalidParameter,
    TooManyValues,
    Unauthenticated,
    UnexpectedBody,
    UnsupportedContentCoding,
    UnsupportedMediaType,
)
from app.core.limits import UNLIMITED
from app.core.logging import note
from app.core.pace import Pace
from app.core.settings import Settings
from app.db.changes import Changes
from app.queue import Queue, Waker
from app.rates import Rates
from app.services import jobs, resolving, webhooks
from app.services.jobs import Terms
from app.services.keys import Principal, Scope, anybody, authenticate
from app.services.quotas import charge
from app.services.uploads import Arrivals
from app.storage import ArtifactStore


@dataclass(frozen=True)
class Parts:
    """What a process opens once, in the app's lifespan."""

    settings: Settings
    engine: Engine
    sessions: sessionmaker[Session]
    reads: sessionmaker[Session]
    """Sessions each of whose statements is a transaction of its own."""
    queue: Queue
    waker: Waker
    store: ArtifactStore
    changes: Changes
    rates: Rates
    shared: Shared
    arrivals: Arrivals
    polls: Pace

    @property
    def terms(self) -> Terms:
        return Terms(self.settings.retention_days, self.settings.limits)


# Whatever here is not `async` would run on a thread, to and from which is a tenth of a request's way.
async def parts(request: Request) -> Parts:
    found: Parts = request.app.state.parts
    return found


PartsDep = Annotated[Parts, Depends(parts)]


async def session(parts: PartsDep) -> AsyncIterator[Session]:
    """One transaction a request, committed before the answer leaves, rolled back when the route raises."""
    opened = parts.sessions()  # which does nothing until it is asked something
    try:
        yield opened
    except BaseException:
        await run_in_threadpool(opened.close)
        raise
    await run_in_threadpool(_commit, opened)


def _commit(session: Session) -> None:
    with session:
        session.commit()


SessionDep = Annotated[Session, Depends(session, scope="function")]


async def read_session(parts: PartsDep) -> AsyncIterator[Session]:
    """For a route that only asks: there is nothing to begin and to commit, which would be half of what it takes."""
    with parts.reads() as opened:
        yield opened


ReadSessionDep = Annotated[Session, Depends(read_session, scope="function")]


async def only_known_parameters(request: Request) -> None:
    """A misspelt filter must not list everything, nor a misspelt `validate_only` train."""
    # Not on a thread: health and metrics answer also when all of them hang on a database that does.
    if "job_id" in request.path_params:
        note(job_id=request.path_params["job_id"])
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    # Of a thousand, each of which is compared with what there is, the key has not even been looked at.
    names = [name for name in request.query_params if name not in known][:MOST_ERRORS]
    found = [
        FieldError(pointer=f"/query/{name}", code="unknown_parameter", detail=unknown(name, known, "parameter"))
        for name in names
    ]
    if found:
        raise InvalidParameter("A parameter is not one that this request takes; `errors` says which.", found)


def make_router(
    prefix: str = "", *, tags: list[str | Enum] | None = None, dependencies: Sequence[params.Depends] = ()
) -> APIRouter:
    """Routes that say all that they ask for, so that the application takes them as they are."""
    return APIRouter(prefix=prefix, tags=tags, dependencies=[Depends(only_known_parameters), *dependencies])


_bearer = HTTPBearer(auto_error=False, description="A key made by `secateur keys create`.")


Credentials: TypeAlias = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


async def _principal(parts: Parts, credentials: HTTPAuthorizationCredentials | None) -> Principal:
    """Who asks, as one of the tenant's requests of this minute. In a transaction of its own: a request that takes its
    time holds neither a connection, nor a transaction, which the database would end."""
    token = credentials.credentials if credentials is not None else None
    if token is None and parts.settings.auth_required:
        raise Unauthenticated
    who = await parts.shared.ask(("key", token), lambda: _known(parts, token))
    note(tenant=who.tenant, key_id=who.key_id)
    own, usual = who.requests_per_minute, parts.settings.limits.requests_per_minute
    if (limit := usual if own is None else own) != UNLIMITED:
        await run_in_threadpool(charge, parts.rates, who, limit)
    return who


def _known(parts: Parts, token: str | None) -> Principal:
    with parts.reads() as session:
        return authenticate(session, token) if token is not None and parts.settings.auth_required else anybody(session)


def requires(scope: Scope) -> Callable[[Request, Credentials], Awaitable[Principal]]:
    # Asks the request itself for the parts: one dependency less for the framework to solve.
    async def check(request: Request, credentials: Credentials) -> Principal:
        who = await _principal(request.app.state.parts, credentials)
        if not who.may(scope):
            raise Forbidden(f"This needs the scope {scope}; the key has {', '.join(sorted(who.scopes))}.")
        return who

    return check


ReaderDep = Annotated[Principal, Depends(requires(Scope.JOBS_READ))]
WriterDep = Annotated[Principal, Depends(requires(Scope.JOBS_WRITE))]
ArtifactReaderDep = Annotated[Principal, Depends(requires(Scope.ARTIFACTS_READ))]
READER_ONLY = Depends(requires(Scope.JOBS_READ))
"""For a route that wants a reader's key and no tenant."""


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=patterns.IDEMPOTENCY_KEY,
        description="Made anew by the client for each thing that it wants done, and sent again when an answer was "
        "lost: what was done is not done again, and the answer is the same. Kept for a day.",
    ),
]


def media_type_of(request: Request, unless_told: str) -> str:
    """What the body is. Raises UnsupportedContentCoding."""
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise UnsupportedContentCoding(coding)
    return request.headers.get("content-type", unless_told).partition(";")[0].strip().lower()


MOST_VALUES = 10_000
"""Of a body. A sweep of 256 widths, which is the longest, has a thousand."""


async def _json_body(request: Request, what: str) -> bytes:
    """Pydantic reads the bytes itself: its JSON parser bounds depth and refuses surrogates, where Python's would let
    NaN through and recurse."""
    media_type = media_type_of(request, unless_told="application/json")
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType(f"Send the {what} as application/json, not as {media_type[:64]!r}.")
    body = await request.body()
    # Counted, since it would be told of each value that is wrong, while all others wait.
    if body.count(b",") > MOST_VALUES:
        raise TooManyValues(MOST_VALUES)
    return body


async def no_body(request: Request, who: WriterDep) -> None:  # noqa: ARG001 - who may not ask is told so first
    """For a route that is told all by its path. Some clients send `{}` or white space where there is nothing to say."""
    if b"".join((await request.body()).split()) not in (b"", b"{}"):
        raise UnexpectedBody


NO_BODY = Depends(no_body)


async def spec_of_body(request: Request) -> AnySpec:
    """The job spec in the body."""
    return resolving.parse(await _json_body(request, "spec"))


async def patch_of_body(request: Request) -> JobPatch:
    """The merge patch in the body."""
    return jobs.parse_patch(await _json_body(request, "patch"))


async def webhook_of_body(request: Request) -> NewWebhook:
    """The webhook in the body."""
    return webhooks.parse(await _json_body(request, "webhook"))


async def webhook_patch_of_body(request: Request) -> WebhookPatch:
    """The merge patch of a webhook in the body."""
    return webhooks.parse_patch(await _json_body(request, "patch"))


_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _written_out(value: object) -> object:
    """Pydantic alone would take `0.5` for half a second after 1970."""
    if isinstance(value, str) and not _RFC_3339.fullmatch(value):
        raise ValueError("a time is written like 2026-01-31T12:00:00Z, with its zone (RFC 3339)")
    return value


Instant = Annotated[AwareDatetime, BeforeValidator(_written_out)]
LabelPairs = Annotated[list[Label], Query(max_length=MAX_LABELS, description="key:value; repeatable.")]


def labels_of(pairs: Sequence[str]) -> dict[str, str]:
    """Of `label=key:value`, repeated."""
    labels: dict[str, str] = {}
    for index, pair in enumerate(pairs):
        key, _, value = pair.partition(":")
        if key in labels:
            detail = f"the label {key!r} is given twice"
            pointer = f"/query/label/{index}"
            raise InvalidParameter(detail, [FieldError(pointer=pointer, code="label_repeats", detail=detail)])
        labels[key] = value
    return labels


PatchDep = Annotated[JobPatch, Depends(patch_of_body)]
SpecDep = Annotated[AnySpec, Depends(spec_of_body)]
NewWebhookDep = Annotated[NewWebhook, Depends(webhook_of_body)]
WebhookPatchDep = Annotated[WebhookPatch, Depends(webhook_patch_of_body)]
