"""The answer to a request that made a job, the same however often the request is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple

from fastapi import Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.api import resources
from app.api.deps import Parts
from app.contract.status import Status
from app.core.errors import IdempotencyKeyReused, QuotaExceeded
from app.core.logging import note
from app.db.models import JobRow
from app.services import quotas
from app.services.idempotency import KeyedRequest, Made, is_known, once


class Told(NamedTuple):
    """A job that was made, and what of it is answered."""

    row: JobRow
    resource: BaseModel


def accepted(
    parts: Parts,
    request: KeyedRequest,
    make: Callable[[Session], Told],
    url: Callable[[str], str] = resources.job_url,
) -> Response:
    """202 with the job that `make` inserts, or has inserted when this request was here before. All of it is one
    transaction, on the thread of the caller: each change of threads would take as long as a question to the database.
    `url` is where the job, or what comes of it, is to be found later."""
    waiting: list[str] = []

    def made(session: Session) -> Made:
        row, resource = make(session)
        # A sweep waits for its members, and they for workers.
        waiting.extend(row.sources if row.status == Status.WAITING else [row.id])
        return Made(row.id, resource.model_dump_json())

    with parts.sessions.begin() as session:
        done = once(session, request, lambda: made(session))
    note(job_id=done.id)
    headers = {"Location": url(done.id), "Retry-After": str(resources.SOON)}
    if done.replayed:
        headers["Idempotency-Replayed"] = "true"
    else:
        parts.waker.wake(waiting)
    return Response(done.answer, 202, headers, media_type="application/json")


@asynccontextmanager
async def body_of_upload(
    parts: Parts, tenant: str, route: str, key: str | None, request: Request
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body, piece by piece. Raises QuotaExceeded before any of it is sent, when there is no room for what is
    announced; and as soon as there is none for what has come."""
    announced = int(request.headers.get("content-length", 0))

    def room() -> quotas.Room:
        with parts.sessions.begin() as session:
            if is_known(session, tenant, route, key):
                return quotas.whole_room(session, tenant, parts.terms.limits)  # it may be what is stored already
            return quotas.admit(session, tenant, parts.terms.limits, more_bytes=announced)

    found = await run_in_threadpool(room)
    async with aclosing(parts.arrivals.within(found, tenant, request.stream())) as pieces:
        yield pieces


def accepted_upload(
    parts: Parts,
    request: KeyedRequest,
    job_id: str,
    submit: Callable[[Session], Told],
    url: Callable[[str], str] = resources.job_url,
) -> Response:
    """The same for an upload that is in place for the job of this id, and goes if another request was faster."""
    try:
        # Should the commit fail, it may have come through all the same: the file stays for the sweeper to decide on.
        answer = accepted(parts, request, submit, url)
    except (IdempotencyKeyReused, QuotaExceeded):
        parts.store.drop_upload(job_id)
        raise
    if answer.headers["Location"] != url(job_id):
        parts.store.drop_upload(job_id)  # the one that came first is kept
    return answer
