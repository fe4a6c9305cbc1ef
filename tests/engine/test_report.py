from __future__ import annotations

import csv
import gzip
import io
import json

import jsonschema
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from app.contract.network import PARAMETER_NAMES
from app.contract.pruning import ThresholdPruning
from app.contract.report import SCHEMAS, Report
from tests.engine.conftest import Run
from worker.engine.pruning import Mask
from worker.engine.report import layer_reports, tensor_reports, to_csv, total_report


def _ten_weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    before = {name: torch.zeros(1) for name in PARAMETER_NAMES}
    before["fc1.weight"] = torch.tensor([[0.5, -0.005], [0.0, 2.0]])
    before["fc1.bias"] = torch.tensor([0.001, -0.002])
    after = dict(before)
    after["fc1.weight"] = torch.tensor([[0.5, 0.0], [0.0, 2.0]])
    after["fc1.bias"] = torch.zeros(2)
    return before, after


def test_a_network_of_a_few_weights_by_hand() -> None:
    pruning = ThresholdPruning(method="threshold", parameters=("weight", "bias"), layers=("linear",))

    mask = Mask({name: after != 0 for name, after in _ten_weights()[1].items()})
    tensors = tensor_reports(*_ten_weights(), pruning, mask, {"fc1.weight": 0.01, "fc1.bias": 0.01})
    by_name = {tensor.name: tensor for tensor in tensors}
    layers = {layer.name: layer for layer in layer_reports(tensors)}
    total = total_report(tensors, list(layers.values()))

    weight, bias, other = by_name["fc1.weight"], by_name["fc1.bias"], by_name["layer1.0.bias"]
    assert (weight.total, weight.nonzero_before, weight.nonzero_after, weight.sparsity) == (4, 3, 2, 0.5)
    assert weight.min == pytest.approx(-0.005)
    assert (weight.max, weight.threshold, weight.emptied) == (2.0, 0.01, False)
    assert (bias.emptied, bias.sparsity) == (True, 1.0)
    assert (other.eligible, other.threshold, other.emptied) == (False, None, False)
    assert (weight.masked, bias.masked, other.masked) == (2, 2, 1)
    assert (layers["fc1"].total, layers["fc1"].nonzero_after, layers["fc1"].macs_nonzero) == (6, 2, 2)
    assert (total.parameters, total.nonzero_before, total.nonzero_after) == (20, 5, 2)
    # Of fc1 and fc2 alone: 4 + 2 + 1 + 1 entries.
    assert (total.eligible, total.eligible_nonzero_before, total.eligible_nonzero_after) == (8, 5, 2)
    assert (total.eligible_sparsity, total.masked, layers["fc1"].masked) == (0.75, 18, 4)
    assert total.emptied == ("fc1.bias",)


@pytest.mark.parametrize("which", ["plain", "l1", "pruned_again"])
def test_a_report_can_be_recounted_from_the_checkpoints(request: pytest.FixtureRequest, which: str) -> None:
    run: Run = request.getfixturevalue(which)
    dense, model = load_file(run.folder / "dense.safetensors"), load_file(run.folder / "model.safetensors")

    for tensor in run.report.tensors:
        before, after = dense[tensor.name], model[tensor.name]
        assert tensor.shape == tuple(before.shape)
        assert (tensor.nonzero_before, tensor.nonzero_after) == (int((before != 0).sum()), int((after != 0).sum()))
        assert (tensor.min, tensor.max) == (float(before.min()), float(before.max()))
        assert tensor.emptied == bool(before.any() and not after.any())
    total = run.report.total
    assert total.nonzero_after == sum(int((model[name] != 0).sum()) for name in PARAMETER_NAMES)
    assert total.sparsity == (total.parameters - total.nonzero_after) / total.parameters


def test_l1_empties_tensors_and_the_report_names_them(l1: Run) -> None:
    model = load_file(l1.folder / "model.safetensors")

    assert l1.report.total.emptied
    assert set(l1.report.total.emptied) == {name for name in PARAMETER_NAMES if not model[name].any()}


@pytest.mark.parametrize("which", ["plain", "l1", "pruned_again"])
def test_layers_and_total_are_sums(request: pytest.FixtureRequest, which: str) -> None:
    report: Report = request.getfixturevalue(which).report

    for field in ("nonzero_before", "nonzero_after"):
        of_tensors = sum(getattr(tensor, field) for tensor in report.tensors)
        assert sum(getattr(layer, field) for layer in report.layers) == of_tensors == getattr(report.total, field)
    for field in ("macs_dense", "macs_nonzero"):
        assert sum(getattr(layer, field) for layer in report.layers) == getattr(report.total, field)
    assert report.total.macs_nonzero < report.total.macs_dense


def test_multiplications_of_nonzero_weights_are_counted_at_every_position(plain: Run) -> None:
    model = load_file(plain.folder / "model.safetensors")
    positions = {"layer1.0": 28 * 28, "layer2.0": 28 * 28, "layer3.0": 14 * 14, "fc1": 1, "fc2": 1}

    told = {layer.name: layer.macs_nonzero for layer in plain.report.layers if layer.layer_kind != "batchnorm"}

    assert told == {name: count * int((model[f"{name}.weight"] != 0).sum()) for name, count in positions.items()}


def test_sizes_are_of_the_files(plain: Run) -> None:
    for told, name in (
        (plain.report.sizes.dense, "dense.safetensors"),
        (plain.report.sizes.pruned, "model.safetensors"),
    ):
        content = (plain.folder / name).read_bytes()
        assert (told.raw, told.gzipped) == (len(content), len(gzip.compress(content, 6, mtime=0)))


def test_the_table_holds_every_tensor(plain: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(plain.report.tensors))))

    assert [row["name"] for row in rows] == list(PARAMETER_NAMES)
    assert rows[0]["shape"] == "4×1×5×5"
    assert [float(row["sparsity"]) for row in rows] == [tensor.sparsity for tensor in plain.report.tensors]


@pytest.mark.parametrize(
    ("which", "file", "schema"),
    [
        ("plain", "report.json", "report"),
        ("pruned_again", "report.json", "report"),
        ("plain", "histogram.json", "histogram"),
        ("plain", "manifest.json", "manifest"),
        ("compared", "manifest.json", "manifest"),
        ("compared", "comparison.json", "comparison"),
    ],
)
def test_documents_keep_their_published_schema(
    request: pytest.FixtureRequest, which: str, file: str, schema: str
) -> None:
    run: Run = request.getfixturevalue(which)

    document = json.loads((run.folder / file).read_bytes())

    jsonschema.validate(document, SCHEMAS[schema].model_json_schema(mode="serialization"))
