"""What is installed: exact versions, a matching pair of torch and torchvision, and an API side without either."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEAVY = {"torch", "torchvision", "matplotlib", "numpy", "onnx", "onnxruntime", "scikit-learn", "safetensors"}


@pytest.fixture(scope="session")
def pins(root: Path) -> dict[str, str]:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


def _direct(project: dict[str, Any]) -> list[Requirement]:
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_every_direct_dependency_is_pinned_within_its_range(
    project: dict[str, Any], client: dict[str, Any], pins: dict[str, str]
) -> None:
    there = {**pins, client["name"]: client["version"]}
    direct = [*_direct(project), *map(Requirement, client["dependencies"])]
    assert [str(r) for r in direct if not r.specifier.contains(there.get(canonicalize_name(r.name), "0"))] == []


def test_everything_that_comes_along_is_pinned(pins: dict[str, str]) -> None:
    ours = {"secateur", "secateur-client"}
    assert _closure("secateur", {"worker", "local", "dev"}) - ours <= pins.keys()


def test_the_client_is_a_small_package_of_its_own(root: Path, client: dict[str, Any], tmp_path: Path) -> None:
    assert {Requirement(text).name for text in client["dependencies"]} == {"httpx", "pydantic"}
    source = shutil.copytree(root / "clients" / "python", tmp_path / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "-w", str(tmp_path), str(source)], check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    modules = {f"secateur_client/{path.name}" for path in (source / "secateur_client").glob("*.py")}
    assert names == modules | {"secateur_client/py.typed"}


def test_torch_and_torchvision_are_a_pair(pins: dict[str, str]) -> None:
    assert (pins["torch"], pins["torchvision"]) == ("2.15.0", "0.29.2")


def test_the_api_side_comes_without_anything_heavy() -> None:
    assert _closure("secateur", set()) & HEAVY == set()
    assert _closure("secateur", {"worker"}) >= HEAVY


def _closure(name: str, extras: Iterable[str]) -> set[str]:
    """What `pip install name[extras]` brings here, by the metadata of what is installed."""
    wanted, seen = [(canonicalize_name(name), frozenset(extras))], set()
    while wanted:
        package = wanted.pop()
        if package not in seen:
            seen.add(package)
            wanted += _requires(*package)
    return {name for name, _ in seen}


def _requires(name: str, extras: frozenset[str]) -> Iterable[tuple[Any, frozenset[str]]]:
    for requirement in map(Requirement, importlib.metadata.requires(name) or []):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)
