from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.contract.result import CompareResult, NetworkResult
from tests.engine.conftest import JOBS, Run, run
from tests.engine.few import FEW
from tests.specs import compare_spec, prune_spec, train_spec
from worker.engine import device
from worker.engine.errors import InvalidCheckpoint, InvalidInput

NETWORK = {
    *("model.safetensors", "model.pt", "dense.safetensors", "report.json", "report.csv"),
    *("compact.safetensors", "compact.onnx", "model.onnx", "packed.npz"),
    *("histogram.json", "histogram.png", "manifest.json"),
}


def _names(run: Run) -> set[str]:
    return {path.name for path in run.folder.iterdir()}


def test_each_kind_leaves_its_files(plain: Run, pruned_again: Run, compared: Run) -> None:
    assert _names(plain) == NETWORK | {"metrics.jsonl"}
    assert _names(pruned_again) == NETWORK
    assert _names(compared) == {"comparison.json", "comparison.png", "manifest.json"}


@pytest.mark.parametrize("which", ["plain", "pruned_again", "compared"])
def test_the_manifest_vouches_for_every_other_file(request: pytest.FixtureRequest, which: str) -> None:
    run: Run = request.getfixturevalue(which)

    told = {file.name: (file.size, file.sha256) for file in run.manifest.files}

    assert told.keys() == _names(run) - {"manifest.json"}
    for name, (size, sha256) in told.items():
        content = (run.folder / name).read_bytes()
        assert (size, sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_receipt_tells_what_went_in(plain: Run, pruned_again: Run) -> None:
    receipt, pruned = plain.manifest.receipt, pruned_again.manifest.receipt

    assert receipt.spec["training"]["epochs"] == 2  # type: ignore[index, call-overload]
    assert (receipt.seed, receipt.dataset, receipt.inputs) == (0, "digits", {})
    assert receipt.device == device.choose("auto").type
    assert receipt.versions["torch"] == torch.__version__
    assert receipt.threads == torch.get_num_threads()
    assert receipt.duration_seconds > 0
    dense = hashlib.sha256((plain.folder / "dense.safetensors").read_bytes()).hexdigest()
    assert pruned.inputs == {f"{JOBS['plain']}/dense.safetensors": dense}
    assert pruned.seed is None


def test_the_result_is_the_report_in_short(plain: Run) -> None:
    result, report = plain.result, plain.report

    assert isinstance(result, NetworkResult)
    assert (result.accuracy_before, result.accuracy_after) == (
        report.accuracy_before.accuracy,
        report.accuracy_after.accuracy,
    )
    assert (result.nonzero_before, result.nonzero_after) == (report.total.nonzero_before, report.total.nonzero_after)
    assert result.engine_seconds > 0


def test_an_observer_hears_the_phases_in_order(plain: Run, pruned_again: Run) -> None:
    rest = ["evaluating", "evaluated", "pruning", "evaluating", "evaluated", "reporting", "pruned"]

    assert plain.heard.heard == ["preparing_data", "training", "epoch", "epoch", *rest]
    assert pruned_again.heard.heard == ["preparing_data", *rest]


def test_metrics_have_a_line_an_epoch(plain: Run) -> None:
    lines = [json.loads(line) for line in (plain.folder / "metrics.jsonl").read_text().splitlines()]

    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines == [data for kind, data in plain.heard.records if kind == "epoch"]


def test_without_pruning_both_checkpoints_are_the_same(tmp_path: Path) -> None:
    untouched = run(train_spec(pruning=None, histogram={"tensors": ["fc2.weight"]}), tmp_path / "out", datasets=FEW)

    dense, model = (untouched.folder / f"{name}.safetensors" for name in ("dense", "model"))
    assert dense.read_bytes() == model.read_bytes()
    assert untouched.report.accuracy_after == untouched.report.accuracy_before
    assert (untouched.report.threshold, untouched.report.total.eligible) == (None, 0)
    assert [entry.after for entry in untouched.histogram.tensors] == [None]


@pytest.fixture(scope="module")
def went_on(plain: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training from the plain run's dense network, without pruning and with no tensors to draw."""
    initial = {"job_id": JOBS["plain"], "artifact": "dense.safetensors"}
    spec = train_spec(initial=initial, pruning=None, histogram={"tensors": []})
    return run(spec, tmp_path_factory.mktemp("went_on") / "out", {JOBS["plain"]: plain.folder})


def test_without_tensors_to_draw_there_is_no_picture(went_on: Run) -> None:
    assert "histogram.png" not in _names(went_on)
    assert went_on.histogram.tensors == ()


def test_running_statistics_are_never_pruned(pruned_again: Run) -> None:
    dense, model = (load_file(pruned_again.folder / f"{name}.safetensors") for name in ("dense", "model"))

    statistics = [name for name in dense if "running" in name or "num_batches" in name]
    assert len(statistics) == 9
    assert all(torch.equal(dense[name], model[name]) for name in statistics)


def test_a_pruning_of_the_dense_network_starts_where_the_training_ended(plain: Run, pruned_again: Run) -> None:
    assert pruned_again.report.accuracy_before == plain.report.accuracy_before
    assert pruned_again.report.total.nonzero_after < plain.report.total.nonzero_after
    assert (pruned_again.report.channels, pruned_again.report.hidden) == ((4, 4, 8), 16)


def test_a_training_goes_on_from_a_checkpoint(plain: Run, went_on: Run) -> None:
    first, *_ = [data for kind, data in went_on.heard.records if kind == "epoch"]
    *_, last = [data for kind, data in plain.heard.records if kind == "epoch"]
    assert first["loss"] < last["loss"]  # type: ignore[operator]
    assert list(went_on.manifest.receipt.inputs) == [f"{JOBS['plain']}/dense.safetensors"]


def test_a_comparison_holds_the_reports(plain: Run, l1: Run, compared: Run) -> None:
    document = json.loads((compared.folder / "comparison.json").read_text())

    assert isinstance(compared.result, CompareResult)
    assert [(job["job_id"], job["display_name"]) for job in document["jobs"]] == [
        (JOBS["plain"], "plain"),
        (JOBS["l1"], "l1"),
    ]
    assert [job["report"] for job in document["jobs"]] == [
        json.loads((finished.folder / "report.json").read_text()) for finished in (plain, l1)
    ]


def test_a_checkpoint_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    spec = prune_spec(JOBS["plain"], dataset={"name": "digits"})

    with pytest.raises(InvalidCheckpoint, match=r"dense\.safetensors of job_a+ is missing"):
        run(spec, tmp_path / "out", {JOBS["plain"]: tmp_path / "empty"})
    assert not list((tmp_path / "out").iterdir())


def test_a_document_that_is_gone_or_broken_is_named(plain: Run, l1: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(l1.folder, copy)
    inputs = {JOBS["plain"]: plain.folder, JOBS["l1"]: copy}

    (copy / "histogram.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"histogram\.json of job_b+ does not read"):
        run(compare_spec(*inputs), tmp_path / "broken", inputs)
    (copy / "histogram.json").unlink()
    with pytest.raises(InvalidInput, match=r"job_b+ has no histogram\.json"):
        run(compare_spec(*inputs), tmp_path / "gone", inputs)
