"""What a spec leaves to the jobs that it names, filled in and held against them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from app.contract.datasets import DatasetFacts
from app.contract.explain import FieldError, explain
from app.contract.grid import Point
from app.contract.members import TRAIN_SPEC, documents, place_in_sweep
from app.contract.network import Ends
from app.contract.reference import CheckpointRef
from app.contract.result import RESULT, DatasetResult, ImportResult, NetworkResult, Result
from app.contract.spec import (
    MAX_SWEEP_MACS,
    SPEC,
    UNTAUGHT,
    AnySpec,
    CompareSpec,
    DatasetSpec,
    Kind,
    ModelSpec,
    PruneSpec,
    StoredSpec,
    SweepSpec,
    Taught,
    Teachers,
    TrainSpec,
    all_macs,
    parse_spec,
    parse_stored,
    refuse_misfit,
    taught,
)
from app.contract.status import Status
from app.contract.uploads import ImportSpec
from app.core.errors import InvalidSpec, SecateurError, SourceHasNoResult, SourceNotFinished
from app.core.times import rfc_3339
from app.db import jobs
from app.services.parsing import refuse_repeated_keys, refused


def parse(document: bytes | str) -> AnySpec:
    """A spec from a request's body. Raises Malformed, or InvalidSpec with an entry a field."""
    try:
        spec = parse_spec(document)
    except ValidationError as error:
        _refuse_import(error)
        raise refused(explain(error, SPEC), InvalidSpec, "spec") from error
    refuse_repeated_keys(document)
    return spec


def _refuse_import(error: ValidationError) -> None:
    first = error.errors(include_url=False)[0]
    wanted = UPLOADED_AT.get(first["ctx"]["tag"]) if first["type"] == "union_tag_invalid" and not first["loc"] else None
    if wanted is not None:
        detail = f"such a job is not submitted: send the file itself to POST {wanted}"
        raise InvalidSpec(detail, [FieldError(pointer="/kind", code="upload_wanted", detail=detail)]) from error


UPLOADED_AT = {"import": "/v1/checkpoints", "dataset": "/v1/datasets"}


class Resolved(NamedTuple):
    """A spec that leaves nothing to the jobs that it names, and what there is to count with; a comparison has no
    network, and a sweep as many as it has members."""

    spec: AnySpec
    sizes: Sizes | None = None
    members: tuple[ResolvedMember, ...] = ()


class ResolvedMember(NamedTuple):
    spec: TrainSpec
    sizes: Sizes


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
    if isinstance(spec, SweepSpec):
        return _resolve_sweep(session, tenant, spec)
    filled, model, ends = _filled(session, tenant, spec)
    assert filled.dataset is not None
    facts = filled.dataset.facts or _uploaded(session, tenant, filled.dataset)
    if ends is not None:
        _refuse_other_ends(ends, facts.ends, "/source" if isinstance(filled, PruneSpec) else "/initial")
    teachers = {each.teacher: _teacher(session, tenant, each, facts.ends) for each in taught(filled)}
    sizes = Sizes(model, facts, teachers)
    _refuse_misfit(filled, sizes)
    return Resolved(filled, sizes)


def _resolve_sweep(session: Session, tenant: str, spec: SweepSpec) -> Resolved:
    """Each member is held against what it would be held against by itself, and all of them against their sum."""
    with _placed(lambda pointer: f"/base{pointer}"):
        base, sizes, _ = resolve(session, tenant, spec.base)
    assert isinstance(base, TrainSpec)
    assert sizes is not None
    filled = spec.model_copy(update={"base": base})
    found = tuple(_member(filled, number, *each, sizes) for number, each in enumerate(documents(filled)))
    macs = sum(all_macs(member.spec, *member.sizes) for member in found)
    if macs > MAX_SWEEP_MACS:
        said = f"the members ask for {macs:.2e} multiply-accumulates, more than the {MAX_SWEEP_MACS:.0e} of a sweep"
        detail = f"{said}: take fewer values, epochs, or smaller widths"
        raise InvalidSpec(detail, [FieldError(pointer="/grid", code="too_much_work", detail=detail)])
    return Resolved(filled, members=found)


def _member(sweep: SweepSpec, number: int, point: Point, document: str, sizes: Sizes) -> ResolvedMember:
    """Raises InvalidSpec, which points into the sweep's spec."""
    with _placed(lambda pointer: place_in_sweep(pointer, sweep.grid, point), f"member {number} ({point}): "):
        try:
            spec = TRAIN_SPEC.validate_json(document)
        except ValidationError as error:
            raise refused(explain(error, TRAIN_SPEC), InvalidSpec, "spec") from error
        own = sizes._replace(model=spec.model)
        _refuse_misfit(spec, own)
    return ResolvedMember(spec, own)


@contextmanager
def _placed(place: Callable[[str], str], where: str = "") -> Iterator[None]:
    """What is wrong in this block with a part of a spec is told of the whole."""
    try:
        yield
    except SecateurError as error:
        error.errors = [
            FieldError(pointer=place(each.pointer), code=each.code, detail=f"{where}{each.detail}")
            for each in error.errors
        ]
        raise


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


def _widths(session: Session, tenant: str, spec: TrainSpec | PruneSpec, result: NetworkResult) -> ModelSpec:
    """Of the network that such a job came to. Where a result of an earlier release does not tell them, they are those
    of the training or the import at the root of its chain of prunings, none of which may be deleted then."""
    if isinstance(spec, TrainSpec):
        return spec.model
    if result.channels is None or result.hidden is None:
        return _source(session, tenant, spec.source, "/source").model
    return ModelSpec(channels=result.channels, hidden=result.hidden)


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
        return _Source(spec, _widths(session, tenant, spec, result), result.ends)
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
        gone = row.purged_at if row else jobs.purged_at(session, job_id, tenant)
        detail = f"there is no {wanted.called} {job_id}"
        if gone is not None:
            detail = f"the {wanted.called} {job_id} was deleted at {rfc_3339(gone)}: name another one"
        raise InvalidSpec(detail, [FieldError(pointer=pointer, code="source_not_found", detail=detail)])
    spec = parse_stored(row.spec)
    if spec.kind not in wanted.kinds:
        detail = f"{job_id} is a job of kind {spec.kind} and {wanted.lack}"
        raise InvalidSpec(detail, [FieldError(pointer=pointer, code=wanted.code, detail=detail)])
    status = Status(row.status)
    if status is not Status.SUCCEEDED:
        refusal = SourceHasNoResult if status.is_terminal else SourceNotFinished
        detail = f"{job_id} is {status}; it must have succeeded"
        if row.error is not None:
            detail += f". It failed as {row.error['code']}: {row.error['message']}"
        raise refusal(detail, [FieldError(pointer=pointer, code=refusal.code, detail=detail)])
    assert row.result is not None  # as the database has it
    return _Finished(spec, RESULT.validate_python(row.result))
