"""The recipes by which the service is built and run, read as their tools read them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml


class Instruction(NamedTuple):
    stage: str
    word: str
    rest: str


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def project(root: Path) -> dict[str, Any]:
    """The section [project] of pyproject.toml."""
    section: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return section


@pytest.fixture(scope="session")
def client(root: Path) -> dict[str, Any]:
    """The same of the client's."""
    section: dict[str, Any] = tomllib.loads((root / "clients/python/pyproject.toml").read_text())["project"]
    return section


@pytest.fixture(scope="session")
def dockerfile(root: Path) -> list[Instruction]:
    """The Dockerfile's instructions, each with the stage that it belongs to."""
    text = re.sub(r"^#.*\n", "", (root / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stage, instructions = "", []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(maxsplit=1)
        stage = rest.split(" AS ")[1] if word == "FROM" else stage
        instructions.append(Instruction(stage, word, " ".join(rest.split())))
    return instructions


@pytest.fixture(scope="session")
def compose(root: Path) -> dict[str, Any]:
    """docker-compose.yml, its anchors resolved."""
    document: dict[str, Any] = yaml.safe_load((root / "docker-compose.yml").read_text())
    return document


@pytest.fixture(scope="session")
def env_example(root: Path) -> dict[str, str]:
    """The variables of .env.example."""
    lines = (root / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
