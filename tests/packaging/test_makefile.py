"""`make` tells what it can do, and sets up again only when there is a reason."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

TARGETS = [
    *(
        "help",
        "setup",
        "demo",
        "test",
        "acceptance",
        "chaos",
        "fuzz",
        "bench",
        "frontier",
        "recount",
        "lint",
        "types",
        "openapi",
        "up",
        "clean",
    ),
]


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """What set-up looks at, under a name with spaces."""
    folder = tmp_path / "a checkout somewhere"
    folder.mkdir()
    (folder / "clients" / "python").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "clients/python/pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, folder / name)
    return folder


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without what an outer make, such as the one that runs these tests, tells an inner one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_make_alone_lists_every_target(checkout: Path) -> None:
    done = _make(checkout)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^  (\S+) +\S", done.stdout, re.MULTILINE) == TARGETS


def test_a_python_that_is_too_old_is_refused_in_a_sentence(checkout: Path) -> None:
    done = _make(checkout, "setup", "PYTHON=false")
    assert done.returncode == 2
    assert "false is not a Python of 3.11 or newer." in done.stderr
    assert not (checkout / ".venv").exists()


def test_no_python_at_all_is_told(checkout: Path) -> None:
    done = _make(checkout, "setup", "PYTHON=")
    assert done.returncode == 2
    assert "No Python of 3.11 or newer found." in done.stderr


@pytest.mark.parametrize("cause", ["pyproject.toml", "clients/python/pyproject.toml", "constraints.txt"])
def test_set_up_is_done_once_and_again_when_its_files_change(checkout: Path, cause: str) -> None:
    assert _make(checkout, "--question", "setup").returncode == 1
    stamp = checkout / ".venv" / "installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert _make(checkout, "--question", "setup").returncode == 0
    later = stamp.stat().st_mtime + 1
    os.utime(checkout / cause, (later, later))
    assert _make(checkout, "--question", "setup").returncode == 1


def test_the_demo_takes_a_data_folder_with_a_space(checkout: Path) -> None:
    program = checkout / ".venv" / "bin" / "secateur"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\n')
    program.chmod(0o755)
    (checkout / ".venv" / "installed").touch()
    assert _make(checkout, "demo").stdout.split("\n") == ["<demo>", "<--dataset>", "<digits>", ""]
    words = ["<demo>", "<--dataset>", "<mnist>", "<--data-dir>", "<the data's own>"]
    assert _make(checkout, "demo", "DATASET=mnist", "DATA_DIR=the data's own").stdout.splitlines() == words


def test_ci_runs_what_a_person_runs(root: Path) -> None:
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = script.read_text().splitlines()[-3:]
    assert commands[0] == "make test"
    assert [command.split(" SEED")[0] for command in commands[1:]] == [
        "make acceptance",
        "make chaos",
    ]
