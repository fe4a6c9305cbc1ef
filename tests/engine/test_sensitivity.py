from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from app.contract.datasets import DatasetName
from app.contract.pruning import WEIGHT_MATRICES, share_of
from app.contract.report import Sensitivity
from app.contract.spec import SensitivitySpec
from tests.engine.conftest import JOBS, Listener, Run, run
from tests.engine.few import ALL, FEW
from tests.specs import prune_spec, train_spec
from worker.engine.evaluate import evaluate
from worker.engine.model import Cnn
from worker.engine.sensitivity import sensitivity

DIGITS = ALL.load(DatasetName.DIGITS)


def _network(folder: Path) -> Cnn:
    network = Cnn((4, 4, 8), 16)
    network.load_state_dict(load_file(folder / "dense.safetensors"))
    return network


def _read(told: Run) -> Sensitivity:
    return Sensitivity.model_validate_json((told.folder / "sensitivity.json").read_bytes())


def test_each_point_is_the_accuracy_with_one_tensor_pruned_by_hand(plain: Run) -> None:
    network, images, labels = _network(plain.folder), DIGITS.test_images, DIGITS.test_labels

    told = sensitivity(
        network, SensitivitySpec(sparsities=(0.9, 0.5)), images, labels, validation=False, observer=Listener()
    )

    assert told.accuracy == plain.report.accuracy_before.accuracy
    assert [tensor.name for tensor in told.tensors] == list(WEIGHT_MATRICES)
    for tensor in told.tensors:
        for point in tensor.points:
            by_hand = _network(plain.folder)
            weight = by_hand.get_parameter(tensor.name)
            least = weight.abs().flatten().argsort(stable=True)[: share_of(weight.numel(), point.sparsity)]
            with torch.no_grad():
                weight.view(-1)[least] = 0
            assert point.nonzero == int(weight.count_nonzero())
            assert point.accuracy == evaluate(by_hand, images, labels, Listener()).accuracy.accuracy


def test_the_network_stays_as_it_was(plain: Run) -> None:
    network = _network(plain.folder)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    spec = SensitivitySpec(sparsities=(0.9,))
    sensitivity(network, spec, DIGITS.test_images, DIGITS.test_labels, validation=False, observer=Listener())

    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_it_is_of_the_network_before_its_pruning_on_images_that_choose_nothing(plain: Run, tmp_path: Path) -> None:
    wanted = {"sparsities": [0.5, 0.99]}
    on_test = prune_spec(JOBS["plain"], dataset={"name": "digits"}, sensitivity=wanted)
    told = run(on_test, tmp_path / "prune", {JOBS["plain"]: plain.folder}, datasets=FEW)

    assert (_read(told).images, _read(told).count) == ("test", 100)
    assert _read(told).accuracy == told.report.accuracy_before.accuracy
    assert (told.folder / "sensitivity.png").read_bytes().startswith(b"\x89PNG")

    dataset = {"name": "digits", "validation_images": 60}
    validated = run(train_spec(dataset=dataset, sensitivity=wanted), tmp_path / "train", datasets=FEW)
    assert (_read(validated).images, _read(validated).count) == ("validation", 60)


def test_progress_is_of_the_whole(plain: Run) -> None:
    heard = Listener()

    spec = SensitivitySpec(sparsities=(0.5, 0.9))
    sensitivity(_network(plain.folder), spec, DIGITS.test_images, DIGITS.test_labels, validation=False, observer=heard)

    assert [step for step, _, _ in heard.steps] == list(range(1, 12))
    assert {total for _, total, _ in heard.steps} == {11}


def test_without_the_option_there_is_no_such_file(plain: Run) -> None:
    assert not (plain.folder / "sensitivity.json").exists()
