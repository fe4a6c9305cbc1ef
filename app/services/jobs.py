"""The use cases of jobs. Nothing here commits: the route does, and sends the message after that."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from app.contract.explain import MALFORMED, MOST_ERRORS, FieldError, explain
from app.contract.reference import JOB_ID_PATTERN, CheckpointRef
from app.contract.spec import (
    SPEC,
    SPEC_VERSION,
    UNTAUGHT,
    CompareSpec,
    DatasetSpec,
    ImportSpec,
    ModelSpec,
    PruneSpec,
    StoredSpec,
    Teachers,
    TrainSpec,
    parse_spec,
    parse_stored,
    refuse_misfit,
    taught,
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
    UploadNotKept,
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
        _refuse_import(error)
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


def _refuse_import(error: ValidationError) -> None:
    first = error.errors(include_url=False)[0]
    if first["type"] == "union_tag_invalid" and not first["loc"] and first["ctx"]["tag"] == "import":
        detail = "an import is not submitted: send the file itself to POST /v1/checkpoints"
        raise InvalidSpec(detail, [FieldError(pointer="/kind", code="upload_wanted", detail=detail)]) from error


class JobPage(NamedTuple):
    items: Sequence[JobRow]
    next_cursor: str | None


class EventPage(NamedTuple):
    items: Sequence[EventRow]
    next_cursor: str | None


class Resolved(NamedTuple):
    """A spec that leaves nothing to the jobs that it names, and the widths of its network and of the teachers; a
    comparison has no network."""

    spec: AnySpec
    model: ModelSpec | None = None
    teachers: Teachers = UNTAUGHT


def resolve(session: Session, tenant: str, spec: AnySpec) -> Resolved:
    """Fill in what the spec leaves to the jobs that it names. Raises InvalidSpec, SourceNotFinished or
    SourceHasNoResult."""
    if isinstance(spec, CompareSpec):
        for index, job_id in enumerate(spec.jobs):
            _refuse_without_report(session, tenant, job_id, f"/jobs/{index}")
        return Resolved(spec)
    filled, model = _filled(session, tenant, spec)
    teachers = {each.teacher: _source(session, tenant, each.teacher, each.pointer).model for each in taught(filled)}
    _refuse_misfit(filled, model, teachers)
    return Resolved(filled, model, teachers)


def _refuse_without_report(session: Session, tenant: str, job_id: str, pointer: str) -> None:
    if isinstance(_finished(session, tenant, job_id, pointer).spec, ImportSpec):
        detail = f"{job_id} is an import job and has no report: name a train or prune job"
        raise InvalidSpec(detail, [FieldError(pointer=pointer, code="source_has_no_report", detail=detail)])


def _filled(session: Session, tenant: str, spec: TrainSpec | PruneSpec) -> tuple[TrainSpec | PruneSpec, ModelSpec]:
    """The spec with what its checkpoint tells, and the network's widths."""
    if isinstance(spec, PruneSpec):
        source = _source(session, tenant, spec.source, "/source")
        filled = parse(spec.model_copy(update={"dataset": _dataset(spec, source)}).model_dump_json())
        assert isinstance(filled, PruneSpec)
        return filled, source.model
    if spec.initial:
        spec = _with_widths_of_source(session, tenant, spec, spec.initial)
    return spec, spec.model


def _with_widths_of_source(session: Session, tenant: str, spec: TrainSpec, initial: CheckpointRef) -> TrainSpec:
    found = _source(session, tenant, initial, "/initial").model
    if "model" in spec.model_fields_set and spec.model != found:
        detail = f"the checkpoint has channels {list(found.channels)} and hidden {found.hidden}: leave `model` out"
        raise InvalidSpec(detail, [FieldError(pointer="/model", code="widths_differ", detail=detail)])
    # Validated anew: what the spec asks for may be too much for the source's widths, or not fit them.
    resolved = parse(spec.model_copy(update={"model": found}).model_dump_json())
    assert isinstance(resolved, TrainSpec)
    return resolved


def _dataset(spec: PruneSpec, source: _Source) -> DatasetSpec:
    """The spec's, else the source's."""
    found = spec.dataset
    if found is None and not isinstance(source.spec, ImportSpec):
        found = source.spec.dataset
    if found is None:
        detail = "an uploaded checkpoint has no data set: name one"
        raise InvalidSpec(detail, [FieldError(pointer="/dataset", code="missing", detail=detail)])
    return found


def _refuse_misfit(spec: TrainSpec | PruneSpec, model: ModelSpec, teachers: Teachers) -> None:
    try:
        refuse_misfit(spec, model, teachers)
    except PydanticCustomError as error:
        pointer = (error.context or {})["pointer"]
        found = FieldError(pointer=pointer, code=error.type, detail=error.message())
        raise InvalidSpec("One field of the spec must be mended; `errors` says which.", [found]) from error


def _widths(session: Session, tenant: str, spec: TrainSpec | PruneSpec) -> ModelSpec:
    """The network's widths: those of the training or the import at the root of a chain of prunings."""
    return spec.model if isinstance(spec, TrainSpec) else _source(session, tenant, spec.source, "/source").model


class _Source(NamedTuple):
    """A job whose checkpoint another one begins with or learns from, and the network's widths."""

    spec: TrainSpec | PruneSpec | ImportSpec
    model: ModelSpec


def _source(session: Session, tenant: str, ref: CheckpointRef, pointer: str) -> _Source:
    """Raises InvalidSpec, SourceNotFinished or SourceHasNoResult."""
    spec, result = _finished(session, tenant, ref.job_id, f"{pointer}/job_id")
    if not isinstance(spec, ImportSpec):
        return _Source(spec, _widths(session, tenant, spec))
    if ref.artifact != "model.safetensors":
        detail = f"{ref.job_id} is an import job and has no {ref.artifact}: name model.safetensors"
        found = FieldError(pointer=f"{pointer}/artifact", code="source_has_no_such_artifact", detail=detail)
        raise InvalidSpec(detail, [found])
    return _Source(spec, ModelSpec(channels=tuple(result["channels"]), hidden=result["hidden"]))


class _Finished(NamedTuple):
    spec: TrainSpec | PruneSpec | ImportSpec
    result: Mapping[str, Any]


def _finished(session: Session, tenant: str, job_id: str, pointer: str) -> _Finished:
    """Spec and result of a succeeded job of this tenant that has a network."""
    row = jobs.get(session, job_id, tenant)
    if row is None:
        detail = f"there is no job {job_id}"
        raise InvalidSpec(detail, [FieldError(pointer=pointer, code="source_not_found", detail=detail)])
    spec = parse_stored(row.spec)
    if isinstance(spec, CompareSpec):
        detail = f"{job_id} is a compare job and has no network: name a train, prune or import job"
        raise InvalidSpec(detail, [FieldError(pointer=pointer, code="source_has_no_network", detail=detail)])
    status = Status(row.status)
    if status is not Status.SUCCEEDED:
        refusal = SourceHasNoResult if status.is_terminal else SourceNotFinished
        detail = f"{job_id} is {status}; it must have succeeded"
        raise refusal(detail, [FieldError(pointer=pointer, code=refusal.code, detail=detail)])
    assert row.result is not None  # as the database has it
    return _Finished(spec, row.result)


def submit(session: Session, tenant: str, spec: AnySpec, *, retention_days: int) -> JobRow:
    """Resolve the spec and insert the job."""
    resolved = resolve(session, tenant, spec).spec
    return insert(session, new_job_id(), tenant, resolved, retention_days=retention_days)


def insert(session: Session, job_id: str, tenant: str, spec: StoredSpec, *, retention_days: int) -> JobRow:
    """Insert a job of a resolved spec."""
    return jobs.insert_job(
        session,
        job_id=job_id,
        tenant=tenant,
        spec=spec.model_dump(mode="json"),
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
    """Queue a failed job again. Raises JobNotRetryable or UploadNotKept."""
    before = get(session, tenant, job_id)
    if before.kind == "import" and before.error and not before.error["retryable"]:  # the sweeper's own rule
        raise UploadNotKept(f"The job failed as {before.error['code']}, so its file is not kept: upload one anew.")
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
