"""The use cases of jobs. Nothing here commits: the route does, and sends the message after that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Literal, NamedTuple

from pydantic import TypeAdapter
from sqlalchemy.orm import Session

from app.contract.explain import FieldError
from app.contract.job import MAX_LABELS
from app.contract.patch import PATCH, JobPatch
from app.contract.patterns import JOB_ID
from app.contract.spec import SPEC_VERSION, AnySpec, StoredSpec, SweepSpec, TrainSpec, parse_stored
from app.contract.status import Status
from app.contract.uploads import UploadSpec
from app.contract.uses import uses
from app.core.errors import (
    InvalidCursor,
    InvalidPatch,
    JobChanged,
    JobGone,
    JobInUse,
    JobNotCancellable,
    JobNotDone,
    JobNotFound,
    JobNotRetryable,
    SecateurError,
    UploadNotKept,
)
from app.core.ids import new_job_id
from app.core.limits import Limits
from app.core.times import rfc_3339
from app.core.tracing import traceparent
from app.db import jobs, members, turns, workers
from app.db.jobs import Filter, NewJob, Position
from app.db.models import EventRow, JobRow
from app.services import cursors, quotas
from app.services.parsing import parsed
from app.services.resolving import UPLOADED_AT, resolve

_JOB_ID = re.compile(JOB_ID.removesuffix("$") + r"\Z")


def parse_patch(document: bytes) -> JobPatch:
    """What to change of a job, from a request's body. Raises Malformed, or InvalidPatch with an entry a field."""
    return parsed(document, PATCH, InvalidPatch, "patch")


FILTER = TypeAdapter(Filter)


class JobPage(NamedTuple):
    items: Sequence[JobRow]
    next_cursor: str | None


class EventPage(NamedTuple):
    items: Sequence[EventRow]
    next_cursor: str | None


class Terms(NamedTuple):
    """What the operator has settled for new jobs."""

    retention_days: int
    limits: Limits
    """Of a tenant that has none of its own."""


class Submitted(NamedTuple):
    """A job as it was inserted, and its resolved spec, which need not be read from the row again."""

    row: JobRow
    spec: StoredSpec


def submit(
    session: Session, tenant: str, spec: AnySpec, terms: Terms, *, parent_job_id: str | None = None
) -> Submitted:
    """Resolve the spec and insert the job, of a sweep with its members. Raises what `resolve` and `insert` raise."""
    resolved, _, found = resolve(session, tenant, spec)
    if isinstance(resolved, SweepSpec):
        specs = [member.spec for member in found]
        row = insert_sweep(session, tenant, resolved, specs, terms, parent_job_id)
    else:
        row = insert(session, new_job_id(), tenant, resolved, terms, parent_job_id=parent_job_id)
    return Submitted(row, resolved)


def insert(
    session: Session,
    job_id: str,
    tenant: str,
    spec: StoredSpec,
    terms: Terms,
    *,
    parent_job_id: str | None = None,
) -> JobRow:
    """Insert a job of a resolved spec. Its attempts continue the present trace. Raises QuotaExceeded."""
    more_bytes = spec.size if isinstance(spec, UploadSpec) else 0
    quotas.admit(session, tenant, terms.limits, more_bytes=more_bytes)
    new = _new(job_id, tenant, spec, terms, parent_job_id)
    return jobs.insert_job(session, **new._asdict())


def insert_sweep(
    session: Session,
    tenant: str,
    spec: SweepSpec,
    specs: Sequence[TrainSpec],
    terms: Terms,
    parent_job_id: str | None = None,
) -> JobRow:
    """Insert a sweep of a resolved spec, and a job for each of its members' specs. Raises QuotaExceeded."""
    quotas.admit(session, tenant, terms.limits, jobs=len(specs))
    # Among those of one moment the order of ids decides: members have their turns in the grid's order, and the sweep
    # is listed above them.
    *ids, sweep_id = sorted(new_job_id() for _ in range(len(specs) + 1))
    new = [_new(job_id, tenant, each, terms) for job_id, each in zip(ids, specs, strict=True)]
    return members.insert_sweep(session, _new(sweep_id, tenant, spec, terms, parent_job_id, ids), new)


def _new(
    job_id: str,
    tenant: str,
    spec: StoredSpec,
    terms: Terms,
    parent_job_id: str | None = None,
    sources: Sequence[str] = (),
) -> NewJob:
    return NewJob(
        job_id=job_id,
        tenant=tenant,
        spec=spec.model_dump(mode="json"),
        spec_version=SPEC_VERSION,
        sources=sources or sorted({use.job_id for use in uses(spec)}),
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


@contextmanager
def _settling(session: Session, sweep_id: str | None) -> Iterator[None]:
    """The block moves a job, which may be a member of this sweep."""
    if sweep_id is not None:
        members.hold(session, sweep_id)
    yield
    if sweep_id is not None:
        members.settle(session, sweep_id)


def cancel(session: Session, tenant: str, job_id: str) -> tuple[JobRow, bool]:
    """Ask for the job's end, of a sweep also for its members'. Returns the job, and whether this call changed it.
    Raises JobNotCancellable."""
    before = get(session, tenant, job_id)
    with _settling(session, before.sweep_id):
        changed = jobs.request_cancel(session, job_id, tenant) is not None
    if changed and before.kind == "sweep":
        members.cancel_members(session, job_id, "sweep_cancelled")
    row = get(session, tenant, job_id)
    if not changed and row.status not in (Status.CANCELLING, Status.CANCELLED):
        when = f" at {rfc_3339(row.finished_at)}" if row.finished_at else ""  # unless it has been retried meanwhile
        raise JobNotCancellable(f"The job {row.status}{when}: there is nothing left to cancel.")
    return row, changed


def retry(session: Session, tenant: str, job_id: str, limits: Limits) -> JobRow:
    """Queue a failed job again; a sweep waits again, for those members that failed and may do better. Raises
    JobNotRetryable, UploadNotKept or QuotaExceeded."""
    before = get(session, tenant, job_id)
    if before.kind in UPLOADED_AT and before.error and not before.error["retryable"]:  # the sweeper's own rule
        raise UploadNotKept(f"The job failed as {before.error['code']}, so its file is not kept: upload one anew.")
    sweeps = before.kind == "sweep"
    if before.status == Status.FAILED:
        _keep_sources(session, tenant, () if sweeps else before.sources)  # a sweep goes on without a deleted member
        quotas.admit(session, tenant, limits, jobs=members.count_to_be_retried(session, job_id) if sweeps else 1)
    with _settling(session, before.sweep_id):
        changed = (members.retry_sweep if sweeps else jobs.retry)(session, job_id, tenant)
    row = get(session, tenant, job_id)
    if not changed:
        anew = "upload the file anew" if row.kind in UPLOADED_AT else "rerun it as a new job"
        hint = anew if Status(row.status).is_terminal else "wait for its end"
        raise JobNotRetryable(f"Only a failed job can be retried, and this one is {row.status}: {hint}.")
    return row


def _keep_sources(session: Session, tenant: str, sources: Sequence[str]) -> None:
    """Until the transaction ends nobody deletes what the job reads. Raises JobNotRetryable when somebody has."""
    for job_id in sources:
        row = jobs.get(session, job_id, tenant, lock="keep")
        if row is None or row.purged_at is not None:
            raise JobNotRetryable(f"The job reads files of {job_id}, which was deleted: submit one of another source.")


def rerun(session: Session, tenant: str, job_id: str, terms: Terms) -> Submitted:
    """A new job of the same spec, by the name and labels that the job has now. Raises UploadNotKept, and what
    submitting it anew raises."""
    before = get(session, tenant, job_id)
    spec = parse_stored(before.spec)
    if isinstance(spec, UploadSpec):
        raise UploadNotKept("The job is about a file that is not kept: upload it anew.")
    called = spec.model_copy(update={"display_name": before.display_name, "labels": before.labels})
    return submit(session, tenant, called, terms, parent_job_id=job_id)


def relabel(session: Session, tenant: str, job_id: str, patch: JobPatch, *, only: set[int] | None) -> JobRow:
    """Change what the job is called, only when its revision is among those named, if any are. Raises JobChanged, or
    InvalidPatch when there would be too many labels."""
    row = get(session, tenant, job_id, lock="purge")
    if only is not None and row.revision not in only:
        raise JobChanged(f"The job is at revision {row.revision} by now: read it again, and decide again.")
    changed = {} if patch.labels is None else {**row.labels, **patch.labels}
    labels = {key: value for key, value in changed.items() if value is not None}
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
