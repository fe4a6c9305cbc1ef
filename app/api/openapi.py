"""The OpenAPI document: the spec as a tagged union, and problems instead of FastAPI's own 422."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Header
from pydantic import TypeAdapter

from app.api.schemas import Problem
from app.contract.patch import PATCH
from app.contract.spec import Spec
from app.contract.webhooks import NEW_WEBHOOK, TEST, WEBHOOK_PATCH, JobEvent, JobEventType, WebhookTest

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

WEBHOOK_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": _REF.format(model="NewWebhook")}}},
    }
}
_WEBHOOK_PATCH = {"schema": {"$ref": _REF.format(model="WebhookPatch")}}
WEBHOOK_PATCH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/merge-patch+json": _WEBHOOK_PATCH, "application/json": _WEBHOOK_PATCH},
    }
}

_MODELS: dict[str, TypeAdapter[Any]] = {
    "Spec": TypeAdapter(Spec),
    "JobPatch": PATCH,
    "NewWebhook": NEW_WEBHOOK,
    "WebhookPatch": WEBHOOK_PATCH,
    "Problem": TypeAdapter(Problem),
}
"""What is described, and read or written without FastAPI."""

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


_Id = Annotated[str, Header(description="The same in all attempts: what came before need not be done again.")]
_Timestamp = Annotated[int, Header(description="When this attempt was made, in seconds since 1970.")]
_Signature = Annotated[
    str,
    Header(
        description="`v1,` and, in base64, the HMAC-SHA256 of id, timestamp and body with full stops in between. Two, "
        "with a space in between, while a rotated secret still signs."
    ),
]


def _tell(event: JobEvent, webhook_id: _Id, webhook_timestamp: _Timestamp, webhook_signature: _Signature) -> None:
    """What a webhook is told, as Standard Webhooks has it."""


def _test(event: WebhookTest, webhook_id: _Id, webhook_timestamp: _Timestamp, webhook_signature: _Signature) -> None:
    """What a webhook is told when its client asks for a test: once."""


_RECEIVER: dict[int | str, dict[str, Any]] = {
    "2XX": {"description": "It has been taken. Anything else, a redirect too, is a failure, and it comes again."},
    410: {"description": "The webhook is disabled."},
}


def install(app: FastAPI) -> None:
    for event_type in JobEventType:
        _describe(app, event_type, _tell)
    _describe(app, TEST, _test)
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _mended(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(app: FastAPI, event_type: str, request: Callable[..., None]) -> None:
    app.webhooks.post(event_type, summary=event_type, operation_id=event_type)(request)


def _mended(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model, adapter in _MODELS.items():
        own = adapter.json_schema(ref_template=_REF)
        schemas.update(own.pop("$defs", {}))
        schemas[model] = own
    for told in document["webhooks"].values():
        told["post"]["responses"] = {str(status): answer for status, answer in _RECEIVER.items()}
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
