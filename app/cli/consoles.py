"""Where output goes: results to standard output, progress and remarks to standard error.

Neither console interprets markup, since names and messages come from elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import typer
from rich.console import Console, RenderableType

PIPE_WIDTH = 200


@cache
def standard_output() -> Console:
    # In a pipe or a file there is no edge to fold at.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(markup=False, highlight=False, emoji=False, width=width)


@cache
def standard_error() -> Console:
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def show(renderable: RenderableType) -> None:
    standard_output().print(renderable)


def remark(text: str, style: str = "") -> None:
    standard_error().print(text, style=style, soft_wrap=True)


def show_json(resource: Mapping[str, Any] | Sequence[Any]) -> None:
    typer.echo(json.dumps(resource, indent=2, ensure_ascii=False))
