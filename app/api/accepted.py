"""The answer to a request that made a job, the same however often the request is sent."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import BackgroundTasks, Response
from sqlalchemy.orm import Session

from app.api import resources
from app.db.models import JobRow
from app.queue import Queue
from app.services.idempotency import KeyedRequest, Made, once


def accepted(
    session: Session, queue: Queue, background: BackgroundTasks, request: KeyedRequest, make: Callable[[], JobRow]
) -> Response:
    """202 with the job that `make` inserts, or has inserted when this request was here before."""

    def made() -> Made:
        row = make()
        return Made(row.id, resources.job(row).model_dump_json())

    done = once(session, request, made)
    headers = {"Location": resources.job_url(done.job_id), "Retry-After": resources.SOON}
    if done.replayed:
        headers["Idempotency-Replayed"] = "true"
    else:
        # Runs after the commit and the answer: a broker that is away or slow costs the client nothing.
        background.add_task(queue.wake, done.job_id)
    return Response(done.answer, 202, headers, media_type="application/json", background=background)
