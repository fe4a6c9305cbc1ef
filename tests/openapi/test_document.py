"""The description says all that a client's author or generator needs, and its copy in docs is the present one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from jsonschema import Draft202012Validator

from app.contract.patch import PATCH
from app.contract.patterns import IN_WORDS
from app.contract.spec import parse_spec

COPY = Path(__file__).parents[2] / "docs" / "openapi.json"
BODY_PROBLEMS = {"400", "408", "413", "415", "422"}


class Operation(NamedTuple):
    method: str
    path: str
    described: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def _operations(document: dict[str, Any]) -> Iterator[Operation]:
    for path, operations in document["paths"].items():
        for method, described in operations.items():
            yield Operation(method, path, described)


def _validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def _examples(node: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each example with its schema."""
    if isinstance(node, list):
        for inner in node:
            yield from _examples(inner)
    if isinstance(node, dict):
        found = node.get("examples", {})
        if isinstance(found, dict) and "schema" in node:
            yield from ((node["schema"], example["value"]) for example in found.values())
        elif isinstance(found, list):
            yield from ((node, example) for example in found)
        for name, inner in node.items():
            if name != "examples":
                yield from _examples(inner)


def _patterns(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for inner in node:
            yield from _patterns(inner)
    if isinstance(node, dict):
        yield from node.get("patternProperties", {})
        if isinstance(node.get("pattern"), str):
            yield node["pattern"]
        for inner in node.values():
            yield from _patterns(inner)


def test_what_a_pattern_allows_is_told_in_words(document: dict[str, Any]) -> None:
    assert {*_patterns(document)} == {*IN_WORDS}


def test_the_copy_is_the_present_description(described: str) -> None:
    assert COPY.read_text(encoding="utf-8") == described, "renew it: make openapi"


def test_every_example_is_valid(document: dict[str, Any]) -> None:
    examples = [*_examples(document)]
    assert len(examples) > 5
    for schema, example in examples:
        _validator(document, schema).validate(example)


def test_there_is_an_example_of_each_kind_of_spec_and_the_parsers_take_them_all(document: dict[str, Any]) -> None:
    (spec,) = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"].values()
    kinds = {parse_spec(example["value"]).kind for example in spec["examples"].values()}
    assert kinds == document["components"]["schemas"]["Spec"]["discriminator"]["mapping"].keys()
    for patch in document["paths"]["/v1/jobs/{job_id}"]["patch"]["requestBody"]["content"].values():
        for example in patch["examples"].values():
            PATCH.validate_json(json.dumps(example["value"]))


def test_the_service_takes_the_example_that_needs_no_other_job(
    document: dict[str, Any], idle_http: httpx.Client
) -> None:
    (spec,) = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"].values()
    answer = idle_http.post("/v1/jobs", params={"validate_only": True}, json=spec["examples"]["train"]["value"])
    assert answer.status_code == 200, answer.text
    assert document == idle_http.get("/openapi.json").json()


def test_every_operation_reads_well(document: dict[str, Any]) -> None:
    ids = [operation.described["operationId"] for operation in _operations(document)]
    assert len(ids) == len(set(ids))
    assert [name for name in ids if not re.fullmatch(r"[a-z]+(_[a-z]+)+", name)] == []
    for operation in _operations(document):
        assert operation.described["description"], str(operation)
        assert len(operation.described["tags"]) == 1, str(operation)


def test_no_schema_has_a_name_that_was_made_up(document: dict[str, Any]) -> None:
    assert [name for name in document["components"]["schemas"] if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name)] == []


def test_every_operation_lists_its_problems(document: dict[str, Any]) -> None:
    for operation in _operations(document):
        if not operation.path.startswith("/v1"):
            continue
        expected = {"401", "403", "500", "503"}
        if "{job_id}" in operation.path:
            expected |= {"404", "410"}
        if "requestBody" in operation.described:
            expected |= BODY_PROBLEMS
        if operation.described.get("parameters"):
            expected |= {"422"}
        assert expected <= operation.described["responses"].keys(), str(operation)


@pytest.mark.parametrize(
    ("operation", "status", "names"),
    [
        ("submit_job", "202", {"Location", "Retry-After", "Idempotency-Replayed"}),
        ("rerun_job", "202", {"Location", "Retry-After", "Idempotency-Replayed"}),
        ("upload_checkpoint", "202", {"Location", "Retry-After", "Idempotency-Replayed"}),
        ("create_webhook", "201", {"Location", "Idempotency-Replayed"}),
        ("retry_job", "202", {"Retry-After"}),
        ("get_job", "200", {"ETag", "Retry-After"}),
        ("get_job", "304", {"ETag", "Retry-After"}),
        ("update_job", "200", {"ETag"}),
        ("list_jobs", "200", {"Link"}),
        ("list_job_events", "200", {"Link"}),
        ("download_artifact", "206", {"ETag", "Repr-Digest", "Content-Range"}),
        ("get_job", "401", {"WWW-Authenticate"}),
        ("get_job", "503", {"Retry-After"}),
    ],
)
def test_answers_have_their_headers(document: dict[str, Any], operation: str, status: str, names: set[str]) -> None:
    (described,) = [each.described for each in _operations(document) if each.described["operationId"] == operation]
    headers = described["responses"][status]["headers"]
    assert headers.keys() == names | {"X-Request-Id"}
    for header in headers.values():
        assert header["$ref"].rpartition("/")[2] in document["components"]["headers"]
