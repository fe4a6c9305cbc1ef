"""A break is named with its place, and an addition is none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.openapi.breaking import breaks

RELEASED = Path(__file__).with_name("released.json")

Document = dict[str, Any]


def _ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(name: str) -> Document:
    return {"content": {"application/json": {"schema": _ref(name)}}}


SMALL: Document = {
    "paths": {
        "/jobs": {
            "post": {
                "operationId": "submit",
                "parameters": [
                    {"in": "query", "name": "dry", "schema": {"type": "boolean"}},
                    {"in": "query", "name": "kind", "schema": {"enum": ["train", "prune"], "type": "string"}},
                ],
                "requestBody": _content("Spec"),
                "responses": {"202": {**_content("Job"), "headers": {"ETag": {}}}, "422": _content("Problem")},
            }
        }
    },
    "webhooks": {"done": {"post": {"requestBody": _content("Job")}}},
    "components": {
        "schemas": {
            "Spec": {
                "oneOf": [_ref("Train"), _ref("Prune")],
                "discriminator": {"propertyName": "kind"},
            },
            "Train": {
                "type": "object",
                "properties": {
                    "kind": {"const": "train", "type": "string"},
                    "epochs": {"type": "integer", "minimum": 1, "maximum": 9},
                    "rate": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                    "after": _ref("Spec"),
                },
                "required": ["kind"],
            },
            "Prune": {"type": "object", "properties": {"kind": {"const": "prune", "type": "string"}}},
            "Job": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "status": {"type": "string", "enum": ["queued", "done"]},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "steps": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["id", "status"],
            },
            "Problem": {"type": "object", "properties": {"code": {"type": "string"}}},
        }
    },
}

Change = Callable[[Document, Document, Document], Any]
"""Takes the operation, the schemas and the document."""

BREAKS: dict[str, tuple[Change, str]] = {
    "path": (lambda op, s, d: d["paths"].clear(), "POST /jobs: is gone"),
    "operation": (lambda op, s, d: d["paths"]["/jobs"].pop("post"), "POST /jobs: is gone"),
    "operation id": (lambda op, s, d: op.update(operationId="make"), "POST /jobs: is no longer called submit"),
    "parameter": (lambda op, s, d: op["parameters"].pop(0), "POST /jobs query dry: is gone"),
    "required parameter": (
        lambda op, s, d: op["parameters"].append({"in": "header", "name": "a", "required": True, "schema": {}}),
        "POST /jobs header a: must be given now",
    ),
    "parameter required": (
        lambda op, s, d: op["parameters"][0].update(required=True),
        "POST /jobs query dry: must be given now",
    ),
    "parameter's value": (
        lambda op, s, d: op["parameters"][1]["schema"]["enum"].remove("prune"),
        "POST /jobs query kind: no longer takes prune",
    ),
    "parameter's type": (
        lambda op, s, d: op["parameters"][0]["schema"].update(type="string"),
        "POST /jobs query dry: no longer takes boolean",
    ),
    "body required": (
        lambda op, s, d: op["requestBody"].update(required=True),
        "POST /jobs body: must be given now",
    ),
    "media type": (
        lambda op, s, d: op["requestBody"].update(content={"text/plain": {}}),
        "POST /jobs body: is no longer application/json",
    ),
    "kind": (lambda op, s, d: s["Spec"]["oneOf"].pop(), "POST /jobs body: no longer takes kind prune"),
    "field": (lambda op, s, d: s["Train"]["properties"].pop("rate"), "POST /jobs body<train>/rate: is gone"),
    "required field": (
        lambda op, s, d: (s["Train"]["properties"].update(new={}), s["Train"]["required"].append("new")),
        "POST /jobs body<train>/new: must be given now",
    ),
    "null": (
        lambda op, s, d: s["Train"]["properties"].update(rate={"type": "number"}),
        "POST /jobs body<train>/rate: no longer takes null",
    ),
    "number": (
        lambda op, s, d: s["Train"]["properties"]["rate"]["anyOf"].__setitem__(0, {"type": "integer"}),
        "POST /jobs body<train>/rate: no longer takes number",
    ),
    "upper bound": (
        lambda op, s, d: s["Train"]["properties"]["epochs"].update(maximum=8),
        "POST /jobs body<train>/epochs: maximum is 8 now",
    ),
    "lower bound": (
        lambda op, s, d: s["Train"]["properties"]["epochs"].update(exclusiveMinimum=1),
        "POST /jobs body<train>/epochs: exclusiveMinimum is 1 now",
    ),
    "pattern": (
        lambda op, s, d: s["Train"]["properties"]["kind"].update(pattern="t"),
        "POST /jobs body<train>/kind: pattern is another now",
    ),
    "success": (
        lambda op, s, d: op["responses"].update({"200": op["responses"].pop("202")}),
        "POST /jobs 202: is no longer answered",
    ),
    "header": (lambda op, s, d: op["responses"]["202"].pop("headers"), "POST /jobs 202 header ETag: is gone"),
    "property": (lambda op, s, d: s["Job"]["properties"].pop("steps"), "POST /jobs 202/steps: is gone"),
    "property's type": (
        lambda op, s, d: s["Job"]["properties"]["id"].update(type="integer"),
        "POST /jobs 202/id: may now be integer",
    ),
    "element's type": (
        lambda op, s, d: s["Job"]["properties"]["steps"]["items"].update(type="number"),
        "POST /jobs 202/steps/*: may now be number",
    ),
    "value's type": (
        lambda op, s, d: s["Job"]["properties"]["labels"]["additionalProperties"].update(type=["string", "null"]),
        "POST /jobs 202/labels/*: may now be null",
    ),
    "property optional": (
        lambda op, s, d: s["Job"]["required"].remove("status"),
        "POST /jobs 202/status: may be missing now",
    ),
    "webhook": (lambda op, s, d: d["webhooks"].clear(), "webhook done: is gone"),
}

ADDITIONS: dict[str, Change] = {
    "path": lambda op, s, d: d["paths"].update({"/more": {"get": op}}),
    "parameter": lambda op, s, d: op["parameters"].append({"in": "query", "name": "a", "schema": {}}),
    "parameter's value": lambda op, s, d: op["parameters"][1]["schema"]["enum"].append("compare"),
    "field": lambda op, s, d: s["Train"]["properties"].update(new={"type": "string"}),
    "kind": lambda op, s, d: s["Spec"]["oneOf"].append(
        {"type": "object", "properties": {"kind": {"const": "compare", "type": "string"}}, "required": ["kind"]}
    ),
    "null": lambda op, s, d: s["Train"]["properties"]["epochs"].update(type=["integer", "null"]),
    "number": lambda op, s, d: s["Train"]["properties"]["epochs"].update(type="number"),
    "bound": lambda op, s, d: s["Train"]["properties"]["epochs"].update(maximum=10),
    "success": lambda op, s, d: op["responses"].update({"200": {}}),
    "problem": lambda op, s, d: op["responses"].pop("422"),
    "property": lambda op, s, d: s["Job"]["properties"].update(new={"type": "string"}),
    "status": lambda op, s, d: s["Job"]["properties"]["status"]["enum"].append("asleep"),
    "always there": lambda op, s, d: s["Job"]["required"].append("steps"),
    "media type": lambda op, s, d: op["requestBody"]["content"].update({"application/yaml": {}}),
}


def _changed(change: Change) -> Document:
    after = copy.deepcopy(SMALL)
    change(after["paths"]["/jobs"]["post"], after["components"]["schemas"], after)
    return after


@pytest.mark.parametrize(("change", "line"), BREAKS.values(), ids=BREAKS)
def test_a_break_is_named(change: Change, line: str) -> None:
    assert line in breaks(SMALL, _changed(change))


@pytest.mark.parametrize("change", ADDITIONS.values(), ids=ADDITIONS)
def test_an_addition_breaks_nothing(change: Change) -> None:
    assert breaks(SMALL, _changed(change)) == []


def test_nothing_that_was_released_is_broken(document: Document) -> None:
    """A break needs /v2. At a release, docs/openapi.json takes the place of released.json."""
    assert breaks(json.loads(RELEASED.read_text()), document) == []
