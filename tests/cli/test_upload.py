from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from app.contract.checkpoint import tensors_of
from app.contract.spec import ModelSpec
from tests.cli.conftest import Secateur
from tests.specs import read

MODEL = ModelSpec(channels=(2, 3, 4), hidden=5)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    types = {"F32": np.float32, "I64": np.int64}
    state = {name: np.ones(facts.shape, types[facts.dtype]) for name, facts in tensors_of(MODEL).items()}
    save_file(state, tmp_path / "a network.safetensors")
    return tmp_path / "a network.safetensors"


def test_a_file_is_uploaded_and_the_id_alone_goes_to_standard_output(
    idle: Secateur, idle_http: httpx.Client, checkpoint: Path
) -> None:
    done = idle("upload", checkpoint, "--name", "theirs", "--label", "team=a", "--label", "url=a=b")

    job = read(idle_http, done.out.strip())
    assert (done.code, done.out) == (0, f"{job['id']}\n")
    assert (job["kind"], job["display_name"], job["labels"]) == ("import", "theirs", {"team": "a", "url": "a=b"})
    assert job["spec"]["size"] == checkpoint.stat().st_size
    assert f"secateur wait {job['id']}" in done.err


def test_waiting_shows_the_network_that_was_found(secateur: Secateur, checkpoint: Path) -> None:
    done = secateur("upload", checkpoint, "--wait")

    assert done.code == 0
    assert "channels 2, 3, 4, hidden 5" in done.out
    assert f"of {MODEL.parameters():,}" in done.out
    assert done.err.splitlines()[-1].endswith(": succeeded")


def test_a_wrong_file_is_told_with_the_servers_words(idle: Secateur, checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])

    done = idle("upload", checkpoint)

    assert (done.code, done.out) == (3, "")
    assert "it was cut off" in done.err


def test_a_file_that_is_not_there_is_wrong_usage(idle: Secateur) -> None:
    done = idle("upload", "nowhere.pt")

    assert (done.code, done.out) == (2, "")
    assert "nowhere.pt: No such file or directory." in done.err


@pytest.mark.parametrize("labels", [["team"], ["a=1", "a=2"]])
def test_a_label_is_a_key_and_a_value(idle: Secateur, checkpoint: Path, labels: list[str]) -> None:
    options = [word for label in labels for word in ("--label", label)]

    done = idle("upload", checkpoint, *options)

    assert done.code == 2
    assert "--label" in done.err


def test_the_raw_job_is_there_for_scripts(idle: Secateur, checkpoint: Path) -> None:
    assert json.loads(idle("upload", checkpoint, "--json").out)["kind"] == "import"
