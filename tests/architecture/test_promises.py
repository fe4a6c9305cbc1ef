"""The table in docs/api.md names a test for each promise, and every one of them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

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


def _functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
