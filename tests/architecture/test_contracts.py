"""Who may import whom: the contracts of pyproject.toml hold, and each of them notices its violation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import grimp
import pytest


class Violation(NamedTuple):
    contract: str
    importer: str
    imported: str


VIOLATIONS = [
    Violation("app-layers", "app.db.jobs", "app.services.jobs"),
    Violation("app-light", "app.services.jobs", "matplotlib"),
    Violation("contract-small", "app.contract.spec", "sqlalchemy"),
    Violation("client-alone", "app.client", "app.core.settings"),
    Violation("engine-pure", "worker.engine.pipeline", "app.storage"),
    Violation("worker-layers", "worker.heart", "worker.runner"),
    Violation("worker-apart", "worker.runner", "app.services.jobs"),
]


def _lint_imports(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("lint-imports"))
    command = [program, "--no-cache", "--no-logo", *options]
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def _contracts(root: Path) -> list[str]:
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    return [contract["id"] for contract in settings["tool"]["importlinter"]["contracts"]]


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """The sources alone, to be spoilt."""
    for name in ("app", "worker"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(root: Path) -> None:
    done = _lint_imports(root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Contracts: {len(_contracts(root))} kept, 0 broken." in done.stdout


def test_each_contract_has_a_violation_here(root: Path) -> None:
    assert _contracts(root) == [violation.contract for violation in VIOLATIONS]


@pytest.mark.parametrize("violation", VIOLATIONS, ids=lambda violation: violation.contract)
def test_a_planted_violation_is_named(copy: Path, violation: Violation) -> None:
    source = copy.joinpath(*violation.importer.split(".")).with_suffix(".py")
    with source.open("a") as file:
        file.write(f"\nimport {violation.imported}\n")
    done = _lint_imports(copy, "--contract", violation.contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{violation.importer} -> {violation.imported} (l." in done.stdout


def test_the_contract_package_imports_the_standard_library_and_pydantic_alone() -> None:
    graph = grimp.build_graph("app", include_external_packages=True, cache_dir=None)
    modules = {"app.contract", *graph.find_descendants("app.contract")}
    imported = {name for module in modules for name in graph.find_modules_directly_imported_by(module)} - modules
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"pydantic", "pydantic_core"}  # the second is the first one's own, and has its error
