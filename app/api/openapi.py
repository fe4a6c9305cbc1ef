"""The OpenAPI document: the spec as a tagged union, and problems instead of FastAPI's own 422."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, TypeAlias

from fastapi import FastAPI, Header
from pydantic import TypeAdapter

from app.api import examples
from app.api.schemas import Problem, QuotaProblem
from app.contract.patch import PATCH
from app.contract.spec import SPEC
from app.contract.webhooks import NEW_WEBHOOK, TEST, WEBHOOK_PATCH, JobEvent, JobEventType, WebhookTest

_REF = "#/components/schemas/{model}"
_PROBLEM = {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}}
_QUOTA_PROBLEM = {"application/problem+json": {"schema": {"$ref": _REF.format(model="QuotaProblem")}}}

SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": _REF.format(model="Spec")}, "examples": examples.SPECS},
        },
    }
}

_PATCH = {"schema": {"$ref": _REF.format(model="JobPatch")}, "examples": examples.PATCHES}
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
    "Spec": SPEC,
    "JobPatch": PATCH,
    "NewWebhook": NEW_WEBHOOK,
    "WebhookPatch": WEBHOOK_PATCH,
    "Problem": TypeAdapter(Problem),
    "QuotaProblem": TypeAdapter(QuotaProblem),
}
"""What is described, and read or written without FastAPI."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}
CHECKPOINT_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/octet-stream": _BINARY}},
}
_FILES = ("file", "train_images", "train_labels", "test_images", "test_labels")
DATASET_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            # application/zip is taken too, but generators of clients do not know it.
            "application/octet-stream": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": dict.fromkeys(_FILES, _BINARY["schema"]),
                    "additionalProperties": False,
                }
            },
        },
    },
}

_HEADERS = {
    "ETag": "Names this state of what was asked for; send it back as `If-None-Match`, `If-Match` or `If-Range`.",
    "Idempotency-Replayed": "`true` when the answer is that of an earlier request with the same key.",
    "Link": 'The address of the next page, as `rel="next"`; not on the last one.',
    "Location": "The address of what was made.",
    "Content-Range": "Which bytes these are, and of how many.",
    "Repr-Digest": "The whole file's SHA-256 (RFC 9530).",
    "Retry-After": "Seconds after which to ask again.",
    "WWW-Authenticate": "`Bearer`.",
    "X-Request-Id": "The client's own, or else one made here; the log has it.",
}
_OF_PROBLEMS = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


Answers: TypeAlias = dict[int | str, dict[str, Any]]


def with_headers(status: int, *names: str) -> Answers:
    """What an answer has beside its body."""
    return {status: {"headers": _headers(*names)}}


def _file(description: str, *headers: str) -> dict[str, Any]:
    content = {"application/octet-stream": _BINARY}
    return {"description": description, "content": content, "headers": _headers("ETag", "Repr-Digest", *headers)}


DOWNLOAD_PARAMETERS: dict[str, Any] = {
    "parameters": [
        {"in": "header", "name": name, "required": False, "schema": {"type": "string"}, "description": description}
        for name, description in {
            "Range": "One range of bytes, such as `bytes=1000-`; what is no such range is ignored.",
            "If-Range": "The `ETag` of the file that the range continues; of another one, the whole is sent.",
            "If-None-Match": "The `ETag` of the client's copy.",
        }.items()
    ]
}
ACCEPTED = with_headers(202, "Location", "Retry-After", "Idempotency-Replayed")
PAGE = with_headers(200, "Link")
DOWNLOAD: Answers = {
    200: _file("The whole file."),
    206: _file("The part that `Range` asked for.", "Content-Range"),
    304: {"description": "The file that the client has is this one.", "headers": _headers("ETag", "Repr-Digest")},
}


def problems(*statuses: int) -> Answers:
    """The problems that an operation may answer with, beside those that every one may."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": _QUOTA_PROBLEM if status == 429 else _PROBLEM}
        for status in sorted({401, 403, 429, 500, 503, *statuses})
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
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            for event_type in JobEventType:
                _describe(app, event_type, _tell)
            _describe(app, TEST, _test)
            app.openapi_schema = _called_by_title(_mended(generate()))
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
    for model, example in examples.OF_SCHEMAS.items():
        schemas[model]["examples"] = [example]
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            _tell_default(field)
    document["components"]["headers"] = {
        name: {"description": description, "schema": {"type": "string"}} for name, description in _HEADERS.items()
    }
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _without_null(parameter["schema"])
            own_422 = operation["responses"].get("422", {}).get("content", {})
            if "application/json" in own_422:
                operation["responses"]["422"] = problems(422)[422]
            for status, answer in operation["responses"].items():
                always = _headers("X-Request-Id", *_OF_PROBLEMS.get(int(status), ()))
                operation["responses"][status] = {**answer, "headers": answer.get("headers", {}) | always}
    return document


def _called_by_title(document: dict[str, Any]) -> dict[str, Any]:
    """Page_Job_, of Page[Job], becomes JobPage."""
    schemas = document["components"]["schemas"]
    titles = {name: schema["title"] for name, schema in schemas.items() if name.endswith("_")}
    text = json.dumps(document)
    for name, title in titles.items():
        text = text.replace(f'{_REF.format(model=name)}"', f'{_REF.format(model=title)}"')
    called: dict[str, Any] = json.loads(text)
    called["components"]["schemas"] = {
        titles.get(name, name): schema for name, schema in called["components"]["schemas"].items()
    }
    return called


def _tell_default(field: dict[str, Any]) -> None:
    """An object as a default says what its own defaults say again, and generators of clients give up on it."""
    if isinstance(field.get("default"), dict):
        default = f"Default: `{json.dumps(field.pop('default'))}`."
        field["description"] = " ".join(filter(None, (field.get("description"), default)))


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter may be left out, and is never null."""
    members = [member for member in schema.get("anyOf", ()) if member != {"type": "null"}]
    if len(members) != 1:
        return schema
    return {**members[0], **{name: value for name, value in schema.items() if name != "anyOf"}}
