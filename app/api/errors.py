"""Every error as `application/problem+json`. Foreign exceptions are translated here, once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import JsonValue
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from app.api.schemas import Problem
from app.contract.explain import MOST_ERRORS, FieldError, in_words, pointer_of
from app.core.errors import InvalidParameter, Malformed, SecateurError, Unavailable
from app.db.session import AWAY

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

_NO_MEMBERS: Mapping[str, JsonValue] = MappingProxyType({})

_HINTS = {
    404: "There is nothing at this path: see /docs for what there is.",
    405: "This path does not take that method: see /docs.",
}


def install(app: FastAPI) -> None:
    """Make every error that leaves the app a problem."""
    app.add_exception_handler(SecateurError, _domain)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(HTTPException, _http)
    for away in AWAY:
        app.add_exception_handler(away, _database_away)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _unexpected)


def problem(
    *,
    path: str,
    request_id: str,
    status: int,
    code: str,
    title: str,
    detail: str,
    retryable: bool = False,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, JsonValue] = _NO_MEMBERS,
) -> JSONResponse:
    body = Problem(
        title=title,
        status=status,
        detail=detail,
        instance=path,
        code=code,
        request_id=request_id,
        retryable=retryable,
        errors=list(errors),
    )
    return JSONResponse(body.model_dump(mode="json") | dict(members), status, headers, media_type=MEDIA_TYPE)


def of_error(error: SecateurError, *, path: str, request_id: str) -> JSONResponse:
    return problem(
        path=path,
        request_id=request_id,
        status=error.status,
        code=error.code,
        title=error.title,
        detail=error.detail,
        retryable=error.retryable,
        errors=error.errors,
        headers=error.headers,
        members=error.members,
    )


def _of(request: Request, error: SecateurError) -> JSONResponse:
    return of_error(error, path=request.url.path, request_id=request.state.request_id)


async def _domain(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SecateurError)
    return _of(request, error)


async def _parameters(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's own answer would echo the input, and die on what is not JSON (NaN, a lone surrogate)."""
    assert isinstance(error, RequestValidationError)
    found = [_explained(detail) for detail in error.errors()[:MOST_ERRORS]]
    return _of(request, InvalidParameter("A parameter must be mended; `errors` says which.", found))


def _explained(detail: Any) -> FieldError:
    code, text = in_words(detail)
    return FieldError(pointer=pointer_of(detail["loc"]), code=code, detail=text)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    return problem(
        path=request.url.path,
        request_id=request.state.request_id,
        status=error.status_code,
        code=title.lower().replace(" ", "_"),
        title=title,
        detail=_HINTS.get(error.status_code, str(error.detail)),
        headers=_allow(request) if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED else error.headers,
    )


def _allow(request: Request) -> dict[str, str]:
    """`Allow` of all routes at this path; the framework names those of the first alone."""
    at_this_path = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return {"Allow": ", ".join(sorted({method for route in at_this_path for method in route.methods}))}


async def _left(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    """Nobody reads the answer; the access log does."""
    return _of(request, Malformed("The body ended before its announced length."))


async def _database_away(request: Request, error: Exception) -> JSONResponse:
    logger.warning("database is away", extra={"error": str(error)})
    hint = "try again in a moment"
    if request.method not in ("GET", "HEAD"):
        # It may have been lost on the way back from a commit.
        hint += "; what you asked for may have been done all the same, so look before you ask again"
    return _of(request, Unavailable(f"The database does not answer: {hint}."))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    # Starlette calls this handler outside of all middleware.
    logger.error("unexpected error", exc_info=error, extra=dict(request.state.about))
    answer = _of(request, SecateurError("Something went wrong on our side; the log has more under this request_id."))
    answer.headers["X-Request-Id"] = request.state.request_id
    return answer
