"""What a job comes from, and what comes from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.contract.spec import parse_stored
from app.contract.uses import uses
from app.db import jobs
from app.db.models import JobRow
from app.services.jobs import get

MOST = 200
"""Jobs of one lineage that are told."""


class Edge(NamedTuple):
    """`reader` reads `artifact` of `job_id`, or is a rerun of it."""

    job_id: str
    reader: str
    relation: str
    artifact: str | None
    sha256: str | None
    """Of what was published; None when the job has gone."""


class Lineage(NamedTuple):
    rows: Sequence[JobRow]
    """All that is still there, the oldest first."""
    edges: Sequence[Edge]
    truncated: bool


def lineage(session: Session, tenant: str, job_id: str) -> Lineage:
    """All that the job was made from, back to where it began, and what was made of it directly. Raises JobNotFound or
    JobGone."""
    found = {job_id: get(session, tenant, job_id)}
    found |= {row.id: row for row in jobs.built_upon(session, job_id, tenant, limit=MOST)}
    # Those that were made of it tell of it alone, and not of their other sources.
    descendants, wanted = set(found) - {job_id}, _named_by(found[job_id])
    while wanted and len(found) < MOST:
        rows = [row for row in jobs.by_ids(session, wanted, tenant) if row.purged_at is None]
        found |= {row.id: row for row in rows}
        wanted = {named for row in rows for named in _named_by(row)} - found.keys()
    edges = [edge for row in found.values() for edge in _edges(row) if row.id not in descendants or edge[0] == job_id]
    sha256 = jobs.digests(session, {source for source, *_ in edges})
    return Lineage(
        sorted(found.values(), key=lambda row: (row.created_at, row.id)),
        [Edge(source, reader, why, name, sha256.get((source, name or ""))) for source, reader, why, name in edges],
        truncated=len(found) >= MOST,
    )


def _named_by(row: JobRow) -> set[str]:
    return {*row.sources, *([row.parent_job_id] if row.parent_job_id else [])}


def _edges(row: JobRow) -> Sequence[tuple[str, str, str, str | None]]:
    if row.kind == "sweep":
        read = [(job_id, row.id, "member", "report.json") for job_id in row.sources]
    else:
        read = [(use.job_id, row.id, str(use.relation), use.artifact) for use in uses(parse_stored(row.spec))]
    return [*read, *([(row.parent_job_id, row.id, "rerun", None)] if row.parent_job_id else [])]
