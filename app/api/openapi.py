"""The OpenAPI document: the spec as a tagged union, and problems instead of FastAPI's own 422."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter

from app.api.schemas import Problem
from app.contract.patch import PATCH
from app.contract.spec import Spec

_REF = "#/components/schemas/{model}"
_PROBLEM = {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}}

SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": _REF.format(model="Spec")}}},
    }
}

_PATCH = {"schema": {"$ref": _REF.format(model="JobPatch")}}
PATCH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/merge-patch+json": _PATCH, "application/json": _PATCH},
    }
}

_BINARY = {"schema": {"type": "string", "format": "binary"}}
CHECKPOINT_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/octet-stream": _BINARY}},
}
DOWNLOAD: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", "content": {"application/octet-stream": _BINARY}},
    206: {"description": "The part that `Range` asked for.", "content": {"application/octet-stream": _BINARY}},
    304: {"description": "The file that the client has is this one."},
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that an operation may answer with, beside those that every one may."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": _PROBLEM}
        for status in sorted({401, 403, 500, 503, *statuses})
    }


def install(app: FastAPI) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _mended(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _mended(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model, adapter in (("Spec", TypeAdapter(Spec)), ("JobPatch", PATCH), ("Problem", TypeAdapter(Problem))):
        own = adapter.json_schema(ref_template=_REF)
        schemas.update(own.pop("$defs", {}))
        schemas[model] = own
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _without_null(parameter["schema"])
            own_422 = operation["responses"].get("422", {}).get("content", {})
            if "application/json" in own_422:
                operation["responses"]["422"] = problems(422)[422]
    return document


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter may be left out, and is never null."""
    members = [member for member in schema.get("anyOf", ()) if member != {"type": "null"}]
    if len(members) != 1:
        return schema
    return {**members[0], **{name: value for name, value in schema.items() if name != "anyOf"}}
