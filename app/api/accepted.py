"""The answer to a request that made a job, the same however often the request is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastapi import BackgroundTasks, Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.api import resources
from app.api.deps import Parts
from app.contract.status import Status
from app.core.errors import IdempotencyKeyReused, QuotaExceeded
from app.core.logging import note
from app.db.models import JobRow
from app.queue import Queue
from app.services import quotas
from app.services.idempotency import KeyedRequest, Made, is_known, once


class Shown(NamedTuple):
    """What of a job is answered, and where that is to be found later."""

    resource: Callable[[JobRow], BaseModel]
    url: Callable[[str], str]


_JOB = Shown(resources.job, resources.job_url)


def accepted(
    session: Session,
    queue: Queue,
    background: BackgroundTasks,
    request: KeyedRequest,
    make: Callable[[], JobRow],
    shown: Shown = _JOB,
) -> Response:
    """202 with the job that `make` inserts, or has inserted when this request was here before."""

    waiting: list[str] = []

    def made() -> Made:
        row = make()
        # A sweep waits for its members, and they for workers.
        waiting.extend(row.sources if row.status == Status.WAITING else [row.id])
        return Made(row.id, shown.resource(row).model_dump_json())

    done = once(session, request, made)
    note(job_id=done.job_id)
    headers = {"Location": shown.url(done.job_id), "Retry-After": str(resources.SOON)}
    if done.replayed:
        headers["Idempotency-Replayed"] = "true"
    else:
        # Runs after the commit and the answer: a broker that is away or slow costs the client nothing.
        background.add_task(queue.wake_all, waiting)
    return Response(done.answer, 202, headers, media_type="application/json", background=background)


async def refuse_upload_early(parts: Parts, tenant: str, route: str, key: str | None, request: Request) -> None:
    """Before the body is sent, when there is no room for it; unless the request may have been here before."""
    announced = int(request.headers.get("content-length", 0))

    def refuse() -> None:
        with parts.sessions.begin() as session:
            if not is_known(session, tenant, route, key):
                quotas.admit(session, tenant, parts.terms.limits, more_bytes=announced)

    await run_in_threadpool(refuse)


def accepted_upload(
    parts: Parts,
    background: BackgroundTasks,
    request: KeyedRequest,
    job_id: str,
    submit: Callable[[Session], JobRow],
    shown: Shown = _JOB,
) -> Response:
    """The same for an upload that is in place for the job of this id, and goes if another request was faster."""
    try:
        # Should the commit fail, it may have come through all the same: the file stays for the sweeper to decide on.
        with parts.sessions.begin() as session:
            answer = accepted(session, parts.queue, background, request, lambda: submit(session), shown)
    except (IdempotencyKeyReused, QuotaExceeded):
        parts.store.drop_upload(job_id)
        raise
    if answer.headers["Location"] != shown.url(job_id):
        parts.store.drop_upload(job_id)  # the one that came first is kept
    return answer
