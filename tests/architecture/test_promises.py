"""Tables in the docs: a promise of docs/api.md names tests that are there, each setting has its true default."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from pydantic.fields import FieldInfo

from app.core.limits import UNLIMITED
from app.core.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
TEST = re.compile(r"`(tests/[a-z_/]+\.py)::(test_\w+)`")


def test_every_promise_is_held_by_a_test_that_is_there() -> None:
    _, _, table = (ROOT / "docs/api.md").read_text().partition("| promise | held by |\n| --- | --- |\n")
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) > 25

    for promise, held_by in rows:
        named = TEST.findall(held_by)
        assert named, promise
        assert TEST.sub("", held_by).strip(" |") == "", promise
        for path, name in named:
            assert name in _functions(ROOT / path), (path, name)


def test_every_setting_is_told_with_its_default() -> None:
    rows = re.findall(rf"^\| `{PREFIX}(\w+)` \| `?(.*?)`? \|", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    told = {name.lower(): default for name, default in rows}
    assert told == {name: _written(field) for name, field in Settings.model_fields.items()} | {
        "worker_threads": "all cores"
    }


def _written(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    match field.default:
        case bool(given):
            return str(given).lower()
        case int(given) | float(given) if given != UNLIMITED:
            return f"{given:.15g}"
        case None | int():
            return "none"
        case given:
            return str(given)


def _functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
