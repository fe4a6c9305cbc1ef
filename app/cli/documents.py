"""Reads a spec from a file or standard input: JSON or YAML in, plain JSON values out, or one clear sentence.

Whether it is a lawful spec the server says; here it only has to be a document that JSON can carry unchanged.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from app.core.objects import unique

MAX_DEPTH = 64
_LOOKS_LIKE_JSON = re.compile(r'\s*\{\s*["}]')  # a brace alone may begin YAML: {kind: train}


class BadDocument(Exception):
    """The text is no JSON or YAML, or holds what JSON cannot say. The message names the place."""


def load(source: str) -> dict[str, Any]:
    """Read the document at a path, or standard input for "-". JSON by its name or its look, else YAML."""
    name = "standard input" if source == "-" else source
    try:
        raw = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise BadDocument(f"{name} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadDocument(f"{name} is not UTF-8: byte {error.start} is no part of a character.") from error
    is_json = source.endswith(".json") or (not source.endswith((".yaml", ".yml")) and _LOOKS_LIKE_JSON.match(text))
    document = _json(text, name) if is_json else _yaml(text, name)
    if not isinstance(document, dict):
        raise BadDocument(f"{name} must hold one object, such as {{kind: train}}.")
    _require_json_values(document, name)
    return document


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise BadDocument(f"{name} is no JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise BadDocument(f"{name}: {_reason(error)}.") from error


def _yaml(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise BadDocument(f"{name} is no YAML: {place}{error.problem}.") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise BadDocument(f"{name} is no YAML: line {line}, column {column}: {error.reason}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadDocument(f"{name} is no YAML: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number that JSON knows")


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, and reads 1e-3 as the number that it is everywhere but in YAML 1.1."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _require_json_values(value: object, name: str, pointer: str = "", depth: int = 0) -> None:
    where = f"{name}, at {pointer or 'the top'}"
    if depth > MAX_DEPTH:
        raise BadDocument(f"{name} is nested more than {MAX_DEPTH} levels deep.")
    match value:
        case float() if not math.isfinite(value):
            raise BadDocument(f"{where}: {value} is no number that JSON knows.")
        case None | bool() | int() | float() | str():
            return
        case dict():
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise BadDocument(f"{where}: the key {key!r} is no text; put it in quotes.")
                _require_json_values(inner, name, f"{pointer}/{key}", depth + 1)
        case list():
            for index, inner in enumerate(value):
                _require_json_values(inner, name, f"{pointer}/{index}", depth + 1)
        case _:
            raise BadDocument(f"{where}: a {type(value).__name__} is nothing that JSON knows; put it in quotes.")
