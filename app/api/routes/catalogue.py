"""What a spec may ask for, out of the models themselves."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.api.deps import READER_ONLY
from app.api.openapi import problems
from app.api.schemas import Datasets
from app.contract.artifacts import ARTIFACTS
from app.contract.datasets import DATASETS
from app.contract.network import PARAMETER_NAMES
from app.contract.report import SCHEMAS
from app.contract.spec import SPEC, CompareSpec, L1Penalty, ModelSpec, PruneSpec, ThresholdPruning, TrainSpec
from app.core.errors import NotFound

router = APIRouter(prefix="/v1", tags=["catalogue"], dependencies=[READER_ONLY])


@router.get("/options", operation_id="get_options", responses=problems())
def get_options() -> dict[str, Any]:
    """Kinds of job, architectures, data sets, penalties and pruning methods, with ranges and defaults."""
    return {
        "kinds": {name: _described(model) for name, model in _KINDS.items()},
        "architectures": {"cnn": _described(ModelSpec)},
        "penalties": {"l1": _described(L1Penalty)},
        "pruning_methods": {"threshold": _described(ThresholdPruning)},
        "datasets": list(DATASETS),
        "tensors": list(PARAMETER_NAMES),
        "artifacts": {name: kind._asdict() for name, kind in ARTIFACTS.items()},
        "spec_schema": SPEC.json_schema(),
    }


_KINDS = {"train": TrainSpec, "prune": PruneSpec, "compare": CompareSpec}


def _described(model: Any) -> dict[str, Any]:
    """A model's fields with their bounds, defaults and descriptions."""
    schema = model.model_json_schema()
    return {
        "description": schema.get("description", ""),
        "fields": schema["properties"],
        "definitions": schema.get("$defs", {}),
    }


@router.get("/datasets", operation_id="list_datasets", responses=problems())
def list_datasets() -> Datasets:
    """The data sets that a spec may name."""
    return Datasets(items=list(DATASETS.values()))


@router.get("/schemas/{name}", operation_id="get_schema", responses=problems(404))
def get_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a published document: report, histogram, epoch-metrics, comparison or manifest."""
    if name not in SCHEMAS:
        raise NotFound(f"There is no schema {name[:64]!r}; there are: {', '.join(SCHEMAS)}.")
    return SCHEMAS[name].model_json_schema(mode="serialization")
