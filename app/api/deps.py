"""What routes ask for, as types: a session that commits, the principal, the shared parts of the process."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from fastapi import Depends, Header, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AwareDatetime, BeforeValidator
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from app.contract.explain import FieldError, unknown
from app.contract.patch import JobPatch
from app.contract.spec import MAX_LABELS, AnySpec, Label
from app.contract.webhooks import NewWebhook, WebhookPatch
from app.core.errors import Forbidden, InvalidParameter, Unauthenticated, UnsupportedMediaType
from app.core.logging import note
from app.core.settings import Settings
from app.db.changes import Changes
from app.queue import Queue
from app.rates import Rates
from app.services import jobs, resolving, webhooks
from app.services.jobs import Terms
from app.services.keys import ANYBODY, Principal, Scope, authenticate
from app.services.quotas import charge
from app.storage import ArtifactStore


@dataclass(frozen=True)
class Parts:
    """What a process opens once, in the app's lifespan."""

    settings: Settings
    engine: Engine
    sessions: sessionmaker[Session]
    queue: Queue
    store: ArtifactStore
    changes: Changes
    rates: Rates

    @property
    def terms(self) -> Terms:
        return Terms(self.settings.retention_days, self.settings.limits)


def parts(request: Request) -> Parts:
    found: Parts = request.app.state.parts
    return found


PartsDep = Annotated[Parts, Depends(parts)]


def session(parts: PartsDep) -> Iterator[Session]:
    """One transaction a request, committed before the answer leaves, rolled back when the route raises."""
    with parts.sessions.begin() as opened:
        yield opened


SessionDep = Annotated[Session, Depends(session, scope="function")]


async def only_known_parameters(request: Request) -> None:
    """A misspelt filter must not list everything, nor a misspelt `validate_only` train."""
    # Not on a thread: health and metrics answer also when all of them hang on a database that does.
    if "job_id" in request.path_params:
        note(job_id=request.path_params["job_id"])
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    found = [
        FieldError(pointer=f"/query/{name}", code="unknown_parameter", detail=unknown(name, known, "parameter"))
        for name in request.query_params
        if name not in known
    ]
    if found:
        raise InvalidParameter("A parameter is not one that this request takes; `errors` says which.", found)


_bearer = HTTPBearer(auto_error=False, description="A key made by `secateur keys create`.")


Credentials: TypeAlias = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def principal(parts: PartsDep, session: SessionDep, credentials: Credentials) -> Principal:
    """Who asks, as one of the tenant's requests of this minute."""
    who = ANYBODY
    if parts.settings.auth_required:
        if credentials is None:
            raise Unauthenticated
        who = authenticate(session, credentials.credentials)
    note(tenant=who.tenant, key_id=who.key_id)
    charge(session, parts.rates, who.tenant, parts.settings.limits)
    return who


def requires(scope: Scope) -> Callable[[Principal], Principal]:
    def check(who: Annotated[Principal, Depends(principal)]) -> Principal:
        return _allowed(who, scope)

    return check


def _allowed(who: Principal, scope: Scope) -> Principal:
    if not who.may(scope):
        raise Forbidden(f"This needs the scope {scope}; the key has {', '.join(sorted(who.scopes))}.")
    return who


def requires_alone(scope: Scope) -> Callable[[PartsDep, Credentials], Principal]:
    """The same, found out in a transaction of its own: for a request that takes its time, in which nobody should hold a
    connection, nor a transaction, which the database would end."""

    def check(parts: PartsDep, credentials: Credentials) -> Principal:
        with parts.sessions.begin() as session:
            return _allowed(principal(parts, session, credentials), scope)

    return check


ReaderDep = Annotated[Principal, Depends(requires(Scope.JOBS_READ))]
WriterDep = Annotated[Principal, Depends(requires(Scope.JOBS_WRITE))]
PatientReaderDep = Annotated[Principal, Depends(requires_alone(Scope.JOBS_READ))]
UploaderDep = Annotated[Principal, Depends(requires_alone(Scope.JOBS_WRITE))]
READER_ONLY = Depends(requires(Scope.JOBS_READ))
"""For a route that wants a reader's key and no tenant."""

ArtifactReaderDep = Annotated[Principal, Depends(requires(Scope.ARTIFACTS_READ))]


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern="^[!-~]*$",
        description="Made anew by the client for each thing that it wants done, and sent again when an answer was "
        "lost: what was done is not done again, and the answer is the same. Kept for a day.",
    ),
]


async def _json_body(request: Request, what: str) -> bytes:
    """Pydantic reads the bytes itself: its JSON parser bounds depth and refuses surrogates, where Python's would let
    NaN through and recurse."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType(f"Send the {what} as application/json, not as {media_type[:64]!r}.")
    return await request.body()


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
