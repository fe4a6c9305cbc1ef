"""Turns pydantic's errors into ones that a client can act on: a JSON Pointer, a stable code, a sentence."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from app.contract import patterns


class FieldError(BaseModel):
    """One thing wrong with a request. `pointer` is a JSON Pointer (RFC 6901) into the body; "" is the whole."""

    model_config = ConfigDict(frozen=True)

    pointer: str
    code: str
    detail: str


MALFORMED = "json_invalid"
"""The code of the single error of a text that is no JSON at all."""

MOST_ERRORS = 50
"""More are not told: a document of nothing but unknown fields would make an answer many times its size."""

_OTHER_NAMES = {"gpu": "cuda", "bfloat16": "bf16", "fp32": "float32"}
"""What others call it, which looks more like something else."""

_QUOTED = re.compile(r"'([^']*)'")


def explain(error: ValidationError, adapter: TypeAdapter[Any]) -> list[FieldError]:
    """One entry an error, in the order found. Of the input it repeats no more than the start of an unknown word."""
    schema = _schema(adapter)
    errors = [_explain_one(detail, schema) for detail in error.errors(include_url=False)[:MOST_ERRORS]]
    # Pydantic counts the lawful entries alone: a list with an unlawful one is then also "too short", which is no news.
    lists = {error.pointer.rpartition("/")[0] for error in errors}
    return [error for error in errors if error.code != "too_short" or error.pointer not in lists]


@cache
def _schema(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """Made once: it takes pydantic many times as long as validating does."""
    return adapter.json_schema()


def _explain_one(detail: Any, schema: dict[str, Any]) -> FieldError:
    path, parent, node = _walk(detail["loc"], schema)
    code, text = in_words(detail)
    if code == "extra_forbidden":
        code, text = "unknown_field", unknown(str(path[-1]), sorted(parent.get("properties", {})), "field")
    elif code in ("union_tag_invalid", "union_tag_not_found"):
        tags = sorted(parent.get("discriminator", {}).get("mapping", {}))
        key = detail["ctx"]["discriminator"].strip("'")
        path = [*path, key]
        code, text = (
            ("missing", "Field required; one of: " + ", ".join(tags))
            if code == "union_tag_not_found"
            # The error has the tag as Python writes it.
            else ("unknown_value", _unknown_value(detail["input"][key], tags))
        )
    elif code in ("too_short", "too_long"):
        text = text.replace("Tuple", "List").replace(" after validation", "")
    elif code in ("model_type", "dict_type"):
        text += _of_object(detail["input"], node)
    pointer = pointer_of(path) + detail.get("ctx", {}).get("pointer", "")
    return FieldError(pointer=pointer, code=code, detail=text)


def in_words(detail: Any) -> tuple[str, str]:
    """Code and sentence of an error, as far as it tells them by itself."""
    code, text = detail["type"], detail["msg"].removeprefix("Value error, ")
    if code == "string_pattern_mismatch":
        text = patterns.IN_WORDS.get(detail["ctx"]["pattern"], text)
    elif code in ("literal_error", "enum") and isinstance(given := detail["input"], str):
        code, text = "unknown_value", _unknown_value(given, _QUOTED.findall(detail["ctx"]["expected"]))
    return code, text


def _of_object(given: JsonValue, schema: dict[str, Any]) -> str:
    """What an object has that was wanted in place of this: many write the name alone, such as "l1"."""
    if tag := schema.get("discriminator"):
        name, tags = tag["propertyName"], sorted(tag["mapping"])
        meant = _meant(given, tags) if isinstance(given, str) else None
        return f", such as {json.dumps({name: meant})}" if meant else f" with {name!r}, one of: {', '.join(tags)}"
    fields = sorted(schema.get("properties", ()))
    return f"; its fields: {', '.join(fields)}" if fields else ""


def pointer_of(steps: Sequence[int | str]) -> str:
    """The JSON Pointer that goes by these keys and indices."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def unknown(given: str, known: Sequence[str], what: str) -> str:
    """A sentence about a name that is not among those known, with the one that was most likely meant."""
    said = f"unknown {what} {_start(given)!r}"
    if meant := _meant(given, known):
        return f"{said}: did you mean {meant!r}?"
    return f"{said}; known: {', '.join(known)}" if known else said


def _unknown_value(given: JsonValue, known: Sequence[str]) -> str:
    """The same of a value, with all that are known in any case: what somebody means by it is harder to guess."""
    if not isinstance(given, str):
        return f"unknown value {_start(json.dumps(given, ensure_ascii=False))}; known: {', '.join(known)}"
    said, meant = unknown(given, known, "value"), _meant(given, known)
    return f"{said} Known: {', '.join(known)}" if meant else said


def _meant(given: str, known: Sequence[str]) -> str | None:
    given = given[:64].lower()
    if (other := _OTHER_NAMES.get(given)) in known:
        return other
    by_letters = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given, by_letters, n=1)
    return by_letters[close[0]] if close else None


def _start(text: str) -> str:
    return text if len(text) <= 64 else text[:61] + "..."


def _walk(loc: tuple[int | str, ...], schema: dict[str, Any]) -> tuple[list[int | str], dict[str, Any], dict[str, Any]]:
    """Follow an error's location through the JSON Schema.

    Pydantic puts a union's tag, and "[key]" for a mapping's key, among the steps; a document has no such places, so
    they are left out. Returns the steps that remain, the schema of the object in which the last one lies, and its own.
    """
    definitions = schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        while True:
            if "$ref" in node:
                node = definitions[node["$ref"].rpartition("/")[2]]
                continue
            members = [m for m in node.get("anyOf", node.get("allOf", ())) if m.get("type") != "null"]
            if len(members) != 1:
                return node
            node = members[0]

    path: list[int | str] = []
    node = parent = resolve(schema)
    for step in _without_key_marks(loc):
        parent = node
        mapping = node.get("discriminator", {}).get("mapping", {})
        if step in mapping:
            node = resolve({"$ref": mapping[step]})
            continue
        path.append(step)
        inner = node.get("properties", {}).get(step) or node.get("additionalProperties") or node.get("items")
        node = resolve(inner if isinstance(inner, dict) else {})
    # An error about a union itself lies in no field: what is wanted then is the union, not what holds it.
    return path, parent if path and not node.get("discriminator") else node, node


def _without_key_marks(loc: tuple[int | str, ...]) -> Iterator[int | str]:
    return (step for step in loc if step != "[key]")
