"""Jobs: submit, read, list, cancel, and their logs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from fastapi.responses import JSONResponse

from app.api import resources
from app.api.deps import PartsDep, ReaderDep, SessionDep, SpecDep, WriterDep
from app.api.openapi import SPEC_BODY, problems
from app.api.schemas import Estimate, Event, Job, Page, Validation
from app.contract.spec import CompareSpec, Kind, all_macs
from app.contract.status import Status
from app.services import jobs

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Limit = Annotated[int, Query(ge=1, description="Entries a page; at most 100, more is taken as 100.")]
MOST = 100


@router.post(
    "",
    status_code=202,
    response_model=Job,
    operation_id="submit_job",
    openapi_extra=SPEC_BODY,
    responses=problems(400, 408, 409, 413, 415, 422)
    | {200: {"model": Validation, "description": "With `validate_only`."}},
)
def submit(
    who: WriterDep,
    spec: SpecDep,
    session: SessionDep,
    parts: PartsDep,
    background: BackgroundTasks,
    response: Response,
    validate_only: Annotated[bool, Query(description="Check and resolve the spec, and store nothing.")] = False,
) -> Any:
    """Submit a job. It is accepted once it is stored; poll `Location` until `done`."""
    if validate_only:
        return _validated(jobs.resolve(session, who.tenant, spec))
    row = jobs.submit(session, who.tenant, spec, retention_days=parts.settings.retention_days)
    # Runs after the commit and the answer: a broker that is away or slow costs the client nothing.
    background.add_task(parts.queue.wake, row.id)
    response.headers["Location"] = resources.job_url(row.id)
    response.headers["Retry-After"] = resources.retry_after(row)
    return resources.job(row)


def _validated(resolved: jobs.Resolved) -> JSONResponse:
    spec, network, teachers = resolved
    estimate = Estimate(
        parameters=network and network.parameters,
        macs_per_image=network and network.macs,
        training_macs=None if network is None or isinstance(spec, CompareSpec) else all_macs(spec, network, teachers),
        checkpoint_bytes=network and 4 * network.parameters,
    )
    return JSONResponse(Validation(spec=spec, estimate=estimate).model_dump(mode="json"))


@router.get("", operation_id="list_jobs", responses=problems(400, 422))
def list_jobs(
    who: ReaderDep,
    session: SessionDep,
    request: Request,
    response: Response,
    status: Annotated[list[Status], Query(description="Repeatable.")] = [],  # noqa: B006 - FastAPI copies it
    kind: Annotated[list[Kind], Query(description="Repeatable.")] = [],  # noqa: B006
    cursor: str | None = None,
    limit: Limit = 20,
) -> Page[Job]:
    """Your jobs, newest first."""
    page = jobs.page(session, who.tenant, statuses=status, kinds=kind, cursor=cursor, limit=min(limit, MOST))
    link_next(request, response, cursor=page.next_cursor)
    return Page(items=[resources.job(row) for row in page.items], next_cursor=page.next_cursor)


def link_next(request: Request, response: Response, **parameter: str | None) -> None:
    """`Link: <…>; rel="next"`, where there is a next page."""
    if None not in parameter.values():
        url = request.url.include_query_params(**parameter)
        response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'


@router.get("/{job_id}", operation_id="get_job", responses=problems(404))
def get_job(job_id: str, who: ReaderDep, session: SessionDep, response: Response) -> Job:
    """A job. Also of a failed one this is 200: `error` says why it failed."""
    row = jobs.get(session, who.tenant, job_id)
    response.headers["Cache-Control"] = "private, no-cache"
    if not Status(row.status).is_terminal:
        response.headers["Retry-After"] = resources.retry_after(row)
    return resources.job(row)


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    operation_id="cancel_job",
    responses=problems(404, 409) | {200: {"model": Job, "description": "Was asked for before."}},
)
def cancel_job(job_id: str, who: WriterDep, session: SessionDep, response: Response) -> Job:
    """End a job: at once while it waits, at its next step while it runs."""
    row, changed = jobs.cancel(session, who.tenant, job_id)
    response.status_code = 202 if changed else 200
    return resources.job(row)


@router.post("/{job_id}/retry", status_code=202, operation_id="retry_job", responses=problems(404, 409))
def retry_job(
    job_id: str, who: WriterDep, session: SessionDep, parts: PartsDep, background: BackgroundTasks, response: Response
) -> Job:
    """Run a failed job again, as its next attempt; a training goes on from its last checkpoint."""
    row = jobs.retry(session, who.tenant, job_id)
    background.add_task(parts.queue.wake, row.id)
    response.headers["Retry-After"] = resources.retry_after(row)
    return resources.job(row)


@router.get("/{job_id}/events", operation_id="list_job_events", responses=problems(404, 422))
def list_events(
    job_id: str,
    who: ReaderDep,
    session: SessionDep,
    request: Request,
    response: Response,
    after: Annotated[int, Query(ge=0, lt=2**31, description="Only entries with a greater `seq`.")] = 0,
    limit: Limit = 20,
) -> Page[Event]:
    """The job's log, oldest first and without gaps. `next_cursor` is the next page's `after`."""
    page = jobs.event_page(session, who.tenant, job_id, after=after, limit=min(limit, MOST))
    link_next(request, response, after=page.next_cursor)
    return Page(items=[resources.event(row) for row in page.items], next_cursor=page.next_cursor)
