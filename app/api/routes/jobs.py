"""Jobs: submit, read, list, cancel, and their logs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated, NamedTuple

from fastapi import BackgroundTasks, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from app.api import resources
from app.api.accepted import Told, accepted
from app.api.deps import (
    NO_BODY,
    IdempotencyKey,
    Instant,
    LabelPairs,
    Parts,
    PartsDep,
    PatchDep,
    ReaderDep,
    ReadSessionDep,
    SessionDep,
    SpecDep,
    WriterDep,
    labels_of,
    make_router,
)
from app.api.openapi import ACCEPTED, PAGE, PATCH_BODY, SPEC_BODY, problems, with_headers
from app.api.schemas import Estimate, Event, Job, Lineage, LineageEdge, LineageJob, Page, Validation
from app.contract.reference import JobId
from app.contract.spec import AnySpec, Kind, PruneSpec, TrainSpec, all_macs
from app.contract.status import Status
from app.core.errors import JobGone
from app.db.jobs import Filter
from app.db.models import EventRow
from app.db.session import AWAY
from app.services import jobs, lineage, resolving
from app.services.idempotency import KeyedRequest

logger = logging.getLogger(__name__)

router = make_router(prefix="/v1/jobs", tags=["jobs"])

Limit = Annotated[int, Query(ge=1, description="Entries a page; at most 100, more is taken as 100.")]
After = Annotated[int, Query(ge=0, lt=2**31, description="Only entries with a greater `seq`.")]
MOST = 100

MOST_WAIT = 30
"""Seconds; less than what proxies allow a silent request."""

LOOK_SECONDS = 15
"""A stream looks at the log so often even when nothing tells it to."""

STREAM_SECONDS = 900
"""Then a stream ends, and its client comes again with its key, which may have been revoked."""

PRIVATE = "private, no-cache"


@router.post(
    "",
    status_code=202,
    response_model=Job,
    operation_id="submit_job",
    openapi_extra=SPEC_BODY,
    responses=problems(400, 408, 409, 413, 415, 422)
    | ACCEPTED
    | {200: {"model": Validation, "description": "With `validate_only`."}},
)
def submit(
    who: WriterDep,
    spec: SpecDep,
    parts: PartsDep,
    key: IdempotencyKey = None,
    validate_only: Annotated[bool, Query(description="Check and resolve the spec, and store nothing.")] = False,
) -> Response:
    """Submit a job. It is accepted once it is stored; poll `Location` until `done`."""
    if validate_only:
        return _validated(parts, who.tenant, spec)
    # What the client has written, and no defaults: those of a newer release may be others.
    content = spec.model_dump(mode="json", exclude_unset=True) if key is not None else None
    return accepted(
        parts,
        KeyedRequest(who.tenant, "submit_job", key, content),
        lambda session: _told(jobs.submit(session, who.tenant, spec, parts.terms)),
    )


def _told(submitted: jobs.Submitted) -> Told:
    return Told(submitted.row, resources.job(submitted.row, spec=submitted.spec))


def _validated(parts: Parts, tenant: str, spec: AnySpec) -> JSONResponse:
    with parts.sessions() as session:
        resolved = resolving.resolve(session, tenant, spec)
    validation = Validation(spec=resolved.spec, estimate=_estimate(resolved))
    return JSONResponse(validation.model_dump(mode="json"))


def _estimate(resolved: resolving.Resolved) -> Estimate:
    networks: list[tuple[TrainSpec | PruneSpec, resolving.Sizes]] = [
        (member.spec, member.sizes) for member in resolved.members
    ]
    if isinstance(resolved.spec, TrainSpec | PruneSpec) and resolved.sizes is not None:
        networks.append((resolved.spec, resolved.sizes))
    if not networks:
        return Estimate(members=None, parameters=None, macs_per_image=None, training_macs=None, checkpoint_bytes=None)
    parameters = [sizes.model.parameters(sizes.facts.ends) for _, sizes in networks]
    return Estimate(
        members=len(resolved.members) or None,
        parameters=max(parameters),
        macs_per_image=max(sizes.model.macs(sizes.facts.shape) for _, sizes in networks),
        training_macs=sum(all_macs(spec, *sizes) for spec, sizes in networks),
        checkpoint_bytes=4 * sum(parameters),
    )


@router.get("", operation_id="list_jobs", responses=problems(400, 422) | PAGE)
def list_jobs(
    who: ReaderDep,
    session: ReadSessionDep,
    request: Request,
    response: Response,
    status: Annotated[list[Status], Query(description="Repeatable: any of them.")] = [],  # noqa: B006 - FastAPI copies it
    kind: Annotated[list[Kind], Query(description="Repeatable: any of them.")] = [],  # noqa: B006
    created_after: Annotated[Instant | None, Query(description="RFC 3339; later than this.")] = None,
    created_before: Annotated[Instant | None, Query(description="RFC 3339; earlier than this.")] = None,
    parent: Annotated[JobId | None, Query(description="Reruns of this job.")] = None,
    sweep: Annotated[JobId | None, Query(description="Members of this sweep.")] = None,
    label: LabelPairs = [],  # noqa: B006
    cursor: Annotated[str | None, Query(description="Of the page before; it brings that one's filters along.")] = None,
    limit: Limit = 20,
) -> Page[Job]:
    """Your jobs, newest first."""
    wanted = Filter(
        statuses=tuple(sorted(set(status))),
        kinds=tuple(sorted(set(kind))),
        created_after=created_after,
        created_before=created_before,
        parent=parent,
        sweep=sweep,
        labels=labels_of(label),
    )
    page = jobs.page(session, who.tenant, wanted, cursor=cursor, limit=min(limit, MOST))
    link_next(request, response, cursor=page.next_cursor)
    return Page(items=[resources.job(row) for row in page.items], next_cursor=page.next_cursor)


def link_next(request: Request, response: Response, **parameter: str | None) -> None:
    """`Link: <…>; rel="next"`, where there is a next page."""
    if None not in parameter.values():
        url = request.url.include_query_params(**parameter)
        response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'


@router.get(
    "/{job_id}",
    response_model=Job,
    operation_id="get_job",
    responses=problems(404, 410, 422)
    | with_headers(200, "ETag", "Retry-After")
    | {
        304: {
            "description": "The client's copy is the present one.",
            **with_headers(304, "ETag", "Retry-After")[304],
        }
    },
)
async def get_job(
    job_id: str,
    who: ReaderDep,
    parts: PartsDep,
    if_none_match: Annotated[str, Header(description="The `ETag` of the client's copy.")] = "",
    wait: Annotated[
        int,
        Query(
            ge=0,
            le=MOST_WAIT,
            description="Seconds to wait for a change: since the copy that `If-None-Match` names, else since now.",
        ),
    ] = 0,
) -> Response:
    """A job. Also of a failed one this is 200: `error` says why it failed."""
    copy = await _copy(parts, who.tenant, job_id, if_none_match, wait)
    if copy.is_among(if_none_match):
        return Response(status_code=304, headers=_headers(parts, copy, wait))
    return Response(copy.body, headers=_headers(parts, copy, wait), media_type="application/json")


class _Copy(NamedTuple):
    """What a client is sent, unless it has it."""

    body: str
    etag: str
    status: Status
    queued_at: datetime

    def is_among(self, etags: str) -> bool:
        return resources.is_among(self.etag, etags)


async def _copy(parts: Parts, tenant: str, job_id: str, known: str, wait: int) -> _Copy:
    """The present one, or, within so many seconds, one that is none of those known."""
    clock, told = asyncio.get_running_loop().time, False
    until = clock() + wait
    with parts.changes.of(job_id, patient=True) as waiter:
        while True:
            waiter.event.clear()
            copy = await parts.shared.ask(("job", tenant, job_id), lambda: _job(parts, tenant, job_id))
            known = known or copy.etag
            over = copy.status.is_terminal or parts.changes.leaving or clock() >= until
            if over or (told and not copy.is_among(known)):
                return copy
            if not copy.is_among(known):
                # Whoever comes with an old copy waits for a turn too. Where so many wait that a turn takes longer to
                # come than a job to make progress, all copies are old, and nobody would ever wait.
                parts.changes.take_turn(waiter)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    told = await waiter.event.wait()


def _job(parts: Parts, tenant: str, job_id: str) -> _Copy:
    with parts.reads() as session:
        row = jobs.get(session, tenant, job_id)
        place = jobs.place(session, job_id, parts.terms.limits) if row.status == Status.QUEUED else None
    etag = resources.etag(row.revision, place and place.position)
    return _Copy(resources.job(row, place).model_dump_json(), etag, Status(row.status), row.queued_at)


def _headers(parts: Parts, copy: _Copy, wait: int) -> dict[str, str]:
    headers = {"ETag": copy.etag, "Cache-Control": PRIVATE}
    if not copy.status.is_terminal:
        # Who waits here comes again when there is something new, and has waited for a turn already.
        headers["Retry-After"] = resources.retry_after(copy.queued_at, 0.0 if wait else parts.polls.turn())
    return headers


@router.patch(
    "/{job_id}",
    operation_id="update_job",
    openapi_extra=PATCH_BODY,
    responses=problems(400, 404, 408, 410, 412, 413, 415, 422) | with_headers(200, "ETag"),
)
def update_job(
    job_id: str,
    who: WriterDep,
    patch: PatchDep,
    session: SessionDep,
    parts: PartsDep,
    response: Response,
    if_match: Annotated[
        str | None,
        Header(
            description="The `ETag` of the copy that the patch is made for: 412 when the job has changed since.",
        ),
    ] = None,
) -> Job:
    """Change a job's name and labels, by a merge patch (RFC 7396)."""
    row = jobs.relabel(session, who.tenant, job_id, patch, only=resources.revisions(if_match))
    place = jobs.place(session, job_id, parts.terms.limits)
    response.headers["ETag"] = resources.etag(row.revision, place and place.position)
    return resources.job(row, place)


@router.delete("/{job_id}", status_code=204, operation_id="delete_job", responses=problems(404, 409, 410))
def delete_job(job_id: str, who: WriterDep, session: SessionDep) -> None:
    """Delete a job that is done, with its files, for good. The members of a sweep stay."""
    jobs.delete(session, who.tenant, job_id)


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    operation_id="cancel_job",
    dependencies=[NO_BODY],
    responses=problems(404, 408, 409, 410, 413, 422) | {200: {"model": Job, "description": "Was asked for before."}},
)
def cancel_job(job_id: str, who: WriterDep, session: SessionDep, response: Response) -> Job:
    """End a job: at once while it waits, at its next step while it runs. A sweep's members are cancelled with it."""
    row, changed = jobs.cancel(session, who.tenant, job_id)
    response.status_code = 202 if changed else 200
    return resources.job(row)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    operation_id="retry_job",
    dependencies=[NO_BODY],
    responses=problems(404, 408, 409, 410, 413, 422) | with_headers(202, "Retry-After"),
)
def retry_job(
    job_id: str, who: WriterDep, session: SessionDep, parts: PartsDep, background: BackgroundTasks, response: Response
) -> Job:
    """Run a failed job again, as its next attempt; a training goes on from its last checkpoint. A sweep retries its
    members that failed in a way that this may mend, and waits for them."""
    row = jobs.retry(session, who.tenant, job_id, parts.terms.limits)
    # After the commit. A sweep waits for its members, and they for workers.
    background.add_task(parts.waker.wake, row.sources if row.status == Status.WAITING else [row.id])
    response.headers["Retry-After"] = resources.retry_after(row.queued_at)
    return resources.job(row)


@router.post(
    "/{job_id}/rerun",
    status_code=202,
    response_model=Job,
    operation_id="rerun_job",
    dependencies=[NO_BODY],
    responses=problems(404, 408, 409, 410, 413, 422) | ACCEPTED,
)
def rerun_job(job_id: str, who: WriterDep, parts: PartsDep, key: IdempotencyKey = None) -> Response:
    """Submit the spec of a job as a new one, by the name and labels that the job has now; its `parent_job_id` is this
    one."""
    return accepted(
        parts,
        KeyedRequest(who.tenant, "rerun_job", key, {"job_id": job_id}),
        lambda session: _told(jobs.rerun(session, who.tenant, job_id, parts.terms)),
    )


@router.get("/{job_id}/lineage", operation_id="get_job_lineage", responses=problems(404, 410))
def get_lineage(job_id: str, who: ReaderDep, session: ReadSessionDep) -> Lineage:
    """All that the job was made from, back to where it began, and what was made of it directly."""
    found = lineage.lineage(session, who.tenant, job_id)
    return Lineage(
        jobs=[LineageJob.model_validate(row) for row in found.rows],
        edges=[
            LineageEdge.model_validate({"from": edge.job_id, "to": edge.reader, **edge._asdict()})
            for edge in found.edges
        ],
        truncated=found.truncated,
    )


@router.get("/{job_id}/events", operation_id="list_job_events", responses=problems(404, 410, 422) | PAGE)
def list_events(
    job_id: str,
    who: ReaderDep,
    session: ReadSessionDep,
    request: Request,
    response: Response,
    after: After = 0,
    limit: Limit = 20,
) -> Page[Event]:
    """The job's log, oldest first and without gaps. `next_cursor` is the next page's `after`."""
    page = jobs.event_page(session, who.tenant, job_id, after=after, limit=min(limit, MOST))
    link_next(request, response, after=page.next_cursor)
    return Page(items=[resources.event(row) for row in page.items], next_cursor=page.next_cursor)


def _exists(job_id: str, who: ReaderDep, parts: PartsDep) -> str:
    with parts.reads() as session:
        jobs.status(session, who.tenant, job_id)
    return who.tenant


@router.get(
    "/{job_id}/events/stream",
    response_class=EventSourceResponse,
    operation_id="stream_job_events",
    responses=problems(404, 410, 422),
)
async def stream_events(
    job_id: str,
    tenant: Annotated[str, Depends(_exists)],
    parts: PartsDep,
    after: After = 0,
    last_event_id: Annotated[
        int, Header(ge=0, lt=2**31, description="The last `id` that the client has; it counts before `after`.")
    ] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """The job's log as server-sent events: each entry as the page has it, its `seq` as `id`, its type as `event`. After
    the last one comes `event: end`; without that, go on from the last `id`."""
    after = last_event_id or after
    clock = asyncio.get_running_loop().time
    until = clock() + STREAM_SECONDS
    with parts.changes.of(job_id) as changed:
        while not parts.changes.leaving and clock() < until:
            changed.event.clear()
            try:
                rows, over = await run_in_threadpool(_rest_of_log, parts, tenant, job_id, after)
            except AWAY as error:
                logger.warning("a stream ends: the database is away", extra={"job_id": job_id, "error": str(error)})
                return
            except JobGone:
                return
            for row in rows:
                after = row.seq
                yield ServerSentEvent(id=str(after), event=row.type, raw_data=resources.event(row).model_dump_json())
            if over:
                yield ServerSentEvent(event="end", raw_data="{}")
                return
            if len(rows) < MOST:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await changed.event.wait()


def _rest_of_log(parts: Parts, tenant: str, job_id: str, after: int) -> tuple[Sequence[EventRow], bool]:
    """The next entries, and whether there will be no more of them."""
    with parts.reads() as session:
        # In this order: once the job is seen to have ended, all that it wrote is to be seen.
        done = jobs.status(session, tenant, job_id).is_terminal
        page = jobs.event_page(session, tenant, job_id, after=after, limit=MOST)
        return page.items, done and page.next_cursor is None
