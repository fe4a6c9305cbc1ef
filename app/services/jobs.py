"""The use cases of jobs. Nothing here commits: the route does, and sends the message after that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from app.contract.datasets import DatasetFacts
from app.contract.explain import FieldError, explain
from app.contract.network import Ends
from app.contract.patch import PATCH, JobPatch
from app.contract.reference import JOB_ID_PATTERN, CheckpointRef
from app.contract.result import RESULT, DatasetResult, ImportResult, NetworkResult, Result
from app.contract.spec import (
    MAX_LABELS,
    SPEC,
    SPEC_VERSION,
    UNTAUGHT,
    CompareSpec,
    DatasetSpec,
    ImportSpec,
    Kind,
    ModelSpec,
    PruneSpec,
    StoredSpec,
    Taught,
    Teachers,
    TrainSpec,
    UploadSpec,
    parse_spec,
    parse_stored,
    refuse_misfit,
    taught,
)
from app.contract.status import Status
from app.contract.uses import uses
from app.core.errors import (
    InvalidCursor,
    InvalidPatch,
    InvalidSpec,
    JobChanged,
    JobGone,
    JobInUse,
    JobNotCancellable,
    JobNotDone,
    JobNotFound,
    JobNotRetryable,
    SecateurError,
    SourceHasNoResult,
    SourceNotFinished,
    UploadNotKept,
)
from app.core.ids import new_job_id
from app.core.limits import Limits
from app.core.tracing import traceparent
from app.db import jobs, turns, workers
from app.db.jobs import Filter, Position
from app.db.models import EventRow, JobRow
from app.services import cursors, quotas
from app.services.parsing import parsed, refused

AnySpec = TrainSpec | PruneSpec | CompareSpec

_JOB_ID = re.compile(JOB_ID_PATTERN.removesuffix("$") + r"\Z")


def parse(document: bytes | str) -> AnySpec:
    """A spec from a request's body. Raises Malformed, or InvalidSpec with an entry a field."""
    try:
        return parse_spec(document)
    except ValidationError as error:
        _refuse_import(error)
        raise refused(explain(error, SPEC), InvalidSpec, "spec") from error


def parse_patch(document: bytes) -> JobPatch:
    """What to change of a job, from a request's body. Raises Malformed, or InvalidPatch with an entry a field."""
    return parsed(document, PATCH, InvalidPatch, "patch")


def _refuse_import(error: ValidationError) -> None:
    first = error.errors(include_url=False)[0]
    wanted = (
        _UPLOADED_AT.get(first["ctx"]["tag"]) if first["type"] == "union_tag_invalid" and not first["loc"] else None
    )
    if wanted is not None:
        detail = f"such a job is not submitted: send the file itself to POST {wanted}"
        raise InvalidSpec(detail, [FieldError(pointer="/kind", code="upload_wanted", detail=detail)]) from error


_UPLOADED_AT = {"import": "/v1/checkpoints", "dataset": "/v1/datasets"}

FILTER = TypeAdapter(Filter)


class JobPage(NamedTuple):
    items: Sequence[JobRow]
    next_cursor: str | None


class EventPage(NamedTuple):
    items: Sequence[EventRow]
    next_cursor: str | None


class Resolved(NamedTuple):
    """A spec that leaves nothing to the jobs that it names, and what there is to count with; a comparison has no
    network."""

    spec: AnySpec
    sizes: Sizes | None = None


class Sizes(NamedTuple):
    """The widths of a network, the facts of its data set, and the widths of its teachers."""

    model: ModelSpec
    facts: DatasetFacts
    teachers: Teachers = UNTAUGHT


def resolve(session: Session, tenant: str, spec: AnySpec) -> Resolved:
    """Fill in what the spec leaves to the jobs that it names. Raises InvalidSpec, SourceNotFinished or
    SourceHasNoResult."""
    if isinstance(spec, CompareSpec):
        for index, job_id in enumerate(spec.jobs):
            _finished(session, tenant, job_id, f"/jobs/{index}", _REPORT)
        return Resolved(spec)
    filled, model, ends = _filled(session, tenant, spec)
    assert filled.dataset is not None
    facts = filled.dataset.facts or _uploaded(session, tenant, filled.dataset)
    if ends is not None:
        _refuse_other_ends(ends, facts.ends, "/source" if isinstance(filled, PruneSpec) else "/initial")
    teachers = {each.teacher: _teacher(session, tenant, each, facts.ends) for each in taught(filled)}
    sizes = Sizes(model, facts, teachers)
    _refuse_misfit(filled, sizes)
    return Resolved(filled, sizes)


def _uploaded(session: Session, tenant: str, dataset: DatasetSpec) -> DatasetFacts:
    """Of a data set that was uploaded, and is kept until the transaction ends, as a job's source is."""
    assert dataset.id is not None  # it has no name
    result = _finished(session, tenant, dataset.id, "/dataset/id", _DATASET).result
    assert isinstance(result, DatasetResult)
    return result.facts


def _teacher(session: Session, tenant: str, course: Taught, ends: Ends) -> ModelSpec:
    found = _source(session, tenant, course.teacher, course.pointer)
    _refuse_other_ends(found.ends, ends, course.pointer)
    return found.model


def _refuse_other_ends(found: Ends, wanted: Ends, pointer: str) -> None:
    if found != wanted:
        detail = f"the checkpoint is for {found}, and the data set has {wanted}: name others that fit together"
        raise InvalidSpec(detail, [FieldError(pointer=pointer, code="dataset_misfit", detail=detail)])


class _Filled(NamedTuple):
    """A spec with what its checkpoint tells, the widths of its network, and the ends of that checkpoint, if it begins
    with one."""

    spec: TrainSpec | PruneSpec
    model: ModelSpec
    ends: Ends | None


def _filled(session: Session, tenant: str, spec: TrainSpec | PruneSpec) -> _Filled:
    if isinstance(spec, PruneSpec):
        source = _source(session, tenant, spec.source, "/source")
        filled = parse(spec.model_copy(update={"dataset": _dataset(spec, source)}).model_dump_json())
        assert isinstance(filled, PruneSpec)
        return _Filled(filled, source.model, source.ends)
    if spec.initial is None:
        return _Filled(spec, spec.model, None)
    source = _source(session, tenant, spec.initial, "/initial")
    return _Filled(_with_widths(spec, source.model), source.model, source.ends)


def _with_widths(spec: TrainSpec, found: ModelSpec) -> TrainSpec:
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


def _refuse_misfit(spec: TrainSpec | PruneSpec, sizes: Sizes) -> None:
    try:
        refuse_misfit(spec, *sizes)
    except PydanticCustomError as error:
        pointer = (error.context or {})["pointer"]
        found = FieldError(pointer=pointer, code=error.type, detail=error.message())
        raise InvalidSpec("One field of the spec must be mended; `errors` says which.", [found]) from error


def _widths(session: Session, tenant: str, spec: TrainSpec | PruneSpec) -> ModelSpec:
    """The network's widths: those of the training or the import at the root of a chain of prunings."""
    return spec.model if isinstance(spec, TrainSpec) else _source(session, tenant, spec.source, "/source").model


class _Source(NamedTuple):
    """A job whose checkpoint another one begins with or learns from, and the sizes of the network."""

    spec: TrainSpec | PruneSpec | ImportSpec
    model: ModelSpec
    ends: Ends


def _source(session: Session, tenant: str, ref: CheckpointRef, pointer: str) -> _Source:
    """Raises InvalidSpec, SourceNotFinished or SourceHasNoResult."""
    spec, result = _finished(session, tenant, ref.job_id, f"{pointer}/job_id", _NETWORK)
    if isinstance(spec, TrainSpec | PruneSpec):
        assert isinstance(result, NetworkResult)
        return _Source(spec, _widths(session, tenant, spec), result.ends)
    assert isinstance(spec, ImportSpec)
    assert isinstance(result, ImportResult)
    if ref.artifact != "model.safetensors":
        detail = f"{ref.job_id} is an import job and has no {ref.artifact}: name model.safetensors"
        error = FieldError(pointer=f"{pointer}/artifact", code="source_has_no_such_artifact", detail=detail)
        raise InvalidSpec(detail, [error])
    return _Source(spec, ModelSpec(channels=result.channels, hidden=result.hidden), result.ends)


class _Wanted(NamedTuple):
    """What a spec names a job for."""

    called: str
    kinds: tuple[Kind, ...]
    code: str
    """Of the refusal of any other kind."""
    lack: str


_NETWORK = _Wanted(
    "job",
    ("train", "prune", "import"),
    "source_has_no_network",
    "has no network: name a train, prune or import job",
)
_REPORT = _Wanted("job", ("train", "prune"), "source_has_no_report", "has no report: name a train or prune job")
_DATASET = _Wanted("data set", ("dataset",), "not_a_dataset", "is no data set: name one of GET /v1/datasets")


class _Finished(NamedTuple):
    spec: StoredSpec
    result: Result


def _finished(session: Session, tenant: str, job_id: str, pointer: str, wanted: _Wanted) -> _Finished:
    """Spec and result of a succeeded job of this tenant. Nobody purges it until the transaction ends, when a job that
    reads its files may be there."""
    row = jobs.get(session, job_id, tenant, lock="keep")
    if row is None or row.purged_at is not None:
        detail = f"there is no {wanted.called} {job_id}"
        raise InvalidSpec(detail, [FieldError(pointer=pointer, code="source_not_found", detail=detail)])
    spec = parse_stored(row.spec)
    if spec.kind not in wanted.kinds:
        detail = f"{job_id} is a job of kind {spec.kind} and {wanted.lack}"
        raise InvalidSpec(detail, [FieldError(pointer=pointer, code=wanted.code, detail=detail)])
    status = Status(row.status)
    if status is not Status.SUCCEEDED:
        refusal = SourceHasNoResult if status.is_terminal else SourceNotFinished
        detail = f"{job_id} is {status}; it must have succeeded"
        raise refusal(detail, [FieldError(pointer=pointer, code=refusal.code, detail=detail)])
    assert row.result is not None  # as the database has it
    return _Finished(spec, RESULT.validate_python(row.result))


class Terms(NamedTuple):
    """What the operator has settled for new jobs."""

    retention_days: int
    limits: Limits
    """Of a tenant that has none of its own."""


def submit(session: Session, tenant: str, spec: AnySpec, terms: Terms, *, parent_job_id: str | None = None) -> JobRow:
    """Resolve the spec and insert the job. Raises what `resolve` and `insert` raise."""
    resolved = resolve(session, tenant, spec).spec
    return insert(session, new_job_id(), tenant, resolved, terms, parent_job_id=parent_job_id)


def insert(
    session: Session,
    job_id: str,
    tenant: str,
    spec: StoredSpec,
    terms: Terms,
    *,
    parent_job_id: str | None = None,
) -> JobRow:
    """Insert a job of a resolved spec. Its attempts continue the present trace. Raises QueueFull or StorageFull."""
    more_bytes = spec.size if isinstance(spec, UploadSpec) else 0
    quotas.admit(session, tenant, terms.limits, more_bytes=more_bytes)
    return jobs.insert_job(
        session,
        job_id=job_id,
        tenant=tenant,
        spec=spec.model_dump(mode="json"),
        spec_version=SPEC_VERSION,
        sources=sorted({use.job_id for use in uses(spec)}),
        parent_job_id=parent_job_id,
        retention_days=terms.retention_days,
        traceparent=traceparent(),
    )


def get(session: Session, tenant: str, job_id: str, *, lock: Literal["purge"] | None = None) -> JobRow:
    """Raises JobNotFound or JobGone."""
    # What is no id at all never reaches the database, which would choke on some of it.
    row = jobs.get(session, job_id, tenant, lock=lock) if _JOB_ID.match(job_id) else None
    if row is None or row.purged_at is not None:
        raise _missing(session, tenant, job_id, row.purged_at if row else None)
    return row


class Version(NamedTuple):
    revision: int
    status: Status
    queued_at: datetime
    position: int | None
    """In the queue."""


def version(session: Session, tenant: str, job_id: str, limits: Limits) -> Version:
    """What tells whether a client's copy is the present one, at a small part of the cost. Raises as `get` does."""
    found = _standing(session, tenant, job_id)
    turn = None
    if found.status == Status.QUEUED:
        turn = turns.turn(session, job_id, max_running=limits.max_running)
    return Version(found.revision, Status(found.status), found.queued_at, turn and turn.position)


def status(session: Session, tenant: str, job_id: str) -> Status:
    """Raises as `get` does."""
    return Status(_standing(session, tenant, job_id).status)


def _standing(session: Session, tenant: str, job_id: str) -> jobs.Standing:
    found = jobs.standing(session, job_id, tenant) if _JOB_ID.match(job_id) else None
    if found is None or found.purged_at is not None:
        raise _missing(session, tenant, job_id, found.purged_at if found else None)
    return found


class Place(NamedTuple):
    """Where a job waits, for about how long, and what for."""

    position: int
    ahead_seconds: float | None
    """None as long as nobody works, or nothing has been measured."""
    waits_for: Literal["worker", "tenant_limit"]
    """A free one, or that its tenant runs fewer jobs: it has as many as it may."""


def place(session: Session, job_id: str, limits: Limits) -> Place | None:
    """Of a queued job."""
    turn = turns.turn(session, job_id, max_running=limits.max_running)
    if turn is None:
        return None
    capped = turn.running + turn.ahead >= turn.max_running
    return Place(turn.position, _ahead_seconds(session, turn), "tenant_limit" if capped else "worker")


def _ahead_seconds(session: Session, turn: turns.Turn) -> float | None:
    """Until a worker is free, and the tenant's cap allows it: those ahead run as long as the last ones did, and those
    that run are half through."""
    mean, alive, running = jobs.mean_run_seconds(session), workers.count_alive(session), jobs.count_running(session)
    if mean is None or not (alive and turn.max_running):
        return None
    places = ((turn.position - 1, running, alive), (turn.ahead, turn.running, turn.max_running))
    return mean * max(_rounds(*each) for each in places)


def _rounds(ahead: int, running: int, places: int) -> float:
    """How many runs long one waits for one of so many places."""
    return 0.0 if ahead + running < places else (ahead + running / 2) / places


def _missing(session: Session, tenant: str, job_id: str, purged_at: datetime | None) -> SecateurError:
    if purged_at is None and _JOB_ID.match(job_id):
        purged_at = jobs.purged_at(session, job_id, tenant)
    return JobNotFound(job_id) if purged_at is None else JobGone(job_id, purged_at)


def cancel(session: Session, tenant: str, job_id: str) -> tuple[JobRow, bool]:
    """Ask for the job's end. Returns the job, and whether this call changed it. Raises JobNotCancellable."""
    get(session, tenant, job_id)
    changed = jobs.request_cancel(session, job_id, tenant) is not None
    row = get(session, tenant, job_id)
    if not changed and row.status not in (Status.CANCELLING, Status.CANCELLED):
        raise JobNotCancellable(f"The job {row.status} at {row.finished_at}: there is nothing left to cancel.")
    return row, changed


def retry(session: Session, tenant: str, job_id: str, limits: Limits) -> JobRow:
    """Queue a failed job again. Raises JobNotRetryable, UploadNotKept, QueueFull or StorageFull."""
    before = get(session, tenant, job_id)
    if before.kind in _UPLOADED_AT and before.error and not before.error["retryable"]:  # the sweeper's own rule
        raise UploadNotKept(f"The job failed as {before.error['code']}, so its file is not kept: upload one anew.")
    if before.status == Status.FAILED:
        quotas.admit(session, tenant, limits)
    changed = jobs.retry(session, job_id, tenant)
    row = get(session, tenant, job_id)
    if not changed:
        hint = "wait for its end" if not Status(row.status).is_terminal else "rerun it as a new job"
        raise JobNotRetryable(f"Only a failed job can be retried, and this one is {row.status}: {hint}.")
    return row


def rerun(session: Session, tenant: str, job_id: str, terms: Terms) -> JobRow:
    """A new job of the same spec. Raises UploadNotKept, and what submitting it anew raises."""
    before = get(session, tenant, job_id)
    spec = parse_stored(before.spec)
    if isinstance(spec, UploadSpec):
        raise UploadNotKept("The job is about a file that is not kept: upload it anew.")
    return submit(session, tenant, spec, terms, parent_job_id=job_id)


def relabel(session: Session, tenant: str, job_id: str, patch: JobPatch, *, only: set[int] | None) -> JobRow:
    """Change what the job is called, only when its revision is among those named, if any are. Raises JobChanged, or
    InvalidPatch when there would be too many labels."""
    row = get(session, tenant, job_id, lock="purge")
    if only is not None and row.revision not in only:
        raise JobChanged(f"The job is at revision {row.revision} by now: read it again, and decide again.")
    labels = {key: value for key, value in {**row.labels, **patch.labels}.items() if value is not None}
    if len(labels) > MAX_LABELS:
        detail = f"the job would have {len(labels)} labels, and may have {MAX_LABELS}: remove some with null"
        raise InvalidPatch(detail, [FieldError(pointer="/labels", code="too_long", detail=detail)])
    name = patch.display_name if "display_name" in patch.model_fields_set else row.display_name
    if (name, labels) != (row.display_name, row.labels):
        jobs.relabel(session, job_id, display_name=name, labels=labels)
    return get(session, tenant, job_id, lock="purge")


def delete(session: Session, tenant: str, job_id: str) -> None:
    """Take an ended job and its files away, for good. Raises JobNotDone or JobInUse."""
    # The row is locked first: a job that is just now submitted upon it keeps it, and is seen by the next statement.
    row = get(session, tenant, job_id, lock="purge")
    if not Status(row.status).is_terminal:
        raise JobNotDone(f"The job is {row.status}: cancel it, or wait for its end.")
    if (user := jobs.user_of(session, job_id)) is not None:
        raise JobInUse(f"{user} has not ended and reads this job's files: cancel it, or wait for its end.")
    jobs.purge(session, job_id)


def page(session: Session, tenant: str, wanted: Filter, *, cursor: str | None, limit: int) -> JobPage:
    """A page of the list. A cursor brings its filter with it. Raises InvalidCursor."""
    after = None
    if cursor:
        content = cursors.decode(session, tenant, cursor)
        of_cursor = FILTER.validate_python(content["filter"])
        if wanted not in (Filter(), of_cursor):
            raise InvalidCursor("The cursor is of a list with other filters: send it alone, or with the same ones.")
        wanted, after = of_cursor, Position(datetime.fromisoformat(content["at"]), content["id"])
    rows = jobs.page(session, tenant, wanted, after=after, limit=limit + 1)
    if len(rows) <= limit:
        return JobPage(rows, None)
    last = rows[limit - 1]
    content = {"at": last.created_at.isoformat(), "id": last.id, "filter": FILTER.dump_python(wanted, mode="json")}
    return JobPage(rows[:limit], cursors.encode(session, tenant, content))


def event_page(session: Session, tenant: str, job_id: str, *, after: int, limit: int) -> EventPage:
    get(session, tenant, job_id)
    rows = jobs.events(session, job_id, after=after, limit=limit + 1)
    return EventPage(rows[:limit], str(rows[limit - 1].seq) if len(rows) > limit else None)
