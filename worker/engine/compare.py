"""Puts the reports and histograms of finished jobs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from app.contract.artifacts import MANIFEST
from app.contract.report import ComparedJob, Comparison, Histogram, Manifest, Report
from worker.engine.comparison_drawing import draw_comparison
from worker.engine.errors import InvalidInput
from worker.engine.export import file_sha256, to_json

_Document = TypeVar("_Document", bound=BaseModel)


def read_jobs(jobs: Sequence[str], inputs: Mapping[str, Path]) -> tuple[Comparison, dict[str, str]]:
    """The comparison, and the sha256 of every document read, by job_id/artifact. Raises `InvalidInput`."""
    names = ("report.json", "histogram.json", MANIFEST)
    comparison = Comparison(jobs=tuple(_read_job(job_id, inputs[job_id]) for job_id in jobs))
    return comparison, {f"{job_id}/{name}": file_sha256(inputs[job_id] / name) for job_id in jobs for name in names}


def comparison_files(comparison: Comparison) -> dict[str, bytes]:
    return {"comparison.json": to_json(comparison), "comparison.png": draw_comparison(comparison)}


def _read_job(job_id: str, folder: Path) -> ComparedJob:
    return ComparedJob(
        job_id=job_id,
        display_name=name_of(job_id, folder),
        report=read_document(Report, job_id, folder / "report.json"),
        histogram=read_document(Histogram, job_id, folder / "histogram.json"),
    )


def name_of(job_id: str, folder: Path) -> str | None:
    """What a job was called when it was submitted. Raises `InvalidInput`."""
    name = read_document(Manifest, job_id, folder / MANIFEST).receipt.spec.get("display_name")
    return name if isinstance(name, str) else None


def read_document(document: type[_Document], job_id: str, path: Path) -> _Document:
    """A document that a job published. Raises `InvalidInput`."""
    if not path.is_file():
        raise InvalidInput(f"{job_id} has no {path.name}: compare finished train or prune jobs")
    try:
        return document.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InvalidInput(f"{path.name} of {job_id} does not read as what it should be: run that job again") from error
