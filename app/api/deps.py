"""What routes ask for, as types: a session that commits, the principal, the shared parts of the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from app.contract.explain import FieldError, unknown
from app.contract.spec import CompareSpec, PruneSpec, TrainSpec
from app.core.errors import Forbidden, InvalidParameter, Unauthenticated, UnsupportedMediaType
from app.core.settings import Settings
from app.queue import Queue
from app.services import jobs
from app.services.keys import ANYBODY, Principal, Scope, authenticate
from app.storage import ArtifactStore


@dataclass(frozen=True)
class Parts:
    """What a process opens once, in the app's lifespan."""

    settings: Settings
    engine: Engine
    sessions: sessionmaker[Session]
    queue: Queue
    store: ArtifactStore


def parts(request: Request) -> Parts:
    found: Parts = request.app.state.parts
    return found


PartsDep = Annotated[Parts, Depends(parts)]


def session(parts: PartsDep) -> Iterator[Session]:
    """One transaction a request, committed before the answer leaves, rolled back when the route raises."""
    with parts.sessions.begin() as opened:
        yield opened


SessionDep = Annotated[Session, Depends(session, scope="function")]


def only_known_parameters(request: Request) -> None:
    """A misspelt filter must not list everything, nor a misspelt `validate_only` train."""
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
    if not parts.settings.auth_required:
        return ANYBODY
    if credentials is None:
        raise Unauthenticated
    return authenticate(session, credentials.credentials)


def requires(scope: Scope) -> Callable[[Principal], Principal]:
    def check(who: Annotated[Principal, Depends(principal)]) -> Principal:
        return _allowed(who, scope)

    return check


def _allowed(who: Principal, scope: Scope) -> Principal:
    if not who.may(scope):
        raise Forbidden(f"This needs the scope {scope}; the key has {', '.join(sorted(who.scopes))}.")
    return who


def uploader(parts: PartsDep, credentials: Credentials) -> Principal:
    """Who may write, found out in a transaction that has ended before the body arrives: that may take an hour, and the
    database ends a transaction in which nothing happens."""
    with parts.sessions.begin() as session:
        return _allowed(principal(parts, session, credentials), Scope.JOBS_WRITE)


ReaderDep = Annotated[Principal, Depends(requires(Scope.JOBS_READ))]
WriterDep = Annotated[Principal, Depends(requires(Scope.JOBS_WRITE))]
UploaderDep = Annotated[Principal, Depends(uploader)]
READER_ONLY = Depends(requires(Scope.JOBS_READ))
"""For a route that wants a reader's key and no tenant."""

ArtifactReaderDep = Annotated[Principal, Depends(requires(Scope.ARTIFACTS_READ))]


async def spec_of_body(request: Request) -> TrainSpec | PruneSpec | CompareSpec:
    """The job spec in the body. Pydantic reads the bytes itself: its JSON parser bounds depth and refuses surrogates,
    where Python's would let NaN through and recurse."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType(f"Send the spec as application/json, not as {media_type[:64]!r}.")
    return jobs.parse(await request.body())


SpecDep = Annotated[TrainSpec | PruneSpec | CompareSpec, Depends(spec_of_body)]
