"""The use cases of jobs. Nothing here commits: the route does, and sends the message after that."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from app.contract.explain import MALFORMED, MOST_ERRORS, FieldError, explain
from app.contract.spec import (
    JOB_ID_PATTERN,
    SPEC,
    SPEC_VERSION,
    CheckpointRef,
    CompareSpec,
    ModelSpec,
    PruneSpec,
    TrainSpec,
    parse_spec,
    refuse_misfit,
)
from app.contract.status import Status
from app.core.errors import (
    InvalidCursor,
    InvalidSpec,
    JobNotCancellable,
    JobNotFound,
    JobNotRetryable,
    Malformed,
    SourceHasNoResult,
    SourceNotFinished,
    TooDeep,
)
from app.core.ids import new_job_id
from app.db import jobs
from app.db.models import EventRow, JobRow

AnySpec = TrainSpec | PruneSpec | CompareSpec

_JOB_ID = re.compile(JOB_ID_PATTERN.removesuffix("$") + r"\Z")


def parse(document: bytes | str) -> AnySpec:
    """A spec from a request's body. Raises Malformed, or InvalidSpec with an entry a field."""
    try:
        return parse_spec(document)
    except ValidationError as error:
        found = explain(error, SPEC)
    if found[0].code == MALFORMED and "recursion limit" in found[0].detail:
        raise TooDeep
    if found[0].code == MALFORMED:
        raise Malformed(found[0].detail + ". Send one JSON object as UTF-8.")
    if len(found) == 1:
        raise InvalidSpec("One field of the spec must be mended; `errors` says which.", found)
    if len(found) == MOST_ERRORS:
        raise InvalidSpec(f"Many fields of the spec must be mended; `errors` has the first {MOST_ERRORS}.", found)
    raise InvalidSpec(f"{len(found)} fields of the spec must be mended; `errors` says which.", found)


class JobPage(NamedTuple):
    items: Sequence[JobRow]
    next_cursor: str | None


class EventPage(NamedTuple):
    items: Sequence[EventRow]
    next_cursor: str | None


def resolve(session: Session, tenant: str, spec: AnySpec) -> AnySpec:
    """Fill in what the spec leaves to the jobs that it names. Raises InvalidSpec or SourceNotFinished."""
    if isinstance(spec, CompareSpec):
        for index, job_id in enumerate(spec.jobs):
            _finished(session, tenant, job_id, f"/jobs/{index}")
        return spec
    if isinstance(spec, PruneSpec):
        source = _finished(session, tenant, spec.source.job_id, "/source/job_id")
        resolved = parse(spec.model_copy(update={"dataset": spec.dataset or source.dataset}).model_dump_json())
        assert isinstance(resolved, PruneSpec)
        _refuse_misfit(resolved, widths(session, tenant, resolved))
        return resolved
    if spec.initial:
        return _with_widths_of_source(session, tenant, spec, spec.initial)
    return spec


def _with_widths_of_source(session: Session, tenant: str, spec: TrainSpec, initial: CheckpointRef) -> TrainSpec:
    source = _finished(session, tenant, initial.job_id, "/initial/job_id")
    found = widths(session, tenant, source)
    if "model" in spec.model_fields_set and spec.model != found:
        detail = f"the checkpoint has channels {list(found.channels)} and hidden {found.hidden}: leave `model` out"
        raise InvalidSpec(detail, [FieldError(pointer="/model", code="widths_differ", detail=detail)])
    # Validated anew: what the spec asks for may be too much for the source's widths, or not fit them.
    resolved = parse(spec.model_copy(update={"model": found}).model_dump_json())
    assert isinstance(resolved, TrainSpec)
    return resolved


def _refuse_misfit(spec: PruneSpec, model: ModelSpec) -> None:
    try:
        refuse_misfit(spec, model)
    except PydanticCustomError as error:
        pointer = (error.context or {})["pointer"]
        found = FieldError(pointer=pointer, code=error.type, detail=error.message())
        raise InvalidSpec("One field of the spec must be mended; `errors` says which.", [found]) from error


def widths(session: Session, tenant: str, spec: TrainSpec | PruneSpec) -> ModelSpec:
    """The network's widths: those of the training at the root of a chain of prunings."""
    while isinstance(spec, PruneSpec):
        spec = _finished(session, tenant, spec.source.job_id, "/source/job_id")
    return spec.model


def _finished(session: Session, tenant: str, job_id: str, pointer: str) -> TrainSpec | PruneSpec:
    """The spec of a succeeded train or prune job of this tenant."""
    row = jobs.get(session, job_id, tenant)
    if row is None:
        detail = f"there is no job {job_id}"
        raise InvalidSpec(detail, [FieldError(pointer=pointer, code="source_not_found", detail=detail)])
    spec = parse_spec(row.spec)
    if isinstance(spec, CompareSpec):
        detail = f"{job_id} is a compare job and has no network: name a train or prune job"
        raise InvalidSpec(detail, [FieldError(pointer=pointer, code="source_has_no_network", detail=detail)])
    status = Status(row.status)
    if status is not Status.SUCCEEDED:
        refusal = SourceHasNoResult if status.is_terminal else SourceNotFinished
        detail = f"{job_id} is {status}; it must have succeeded"
        raise refusal(detail, [FieldError(pointer=pointer, code=refusal.code, detail=detail)])
    return spec


def submit(session: Session, tenant: str, spec: AnySpec, *, retention_days: int) -> JobRow:
    """Resolve the spec and insert the job."""
    return jobs.insert_job(
        session,
        job_id=new_job_id(),
        tenant=tenant,
        spec=resolve(session, tenant, spec).model_dump(mode="json"),
        spec_version=SPEC_VERSION,
        retention_days=retention_days,
    )


def get(session: Session, tenant: str, job_id: str) -> JobRow:
    # What is no id at all never reaches the database, which would choke on some of it.
    row = jobs.get(session, job_id, tenant) if _JOB_ID.match(job_id) else None
    if row is None:
        raise JobNotFound(job_id)
    return row


def cancel(session: Session, tenant: str, job_id: str) -> tuple[JobRow, bool]:
    """Ask for the job's end. Returns the job, and whether this call changed it. Raises JobNotCancellable."""
    get(session, tenant, job_id)
    changed = jobs.request_cancel(session, job_id, tenant) is not None
    row = get(session, tenant, job_id)
    if not changed and row.status not in (Status.CANCELLING, Status.CANCELLED):
        raise JobNotCancellable(f"The job {row.status} at {row.finished_at}: there is nothing left to cancel.")
    return row, changed


def retry(session: Session, tenant: str, job_id: str) -> JobRow:
    """Queue a failed job again. Raises JobNotRetryable."""
    get(session, tenant, job_id)
    changed = jobs.retry(session, job_id, tenant)
    row = get(session, tenant, job_id)
    if not changed:
        hint = "wait for its end" if not Status(row.status).is_terminal else "submit its spec as a new job"
        raise JobNotRetryable(f"Only a failed job can be retried, and this one is {row.status}: {hint}.")
    return row


def page(
    session: Session, tenant: str, *, statuses: Sequence[str], kinds: Sequence[str], cursor: str | None, limit: int
) -> JobPage:
    after = _decode(cursor) if cursor else None
    rows = jobs.page(session, tenant, statuses=statuses, kinds=kinds, after=after, limit=limit + 1)
    more = len(rows) > limit
    return JobPage(rows[:limit], _encode(rows[limit - 1]) if more else None)


def event_page(session: Session, tenant: str, job_id: str, *, after: int, limit: int) -> EventPage:
    get(session, tenant, job_id)
    rows = jobs.events(session, job_id, after=after, limit=limit + 1)
    return EventPage(rows[:limit], str(rows[limit - 1].seq) if len(rows) > limit else None)


def _encode(row: JobRow) -> str:
    return base64.urlsafe_b64encode(json.dumps([row.created_at.isoformat(), row.id]).encode()).decode()


def _decode(cursor: str) -> jobs.Position:
    try:
        created_at, job_id = json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True))
        position = jobs.Position(datetime.fromisoformat(created_at), str(job_id))
    except (ValueError, TypeError, RecursionError):
        position = None
    if position is None or position.created_at.tzinfo is None or not _JOB_ID.match(position.id):
        raise InvalidCursor("The cursor is not one that a page of this list gave: start again without it.")
    return position
