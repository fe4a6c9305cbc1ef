from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from tests.cli.conftest import Secateur
from tests.specs import Document, read, sweep_spec, train_spec

Write = Callable[[Document], Path]


@pytest.mark.parametrize(("name", "dump"), [("spec.json", json.dumps), ("spec.yaml", yaml.safe_dump)])
def test_a_file_is_submitted_and_the_id_alone_goes_to_standard_output(
    idle: Secateur, idle_http: httpx.Client, name: str, dump: Callable[[Document], str]
) -> None:
    (idle.folder / name).write_text(dump(train_spec(display_name=name)))

    done = idle("submit", name)

    job = read(idle_http, done.out.strip())
    assert (done.code, done.out) == (0, f"{job['id']}\n")
    assert (job["display_name"], job["spec"]["training"]["epochs"]) == (name, 1)
    assert f"secateur wait {job['id']}" in done.err


@pytest.mark.parametrize("dump", [json.dumps, yaml.safe_dump])
def test_standard_input_may_be_json_or_yaml(idle: Secateur, dump: Callable[[Document], str]) -> None:
    job = idle("submit", "-", "--json", stdin=dump(train_spec(labels={"from": "stdin"}))).document()
    assert (job["status"], job["labels"]) == ("queued", {"from": "stdin"})


def test_a_download_waits_and_brings_every_artifact_with_its_digest(
    secateur: Secateur, http: httpx.Client, write: Write
) -> None:
    job = secateur("submit", write(train_spec()), "--download", "some where", "--json").document()

    assert (job["status"], job["done"]) == ("succeeded", True)
    listed = http.get(job["links"]["artifacts"]).json()["items"]
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (secateur.folder / "some where").iterdir()
    }
    assert found == {artifact["name"]: artifact["sha256"] for artifact in listed}


def test_waiting_tells_the_progress_on_standard_error_and_the_result_on_standard_output(
    secateur: Secateur, http: httpx.Client, write: Write
) -> None:
    done = secateur("submit", write(train_spec(display_name="mine")), "--wait")

    assert done.code == 0
    assert done.err.splitlines()[0] == "mine: queued" or done.err.startswith("mine: running")
    assert done.err.splitlines()[-1] == "mine: succeeded"
    job_id = done.out.split()[1]
    result = read(http, job_id)["result"]
    assert f"({100 * result['sparsity']:.2f} % sparse)" in done.out


def test_a_sweep_is_followed_by_its_members_and_brings_its_frontier(
    secateur: Secateur, write: Write, tmp_path: Path
) -> None:
    spec = sweep_spec(display_name="far", grid={"seeds": [1, 2]})
    done = secateur("submit", write(spec), "--download", tmp_path / "out")
    assert done.code == 0, done.err
    assert re.search(r"far: waiting, [01]/2 members", done.err)
    assert re.search(r"members +2: 2 succeeded", done.out)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"frontier.csv", "frontier.json", "frontier.png", "manifest.json"}


def test_waiting_for_a_job_that_fails_exits_with_1_and_says_why(idle: Secateur, write: Write) -> None:
    done = idle("submit", write(train_spec(limits={"max_queue_seconds": 1})), "--wait")

    assert done.code == 1
    assert "failed" in done.out
    assert "(queue_timeout)" in " ".join(done.out.split())


def test_waiting_for_a_job_that_is_cancelled_exits_with_1(idle: Secateur, idle_http: httpx.Client) -> None:
    job_id = idle("submit", "-", stdin=json.dumps(train_spec())).out.strip()
    with idle.started("wait", job_id) as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == f"{job_id}: queued\n"
        idle_http.post(f"/v1/jobs/{job_id}/cancel")
        out, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert "cancelled" in out


def test_what_is_only_validated_is_estimated_and_not_submitted(
    idle: Secateur, idle_http: httpx.Client, write: Write
) -> None:
    newest = idle("list", "--limit", 1, "--json").document()
    done = idle("submit", write({"kind": "train", "dataset": {"name": "digits"}}), "--validate-only")

    assert done.code == 0
    assert "481,214" in done.out
    assert "3,496,504" in done.out
    assert idle("list", "--limit", 1, "--json").document() == newest


def test_an_unknown_field_is_named_with_its_place_and_what_was_meant(idle: Secateur, write: Write) -> None:
    done = idle("submit", write(train_spec(training={"epochs": 1, "bacth_size": 10})))

    assert (done.code, done.out) == (3, "")
    assert "/training/bacth_size: " in done.err
    assert "did you mean 'batch_size'" in done.err
    assert "Traceback" not in done.err


def test_every_error_of_a_spec_is_told(idle: Secateur, write: Write) -> None:
    done = idle("submit", write({"kind": "train", "dataset": {"name": "cifar"}, "training": {"epochs": 0}}))

    assert done.code == 3
    assert "/dataset/name: " in done.err
    assert "/training/epochs: " in done.err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("spec.json", '{"kind": }', "line 1, column 10"),
        ("spec.json", '{"kind": "train", "kind": "prune"}', "'kind' is given twice"),
        ("spec.json", '{"threshold": NaN}', "NaN is no number"),
        ("spec.json", '["train"]', "must hold one object"),
        ("spec.json", "[" * 100_000, "nested too deeply"),
        ("spec.yaml", "kind: train\nkind: prune\n", "line 2, column 1: 'kind' is given twice"),
        ("spec.yaml", "kind: [train\n", "line 2, column 1"),
        ("spec.yaml", "training: {learning_rate: .inf}", "at /training/learning_rate: inf is no number"),
        ("spec.yaml", "labels: {day: 2026-01-31}", "at /labels/day: a date is nothing that JSON knows"),
        ("spec.yaml", "labels: {1: one}", "at /labels: the key 1 is no text"),
        ("spec.yaml", "!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_a_document_that_is_no_spec_is_refused_with_its_place(
    nowhere: Secateur, name: str, text: str, said: str
) -> None:
    (nowhere.folder / name).write_text(text)
    done = nowhere("submit", name)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(name)
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_file_that_is_missing_or_no_text_is_refused(nowhere: Secateur) -> None:
    (nowhere.folder / "spec.json").write_bytes(b'{"kind": "\xff"}')
    assert nowhere("submit", "spec.json") == (2, "", "spec.json is not UTF-8: byte 10 is no part of a character.\n")
    assert nowhere("submit", "none.json") == (2, "", "none.json cannot be read: No such file or directory.\n")


def test_yaml_reads_a_number_with_an_exponent_as_a_number(idle: Secateur) -> None:
    spec = "{kind: train, dataset: {name: digits}, regularization: {penalty: l1, strength: 1e-3}}"
    job = idle("submit", "-", "--json", stdin=spec).document()
    assert job["spec"]["regularization"]["strength"] == 0.001
