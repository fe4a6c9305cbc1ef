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
    Violation("client-alone", "secateur_client.client", "app.core.settings"),
    Violation("engine-pure", "worker.engine.pipeline", "app.storage"),
    Violation("worker-layers", "worker.heart", "worker.runner"),
    Violation("worker-apart", "worker.runner", "app.services.jobs"),
]

CLIENT = "clients/python"


def _lint_imports(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("lint-imports"))
    command = [program, "--no-cache", "--no-logo", *options]
    path = os.pathsep.join([str(folder), str(folder / CLIENT)])
    environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def _contracts(root: Path) -> list[str]:
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    return [contract["id"] for contract in settings["tool"]["importlinter"]["contracts"]]


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """The sources alone, to be spoilt."""
    for name in ("app", "worker", CLIENT):
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
    folder = copy / CLIENT if violation.importer.startswith("secateur_client") else copy
    source = folder.joinpath(*violation.importer.split(".")).with_suffix(".py")
    with source.open("a") as file:
        file.write(f"\nimport {violation.imported}\n")
    done = _lint_imports(copy, "--contract", violation.contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{violation.importer} -> {violation.imported} (l." in done.stdout


@pytest.mark.parametrize(
    ("package", "needed"),
    [
        ("app.contract", {"pydantic", "pydantic_core"}),  # the second is the first one's own, and has its error
        ("secateur_client", {"httpx", "pydantic"}),
    ],
)
def test_a_small_package_imports_the_standard_library_and_little_else(package: str, needed: set[str]) -> None:
    graph = grimp.build_graph(package.split(".")[0], include_external_packages=True, cache_dir=None)
    modules = {package, *graph.find_descendants(package)}
    imported = {name for module in modules for name in graph.find_modules_directly_imported_by(module)} - modules
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign == needed
