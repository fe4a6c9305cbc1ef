"""Reports side by side. The picture of them is a compare job's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query

from app.api import resources
from app.api.deps import ArtifactReaderDep, PartsDep, ReadSessionDep, make_router
from app.api.openapi import problems
from app.api.schemas import Compared, Comparison
from app.contract.explain import FieldError
from app.contract.patterns import JOB_IDS, MOST_COMPARED
from app.core.errors import InvalidParameter
from app.services import artifacts

router = make_router(prefix="/v1/compare", tags=["jobs"])

JobIds = Annotated[
    str,
    Query(pattern=JOB_IDS, description=f"Ids of two to {MOST_COMPARED} different jobs, with commas between."),
]


@router.get("", operation_id="compare_jobs", responses=problems(404, 409, 410, 422))
def compare(jobs: JobIds, who: ArtifactReaderDep, session: ReadSessionDep, parts: PartsDep) -> Comparison:
    """The reports of finished train and prune jobs, in the order asked for."""
    found = artifacts.reports(session, parts.store, who.tenant, _each_once(jobs.split(",")))
    return Comparison(items=[Compared(job=resources.job(row), report=report) for row, report in found])


def _each_once(ids: Sequence[str]) -> Sequence[str]:
    """As a compare job wants them."""
    for index, job_id in enumerate(ids):
        if job_id in ids[:index]:
            detail = f"the job {job_id} is named twice: name two to {MOST_COMPARED} different ones"
            raise InvalidParameter(detail, [FieldError(pointer="/query/jobs", code="job_repeats", detail=detail)])
    return ids
