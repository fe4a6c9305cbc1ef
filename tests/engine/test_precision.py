"""Training in bf16, which any processor computes; whether it is allowed is another matter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from app.contract.datasets import DatasetName
from app.contract.spec import ModelSpec
from app.contract.training import Precision, TrainingSpec
from tests.engine.conftest import Listener, run
from tests.engine.few import ALL
from tests.specs import train_spec
from worker.engine import device, resume
from worker.engine.errors import DeviceUnavailable
from worker.engine.evaluate import evaluate
from worker.engine.model import Cnn, fresh
from worker.engine.observer import Observer
from worker.engine.plan import Course
from worker.engine.progress import Progress
from worker.engine.resume import TrainingState
from worker.engine.seeding import reproducible
from worker.engine.train import Examples, train

DIGITS = ALL.load(DatasetName.DIGITS)
EXAMPLES = Examples(
    DIGITS.train_images[:250], DIGITS.train_labels[:250], DIGITS.train_images[:0], DIGITS.train_labels[:0]
)
CPU = torch.device("cpu")


def _train(
    precision: Precision, observer: Observer | None = None, resumed: TrainingState | None = None
) -> tuple[dict[str, Tensor], Progress]:
    network = fresh(ModelSpec(channels=(2, 3, 4), hidden=8), 1)
    progress = resumed.progress if resumed is not None else Progress()
    course = Course(TrainingSpec(epochs=3, precision=precision))
    with reproducible(CPU):
        device.place(network, CPU)
        train(network, EXAMPLES, course, progress, observer or Observer(), resumed=resumed)
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}, progress


def test_it_learns_about_the_same_and_keeps_its_weights_in_float32() -> None:
    (narrow, told), (wide, expected) = _train("bf16"), _train("float32")

    assert [each.loss for each in told.history] == pytest.approx([each.loss for each in expected.history], rel=0.02)
    assert all(narrow[name].dtype == tensor.dtype for name, tensor in wide.items())
    assert not torch.equal(narrow["fc1.weight"], wide["fc1.weight"])


class _Keeper(Observer):
    def __init__(self, after: int, path: Path) -> None:
        self._left, self._path = after, path

    def checkpoint(self, state: Callable[[], TrainingState], epoch_ended: bool) -> None:
        self._left -= 1
        if self._left == 0:
            self._path.write_bytes(state().to_bytes())


@pytest.mark.parametrize("step", [2, 4])
def test_it_repeats_and_goes_on_to_the_same_bits(tmp_path: Path, step: int) -> None:
    whole, _ = _train("bf16", _Keeper(step, tmp_path / "state"))

    again, _ = _train("bf16")
    gone_on, _ = _train("bf16", resumed=resume.load(tmp_path / "state"))

    for other in (again, gone_on):
        assert all(torch.equal(tensor, other[name]) for name, tensor in whole.items())


def _processor_with(monkeypatch: pytest.MonkeyPatch, folder: Path, flags: str) -> None:
    """What the system tells of its processor, whichever it is."""
    told = folder / "cpuinfo"
    told.write_text(f"model name\t: Some Processor\nflags\t\t: {flags}\n")
    monkeypatch.setattr(device, "CPUINFO", told)


def test_the_receipt_names_it_and_what_is_measured_is_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _processor_with(monkeypatch, tmp_path, "fma avx512_bf16")
    spec = train_spec(training={"epochs": 2, "precision": "bf16", "device": "cpu"}, pruning=None)

    done = run(spec, tmp_path / "out")

    receipt = json.loads((done.folder / "manifest.json").read_text())["receipt"]
    assert (receipt["precision"], receipt["threads"]) == ("bf16", torch.get_num_threads())
    network = Cnn((4, 4, 8), 16)
    network.load_state_dict(load_file(done.folder / "model.safetensors"))
    device.place(network, CPU)
    with reproducible(CPU):
        measured = evaluate(network, DIGITS.test_images, DIGITS.test_labels, Listener())
    assert measured.accuracy == done.report.accuracy_after


def test_without_the_hardware_it_is_refused_ahead_of_all_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _processor_with(monkeypatch, tmp_path, "fma avx2")
    for spec in (
        train_spec(training={"epochs": 1, "precision": "bf16", "device": "cpu"}),
        train_spec(training={"epochs": 1, "device": "cpu"}, fine_tuning={"epochs": 1, "precision": "bf16"}),
    ):
        with pytest.raises(DeviceUnavailable, match="precision 'float32'"):
            run(spec, tmp_path / str(len(list(tmp_path.iterdir()))))


def test_a_receipt_says_float32_unless_told(tmp_path: Path) -> None:
    assert run(train_spec(), tmp_path / "out").manifest.receipt.precision == "float32"
