"""What a run reads of other jobs: what keeps them from being deleted, and makes up a lineage."""

from __future__ import annotations

from typing import Literal, NamedTuple

from app.contract.artifacts import DATASET
from app.contract.spec import CompareSpec, PruneSpec, StoredSpec, SweepSpec, taught
from app.contract.uploads import UploadSpec


class Use(NamedTuple):
    """A job whose files a run reads, and what for."""

    job_id: str
    relation: Literal["source", "initial", "teacher", "dataset", "compared"]
    artifact: str


def uses(spec: StoredSpec) -> tuple[Use, ...]:
    """All that a run reads of other jobs that its spec names, each once. A sweep's are its members, whose ids its row
    has."""
    if isinstance(spec, UploadSpec | SweepSpec):
        return ()
    if isinstance(spec, CompareSpec):
        return tuple(Use(job_id, "compared", "report.json") for job_id in spec.jobs)
    found = [Use(each.teacher.job_id, "teacher", each.teacher.artifact) for each in taught(spec)]
    if isinstance(spec, PruneSpec):
        found.insert(0, Use(spec.source.job_id, "source", spec.source.artifact))
    elif spec.initial is not None:
        found.insert(0, Use(spec.initial.job_id, "initial", spec.initial.artifact))
    if spec.dataset is not None and spec.dataset.id is not None:
        found.append(Use(spec.dataset.id, "dataset", DATASET))
    return tuple(dict.fromkeys(found))
