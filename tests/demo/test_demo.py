"""The demo as users start it. One run: it trains twice."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from app.contract.report import Comparison, Manifest, Report
from app.demo import FOLDERS

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]
COMMAND = [sys.executable, "-m", "app.cli", "demo"]


class Ran(NamedTuple):
    output: Path
    said: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    output = tmp_path_factory.mktemp("demo") / "output of it"
    done = _demo(output, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return Ran(output, done.stdout)


def _demo(output: Path, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "--output", str(output), *arguments]
    environment = {**os.environ, "TMPDIR": str(output.parent)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def _cells(ran: Ran, name: str) -> list[str]:
    """The figures of a row of the table."""
    [line] = [line for line in ran.said.splitlines() if line.startswith(f"│ {name} ")]
    return [cell.strip() for cell in line.strip("│").split("│")[1:]]


def test_the_table_says_what_the_reports_say(ran: Ran) -> None:
    reports = [Report.model_validate_json((ran.output / folder / "report.json").read_bytes()) for folder in FOLDERS[:2]]

    assert _cells(ran, "L1 penalty β") == ["none", "0.001"]
    for name, figures in {
        "accuracy before pruning": [f"{100 * report.accuracy_before.accuracy:.2f} %" for report in reports],
        "accuracy after pruning": [f"{100 * report.accuracy_after.accuracy:.2f} %" for report in reports],
        "non-zeros before pruning": [f"{report.total.nonzero_before:,}" for report in reports],
        "non-zeros after pruning": [f"{report.total.nonzero_after:,}" for report in reports],
        "sparsity": [f"{100 * report.total.sparsity:.2f} %" for report in reports],
    }.items():
        assert _cells(ran, name) == figures
    for report in reports:
        assert all(name in ran.said for name in report.total.emptied)


def test_l1_makes_the_network_sparse_and_leaves_it_its_accuracy(ran: Ran) -> None:
    plain, l1 = (float(cell.removesuffix(" %")) for cell in _cells(ran, "sparsity"))
    assert plain < 60
    assert l1 > 90
    assert all(float(cell.removesuffix(" %")) > 90 for cell in _cells(ran, "accuracy after pruning"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_holds_what_its_manifest_says_and_nothing_else(ran: Ran, folder: str) -> None:
    manifest = Manifest.model_validate_json((ran.output / folder / "manifest.json").read_bytes())

    said = {file.name: file.sha256 for file in manifest.files}
    found = {path.name: path for path in (ran.output / folder).iterdir()}
    assert set(found) == {*said, "manifest.json"}
    assert {name: hashlib.sha256(found[name].read_bytes()).hexdigest() for name in said} == said


def test_the_third_job_compares_the_first_two(ran: Ran) -> None:
    comparison = Comparison.model_validate_json((ran.output / "comparison" / "comparison.json").read_bytes())

    assert [job.display_name for job in comparison.jobs] == ["without L1", "with L1"]
    for job, folder in zip(comparison.jobs, FOLDERS, strict=False):
        assert job.report == Report.model_validate_json((ran.output / folder / "report.json").read_bytes())


def test_the_pictures_it_names_are_there(ran: Ran) -> None:
    named = [Path(line.strip()) for line in ran.said.splitlines() if line.endswith(".png")]
    assert len(named) == 3
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in named)


def test_it_took_what_it_said_and_left_nothing_behind(ran: Ran) -> None:
    assert re.search(r"Done in \d+ s\.", ran.said)
    left = {path.name for path in ran.output.parent.iterdir()}
    assert {name for name in left if not name.startswith("torchinductor_")} == {ran.output.name}  # that is PyTorch's
    assert sorted(path.name for path in ran.output.iterdir()) == sorted(FOLDERS)


def test_a_folder_that_no_demo_made_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "thesis.txt").write_text("mine")

    done = _demo(tmp_path)

    assert done.returncode == 2
    assert "choose another folder with --output" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["comparison"]


def test_an_unknown_data_set_is_refused_with_those_there_are(tmp_path: Path) -> None:
    done = _demo(tmp_path / "out", "--dataset", "cifar10")
    assert done.returncode == 2
    assert "There is no data set 'cifar10'; there are: digits, mnist" in done.stdout


def test_data_that_is_missing_ends_it_with_the_files_expected(tmp_path: Path) -> None:
    done = _demo(tmp_path / "out", "--dataset", "mnist", "--data-dir", str(tmp_path), timeout=120)
    assert done.returncode == 1
    assert "did not succeed" in done.stdout
    assert "train-images-idx3-ubyte" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
