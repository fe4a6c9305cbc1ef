"""What is kept of a job of the recipe: the packed network, and a receipt from which every figure is taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from app.contract.report import CompactReport, LatencyReport, Manifest, Report
from benchmarks.frontier.jobs import folder
from benchmarks.frontier.recipe import VALIDATION_IMAGES, Chain, job_id


class Result(BaseModel):
    """One network. `nonzero` is of all parameters as they were trained, BatchNorm's included; `packed_nonzero` of the
    same network with BatchNorm folded into the convolutions, as the packed file has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    line: str
    target: int
    seed: int
    parameters: int
    nonzero: int
    packed_nonzero: int
    packed_bytes: int
    dense_bytes: int
    wrong: int
    images: int
    validation_wrong: int
    validation_images: int
    epochs: int
    macs_dense: int
    compact: CompactReport
    latency: LatencyReport
    sha256: dict[str, str]
    specs: tuple[dict[str, JsonValue], ...]
    versions: dict[str, str]
    device: str
    threads: int
    seconds: dict[str, float]
    """That each job took, by its id."""

    @property
    def error(self) -> float:
        return self.wrong / self.images

    @property
    def validation_error(self) -> float:
        return self.validation_wrong / self.validation_images

    @property
    def name(self) -> str:
        return f"{self.line}-{self.target}-seed-{self.seed}"


def keep(chain: Chain, root: Path, models: Path) -> Result:
    """Copy the packed network of the chain's last job into `models`, and write its receipt beside it."""
    out = folder(root, chain.specs[-1])
    result = _result(chain, root, out)
    models.mkdir(exist_ok=True)
    shutil.copyfile(out / "packed.npz", models / f"{result.name}.npz")
    (models / f"{result.name}.json").write_text(result.model_dump_json(indent=1) + "\n")
    return result


def kept(models: Path) -> Sequence[Result]:
    return [Result.model_validate_json(path.read_text()) for path in sorted(models.glob("*.json"))]


def _result(chain: Chain, root: Path, out: Path) -> Result:
    report = Report.model_validate_json((out / "report.json").read_text())
    manifest = Manifest.model_validate_json((out / "manifest.json").read_text())
    assert report.compact is not None
    assert report.latency is not None
    assert report.sizes.packed is not None
    return Result(
        line=chain.line,
        target=chain.target,
        seed=chain.seed,
        parameters=report.total.parameters,
        nonzero=report.total.nonzero_after,
        packed_nonzero=report.compact.nonzero,
        packed_bytes=report.sizes.packed,
        dense_bytes=report.sizes.dense.raw,
        wrong=report.accuracy_after.total - report.accuracy_after.correct,
        images=report.accuracy_after.total,
        validation_wrong=round(VALIDATION_IMAGES * (1 - _validation_accuracy(out))),
        validation_images=VALIDATION_IMAGES,
        epochs=sum(spec.epochs for spec in chain.specs),
        macs_dense=report.total.macs_dense,
        compact=report.compact,
        latency=report.latency,
        sha256={file.name: file.sha256 for file in manifest.files if file.name in ("packed.npz", "model.safetensors")},
        specs=tuple({"job_id": job_id(spec), **spec.model_dump(mode="json")} for spec in chain.specs),
        versions=manifest.receipt.versions,
        device=manifest.receipt.device_name,
        threads=manifest.receipt.threads,
        seconds={job_id(spec): round(_seconds(folder(root, spec)), 1) for spec in chain.specs},
    )


def _seconds(out: Path) -> float:
    return Manifest.model_validate_json((out / "manifest.json").read_text()).receipt.duration_seconds


def _validation_accuracy(out: Path) -> float:
    """Of the epoch that was chosen: the best of the last course after all pruning."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = lines[-1]
    course = [line for line in lines if (line["course"], line["round"]) == (last["course"], last["round"])]
    return float(max(line["validation_accuracy"] for line in course if line["sparsity"] == last["sparsity"]))
