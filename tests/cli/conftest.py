"""The command line as users have it: a process of its own, told by its environment where the server is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from app.local import Stack
from secateur_client import Client
from tests.command import Done, run
from tests.specs import Document

COMMAND = [sys.executable, "-m", "app.cli"]


class Secateur(NamedTuple):
    """Runs commands in a folder, under these variables and no others of ours."""

    folder: Path
    variables: dict[str, str]

    def __call__(self, *arguments: object, stdin: str | bytes = "") -> Done:
        given = stdin.encode() if isinstance(stdin, str) else stdin
        return run(*arguments, folder=self.folder, environment=self._environment(), stdin=given)

    def started(self, *arguments: object) -> subprocess.Popen[str]:
        """A command that still runs."""
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _environment(self) -> dict[str, str]:
        # The width of the tests' own terminal, which not every way to start them sets, is not the command's.
        return {name: value for name, value in os.environ.items() if name != "COLUMNS"} | dict(self.variables)

    def told(self, **variables: str) -> Secateur:
        return Secateur(self.folder, {**self.variables, **variables})


@pytest.fixture
def nowhere(tmp_path: Path) -> Secateur:
    """Knows of no server."""
    return Secateur(tmp_path, {})


@pytest.fixture
def secateur(nowhere: Secateur, service: Stack) -> Secateur:
    return nowhere.told(SECATEUR_URL=service.url, SECATEUR_API_KEY=service.api_key)


@pytest.fixture
def idle(nowhere: Secateur, idle_service: Stack) -> Secateur:
    """Its server has no worker: what is queued stays queued."""
    return nowhere.told(SECATEUR_URL=idle_service.url, SECATEUR_API_KEY=idle_service.api_key)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Document], Path]:
    """Writes a spec to a file."""

    def write(spec: Document) -> Path:
        path = tmp_path / "a spec.json"
        path.write_text(json.dumps(spec))
        return path

    return write


@pytest.fixture
def idle_client(idle_service: Stack) -> Client:
    return Client(idle_service.url, idle_service.api_key)
