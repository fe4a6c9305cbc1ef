"""What the report says of the compact network, the ONNX models and the classes, recounted from the files."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from app.contract.datasets import DatasetName
from app.contract.network import MNIST_SHAPE, DataShape, layer_positions
from app.contract.spec import ModelSpec
from tests.engine.conftest import Run
from tests.engine.few import ALL
from worker.engine.compact import build, load
from worker.engine.evidence import class_reports, exports, refuse_disagreement
from worker.engine.model import Cnn, fresh
from worker.engine.onnx_graph import check, plain_model
from worker.engine.pixels import scaled
from worker.engine.unpack import unpack

DIGITS = ALL.load(DatasetName.DIGITS)
IMAGES = scaled(DIGITS.test_images)


def _onnx(path: Path) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"images": IMAGES.numpy()})[0]
    return logits


@torch.no_grad()
def _plain(folder: Path) -> NDArray[np.float32]:
    network = Cnn((4, 4, 8), 16)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    logits: NDArray[np.float32] = network.eval()(IMAGES).numpy()
    return logits


@pytest.mark.parametrize("which", ["plain", "l1", "pruned_again"])
def test_every_form_of_the_network_says_the_same(request: pytest.FixtureRequest, which: str) -> None:
    run: Run = request.getfixturevalue(which)
    wanted = _plain(run.folder)

    with torch.no_grad():
        compact = build(load(run.folder / "compact.safetensors"))(IMAGES).numpy()

    for logits in (compact, _onnx(run.folder / "model.onnx"), _onnx(run.folder / "compact.onnx")):
        assert np.abs(logits - wanted).max() < 1e-4 * max(1, np.abs(wanted).max())


def test_the_compact_network_is_counted_as_it_is(l1: Run) -> None:
    told = l1.report.compact
    state = {k: t for k, t in load_file(l1.folder / "compact.safetensors").items() if k != "fc1.inputs"}

    assert told is not None
    assert (told.parameters, told.nonzero) == (
        sum(tensor.numel() for tensor in state.values()),
        sum(int(tensor.count_nonzero()) for tensor in state.values()),
    )
    weights = {name: state[f"{name}.weight"] for name in layer_positions()}
    assert told.macs == sum(count * weights[name].numel() for name, count in layer_positions().items())
    assert told.macs_effective == sum(
        count * int(weights[name].count_nonzero()) for name, count in layer_positions().items()
    )
    assert told.macs_effective <= l1.report.total.macs_nonzero
    assert told.macs < l1.report.total.macs_dense


def test_the_sizes_are_of_the_files(l1: Run) -> None:
    sizes, content = l1.report.sizes, (l1.folder / "compact.safetensors").read_bytes()

    assert sizes.compact is not None
    assert (sizes.compact.raw, sizes.compact.gzipped) == (len(content), len(gzip.compress(content, 6, mtime=0)))
    files = {"packed.npz": sizes.packed, "model.onnx": sizes.model_onnx, "compact.onnx": sizes.compact_onnx}
    assert files == {name: (l1.folder / name).stat().st_size for name in files}


def test_the_packed_file_is_the_compact_network(l1: Run) -> None:
    packed, state = unpack(l1.folder / "packed.npz"), load_file(l1.folder / "compact.safetensors")

    assert packed.keys() == state.keys()
    assert all(np.array_equal(packed[name], tensor.numpy()) for name, tensor in state.items())


def test_the_classes_sum_to_the_accuracies(l1: Run) -> None:
    report = l1.report

    assert [each.label for each in report.classes] == list(range(10))
    for field, accuracy in (("correct_before", report.accuracy_before), ("correct_after", report.accuracy_after)):
        assert sum(getattr(each, field) for each in report.classes) == accuracy.correct
    assert sum(each.total for each in report.classes) == report.accuracy_after.total


def test_a_few_predictions_by_hand() -> None:
    labels, before, after = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 0])

    zero, one = class_reports(labels, before, after)

    assert (zero.label, zero.total, zero.correct_before, zero.correct_after) == (0, 2, 1, 2)
    assert (one.label, one.total, one.correct_before, one.correct_after) == (1, 2, 2, 1)
    assert (one.accuracy_before, one.accuracy_after) == (1.0, 0.5)


def test_agreement_is_the_share_of_equal_answers(l1: Run) -> None:
    network = Cnn((4, 4, 8), 16)
    network.load_state_dict(load_file(l1.folder / "dense.safetensors"))
    with torch.no_grad():
        dense = network.eval()(IMAGES).numpy().argmax(1)

    assert l1.report.agreement == pytest.approx((dense == _plain(l1.folder).argmax(1)).mean())


def test_latency_names_its_conditions(plain: Run) -> None:
    told = plain.report.latency

    assert told is not None
    assert told.threads == 1
    assert re.fullmatch(r"onnxruntime \d+\.\d+\.\d+", told.runtime)
    assert told.cpu
    assert [(each.model, each.batch) for each in told.measured] == [
        *[("dense", 1), ("compact", 1), ("dense", 64), ("compact", 64)]
    ]
    assert all(0 < each.median_ms <= each.p95_ms and each.runs > 0 for each in told.measured)


DOCS = Path(__file__).parents[2] / "docs" / "pruning.md"


def test_the_code_in_the_docs_loads_the_compact_network(l1: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first, second = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    monkeypatch.chdir(l1.folder)
    there: dict[str, object] = {}

    exec(first, there)

    logits = there["logits"]
    assert callable(logits)
    with torch.no_grad():
        found = logits(IMAGES).numpy()
    assert np.abs(found - _plain(l1.folder)).max() < 1e-4 * np.abs(found).max()
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "worker" / "engine"))
    exec(second, there)
    state = there["state"]
    assert isinstance(state, dict)
    compact = load_file("compact.safetensors")
    assert state.keys() == compact.keys()
    assert all(np.array_equal(state[name], tensor.numpy()) for name, tensor in compact.items())


def test_an_ill_conditioned_network_is_exported_and_no_failure(plain: Run) -> None:
    """Next to a bias of 1000, float32 holds little of what these kernels give, and BatchNorm takes the bias away."""
    state = load_file(plain.folder / "dense.safetensors")
    state["layer1.0.weight"] *= 1e-3
    state["layer1.0.bias"] += 1000
    state["layer1.1.running_mean"] = 1e-3 * state["layer1.1.running_mean"] + 1000
    state["layer1.1.running_var"] *= 1e-6

    told = exports(ModelSpec(channels=(4, 4, 8), hidden=16), MNIST_SHAPE, state, state, IMAGES[:8])

    assert max(told.compact.differences.values()) > 1e-3
    assert set(told.files) == {"compact.safetensors", "compact.onnx", "model.onnx", "packed.npz"}


def test_every_form_of_a_network_takes_the_images_of_its_data_set(tmp_path: Path) -> None:
    model, shape = ModelSpec(channels=(2, 3, 4), hidden=5), DataShape(channels=3, height=10, width=13, classes=4)
    state = fresh(model, 0, shape.ends).state_dict()
    state["fc1.weight"][:, ::3] = 0
    images = torch.rand(8, 3, 10, 13, generator=torch.Generator().manual_seed(0))

    told = exports(model, shape, state, state, images)

    for name in ("model.onnx", "compact.onnx"):
        session = onnxruntime.InferenceSession(told.files[name], providers=["CPUExecutionProvider"])
        assert (session.get_inputs()[0].shape, session.get_outputs()[0].shape) == (["N", 3, 10, 13], ["N", 4])
    (tmp_path / "compact.safetensors").write_bytes(told.files["compact.safetensors"])
    again = load(tmp_path / "compact.safetensors")
    assert (again.widths.shape, again.macs, again.widths.gathers) == (shape, told.compact.macs, True)
    assert told.compact.macs < model.macs(shape)


def test_a_wrong_graph_is_told_from_rounding(plain: Run) -> None:
    state = load_file(plain.folder / "dense.safetensors")
    network, images = Cnn((4, 4, 8), 16), IMAGES[:8]
    network.load_state_dict(state)
    network.eval()
    right, wrong = plain_model(state), plain_model(state | {"fc2.bias": state["fc2.bias"] + 0.1})

    refuse_disagreement({"model.onnx": check(right, network, images)}, network, images)
    with pytest.raises(RuntimeError, match=r"model\.onnx computes another function"):
        refuse_disagreement({"model.onnx": check(wrong, network, images)}, network, images)
