"""What a spec may ask for, out of the models themselves."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from app.api.deps import READER_ONLY, PartsDep, make_router
from app.api.openapi import problems
from app.contract.artifacts import ARTIFACTS
from app.contract.datasets import DATASETS, MAX_IMAGES, MAX_VALUES, DatasetFormat
from app.contract.network import PARAMETER_NAMES, DataShape
from app.contract.pruning import METHODS, SCHEDULES
from app.contract.spec import SPEC, CompareSpec, ModelSpec, PruneSpec, SweepSpec, TrainSpec
from app.contract.training import OPTIMIZERS, PENALTIES
from app.contract.uploads import DatasetImportSpec, ImportSpec, UploadFormat
from app.core.errors import NotFound

router = make_router(prefix="/v1", tags=["catalogue"], dependencies=[READER_ONLY])


@router.get("/options", operation_id="get_options", responses=problems())
def get_options(parts: PartsDep) -> dict[str, Any]:
    """What a spec may name, with ranges and defaults: kinds of job, penalties, pruning methods, data sets and so on."""
    uploads = {"formats": get_args(UploadFormat), "max_bytes": parts.settings.max_checkpoint_bytes}
    dataset_uploads = {
        "formats": get_args(DatasetFormat),
        "max_bytes": parts.settings.max_dataset_bytes,
        "max_images": MAX_IMAGES,
        "max_values": MAX_VALUES,
        **_described(DataShape),
    }
    return {**_options(), "uploads": uploads, "dataset_uploads": dataset_uploads}


@cache
def _options() -> dict[str, Any]:
    return {
        "kinds": {name: _described(model) for name, model in _KINDS.items()},
        "architectures": {"cnn": _described(ModelSpec)},
        "optimizers": _tagged(OPTIMIZERS, "name"),
        "penalties": _tagged(PENALTIES, "penalty"),
        "pruning_methods": _tagged(METHODS, "method"),
        "pruning_schedules": _tagged(SCHEDULES, "name"),
        "datasets": list(DATASETS),
        "dataset_facts": {name: info.model_dump(mode="json") for name, info in DATASETS.items()},
        "tensors": list(PARAMETER_NAMES),
        "artifacts": {name: kind._asdict() for name, kind in ARTIFACTS.items()},
        "spec_schema": SPEC.json_schema(),
    }


_KINDS = {
    "train": TrainSpec,
    "prune": PruneSpec,
    "compare": CompareSpec,
    "sweep": SweepSpec,
    "import": ImportSpec,
    "dataset": DatasetImportSpec,
}


def _tagged(members: Iterable[type[BaseModel]], tag: str) -> dict[str, Any]:
    """The members of a tagged union, by their tags."""
    return {get_args(member.model_fields[tag].annotation)[0]: _described(member) for member in members}


def _described(model: Any) -> dict[str, Any]:
    """A model's fields with their bounds, defaults and descriptions."""
    schema = model.model_json_schema()
    return {
        "description": schema.get("description", ""),
        "fields": schema["properties"],
        "definitions": schema.get("$defs", {}),
    }


@router.get("/schemas/{name}", operation_id="get_schema", responses=problems(404))
def get_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a published document, by its name: report, manifest, histogram and so on."""
    # Imported here: nothing else in the API reads reports, and the models would make every start take longer.
    from app.contract.report import SCHEMAS

    if name not in SCHEMAS:
        raise NotFound(f"There is no schema {name[:64]!r}; there are: {', '.join(SCHEMAS)}.")
    return SCHEMAS[name].model_json_schema(mode="serialization")
