"""Progress as a person sees it: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from app.cli.progress import watching
from secateur_client import Job


def _job(status: str, fraction: float | None = None) -> Job:
    progress: dict[str, Any] | None = None
    if fraction is not None:
        progress = {"phase": "training", "completed": int(fraction * 40), "total": 40, "unit": "steps"}
        progress["fraction"] = fraction
    return Job.model_validate(
        {
            "id": "job_1",
            "kind": "train",
            "display_name": "with L1",
            "status": status,
            "done": status == "succeeded",
            "phase": None if status == "succeeded" else "training",
            "progress": progress,
            "created_at": "2026-01-01T00:00:00Z",
        }
    )


STATES = [_job("queued"), _job("running", 0.25), _job("running", 0.5), _job("succeeded", 1.0)]


def _shown(*, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with watching(console) as show:
        for state in STATES:
            show(state)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_has_a_bar_that_ends_full() -> None:
    shown = Text.from_ansi(_shown(terminal=True)).plain.strip().splitlines()
    assert re.fullmatch(r"with L1 ━{24} succeeded +\d+ s", shown[-1].strip())


@pytest.mark.parametrize("words", ["with L1: queued", "training 10/40 steps", "training 20/40 steps", "succeeded"])
def test_without_a_terminal_each_change_is_a_line(words: str) -> None:
    assert any(words in line for line in _shown(terminal=False).splitlines())
