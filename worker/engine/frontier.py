"""Puts the members of a sweep side by side: how many non-zeros each network has left, and how good it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from app.contract.frontier import Frontier, FrontierMember, MemberOutcome, MemberSettings
from app.contract.members import members, of_same_shape, settings_of
from app.contract.report import Report
from app.contract.result import SweepResult
from app.contract.spec import SweepSpec, TrainSpec
from app.contract.status import Status
from worker.engine.compare import read_document
from worker.engine.errors import NoMemberSucceeded
from worker.engine.export import file_sha256, to_json
from worker.engine.frontier_drawing import draw_frontier
from worker.engine.observer import Observer

REPORT = "report.json"


class MemberJob(NamedTuple):
    """What has become of a member's job."""

    job_id: str
    status: str
    error_code: str | None = None


def read_frontier(
    spec: SweepSpec, jobs: Sequence[MemberJob], inputs: Mapping[str, Path], observer: Observer
) -> tuple[Frontier, dict[str, str]]:
    """The frontier of `jobs`, which are those of the members in the grid's order, and the sha256 of every report read,
    by job_id/artifact. Raises `InvalidInput`, or `NoMemberSucceeded` when there is nothing to put side by side."""
    read = [job.job_id for job in jobs if job.status == Status.SUCCEEDED]
    if not read:
        raise NoMemberSucceeded(_why_none(jobs))
    found, specs = [], [member.spec for member in members(spec)]
    for number, (job, member) in enumerate(zip(jobs, specs, strict=True)):
        observer.advance(number, len(jobs), "members")
        found.append(_read(number, job, member, inputs))
    front = _front([member for member in found if member.outcome is not None])
    frontier = Frontier(
        dataset=spec.base.dataset.called,
        # A member's own: the data set may be deleted by now.
        dataset_name=read_document(Report, read[0], inputs[read[0]] / REPORT).dataset_name,
        axes=tuple(spec.grid.axes),
        members=tuple(member.model_copy(update={"on_front": member.number in front}) for member in found),
        front=front,
        same_shape=of_same_shape(specs),
    )
    return frontier, {f"{job_id}/{REPORT}": file_sha256(inputs[job_id] / REPORT) for job_id in read}


def _why_none(jobs: Sequence[MemberJob]) -> str:
    codes = [job.error_code or job.status for job in jobs]
    told = ", ".join(f"{codes.count(code)} {code}" for code in dict.fromkeys(codes))
    return (
        f"none of the {len(jobs)} members succeeded ({told}): each member's job says why; a retry of the sweep retries "
        "those whose error is retryable"
    )


def _read(number: int, job: MemberJob, spec: TrainSpec, inputs: Mapping[str, Path]) -> FrontierMember:
    succeeded = job.status == Status.SUCCEEDED
    return FrontierMember(
        number=number,
        job_id=job.job_id,
        status=job.status,
        error_code=job.error_code,
        settings=_settings(spec),
        outcome=_outcome(read_document(Report, job.job_id, inputs[job.job_id] / REPORT)) if succeeded else None,
        on_front=False,
    )


def _settings(spec: TrainSpec) -> MemberSettings:
    point = settings_of(spec)._asdict()
    return MemberSettings(**point.pop("widths").model_dump(), **point)


def _outcome(report: Report) -> MemberOutcome:
    pruned = report.accuracy_pruned
    return MemberOutcome(
        parameters=report.total.parameters,
        nonzero=report.total.nonzero_after,
        sparsity=report.total.sparsity,
        test_images=report.accuracy_after.total,
        correct=report.accuracy_after.correct,
        accuracy_before=report.accuracy_before.accuracy,
        accuracy_pruned=pruned.accuracy if pruned is not None else None,
        accuracy_after=report.accuracy_after.accuracy,
        compact_parameters=report.compact.parameters if report.compact is not None else None,
    )


def _front(found: Sequence[FrontierMember]) -> tuple[int, ...]:
    """Numbers of those to which no other is superior, the fewest non-zeros first. Equals are all on it."""
    best, front = -1, list[int]()
    left: dict[int, list[FrontierMember]] = {}
    for member in found:
        left.setdefault(_nonzero(member), []).append(member)
    for nonzero in sorted(left):
        correct = max(_correct(member) for member in left[nonzero])
        if correct > best:
            front += [member.number for member in left[nonzero] if _correct(member) == correct]
            best = correct
    return tuple(front)


def _nonzero(member: FrontierMember) -> int:
    assert member.outcome is not None
    return member.outcome.nonzero


def _correct(member: FrontierMember) -> int:
    assert member.outcome is not None
    return member.outcome.correct


def frontier_files(frontier: Frontier, title: str | None) -> dict[str, bytes]:
    return {
        "frontier.json": to_json(frontier, indent=2),
        "frontier.csv": _to_csv(frontier).encode(),
        "frontier.png": draw_frontier(frontier, title),
    }


_SETTINGS = [name if name != "sparsity" else "target_sparsity" for name in MemberSettings.model_fields]
_COLUMNS = ["number", "job_id", "status", "error_code", *_SETTINGS, *MemberOutcome.model_fields, "on_front"]


def _to_csv(frontier: Frontier) -> str:
    """One row a member. No word of a client's is in it, so that no spreadsheet takes one for a formula."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for member in frontier.members:
        writer.writerow(_row(member))
    return text.getvalue()


def _row(member: FrontierMember) -> dict[str, Any]:
    row = member.model_dump(mode="json", exclude={"settings", "outcome"})
    settings = dict(zip(_SETTINGS, member.settings.model_dump(mode="json").values(), strict=True))
    settings["channels"] = "×".join(map(str, member.settings.channels))
    return {**row, **settings, **(member.outcome.model_dump(mode="json") if member.outcome is not None else {})}


def result_of(frontier: Frontier) -> SweepResult:
    statuses = [member.status for member in frontier.members]
    ended = {status: statuses.count(status) for status in (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)}
    return SweepResult(
        kind="sweep",
        members=len(statuses),
        succeeded=ended[Status.SUCCEEDED],
        failed=ended[Status.FAILED],
        cancelled=ended[Status.CANCELLED],
        unfinished=len(statuses) - sum(ended.values()),
        front=tuple(frontier.members[number].job_id for number in frontier.front),
    )
