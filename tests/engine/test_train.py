from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue
from torch import nn
from torch.nn import functional

from app.contract.datasets import DatasetName
from app.contract.spec import L1Penalty, ModelSpec, TrainingSpec
from tests.engine.conftest import Listener, run
from tests.specs import Document, train_spec
from worker.engine.data import DatasetStore
from worker.engine.device import choose, name_of
from worker.engine.errors import DeviceUnavailable, NonFiniteLoss
from worker.engine.model import fresh
from worker.engine.observer import Observer
from worker.engine.seeding import generator, seeded
from worker.engine.train import train

DIGITS = DatasetStore(None).load(DatasetName.DIGITS)
IMAGES, LABELS = DIGITS.train_images[:250], DIGITS.train_labels[:250]
MODEL = ModelSpec(channels=(2, 2, 4), hidden=8)


def _by_the_book(training: TrainingSpec, strength: float) -> tuple[nn.Module, list[float]]:
    """The training loop as PyTorch's tutorials write it, drawing the same shuffles."""
    network = fresh(MODEL, training.seed).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    shuffle, losses = generator(training.seed, "shuffle"), []
    for _ in range(training.epochs):
        order, total = torch.randperm(len(LABELS), generator=shuffle), 0.0
        for start in range(0, len(LABELS), training.batch_size):
            chosen = order[start : start + training.batch_size]
            loss = functional.cross_entropy(network(IMAGES[chosen]), LABELS[chosen])
            extra = torch.stack([parameter.abs().sum() for parameter in network.parameters()]).sum()
            total += loss.item() * len(chosen)
            optimizer.zero_grad()
            (loss + strength * extra).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        losses.append(total / len(LABELS))
    return network, losses


@pytest.mark.parametrize("strength", [0.0, 0.001])
def test_it_trains_as_the_loop_by_the_book(strength: float) -> None:
    training = TrainingSpec(epochs=3, batch_size=100, seed=5)
    network = fresh(MODEL, 5)
    penalty = L1Penalty(penalty="l1", strength=strength) if strength else None

    history = train(network, IMAGES, LABELS, training, penalty, Listener())

    book, losses = _by_the_book(training, strength)
    for (name, ours), (_, theirs) in zip(network.named_parameters(), book.named_parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-4), name
    assert [epoch.loss for epoch in history] == pytest.approx(losses, rel=1e-3)


def test_every_step_is_told_and_the_last_small_batch_is_used() -> None:
    heard = Listener()

    train(fresh(MODEL, 0), IMAGES, LABELS, TrainingSpec(epochs=2, batch_size=100), None, heard)

    assert heard.steps == [(step, 6, "steps") for step in range(1, 7)]
    assert [data["epoch"] for kind, data in heard.records if kind == "epoch"] == [1, 2]


def test_learning_brings_the_loss_down() -> None:
    history = train(fresh(MODEL, 0), IMAGES, LABELS, TrainingSpec(epochs=5, batch_size=25), None, Listener())

    assert history[-1].loss < 0.9 * history[0].loss
    assert history[-1].accuracy > history[0].accuracy
    assert all(epoch.seconds > 0 and epoch.penalty == 0 for epoch in history)


def test_a_loss_that_is_no_number_stops_ahead_of_the_step_that_would_spoil_the_weights() -> None:
    network = fresh(MODEL, 0)
    images = IMAGES.clone()
    images[:] = torch.inf
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}

    with pytest.raises(NonFiniteLoss, match="training step 1"):
        train(network, images, LABELS, TrainingSpec(epochs=1), None, Listener())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.named_parameters())


class _Interrupted(Exception):
    pass


class _Impatient(Observer):
    def advance(self, completed: int, total: int, unit: str) -> None:
        if completed == 2:
            raise _Interrupted

    def record(self, type: str, data: dict[str, JsonValue]) -> None:
        raise AssertionError("no epoch was finished")


def test_an_observer_can_end_the_training() -> None:
    with pytest.raises(_Interrupted):
        train(fresh(MODEL, 0), IMAGES, LABELS, TrainingSpec(epochs=9), None, _Impatient())


SCRIPT = """
import sys, json
from pathlib import Path
import torch
from app.contract.spec import parse_spec
from worker.engine import pipeline
from worker.engine.data import DatasetStore
torch.set_num_threads(int(sys.argv[3]))
torch.rand(100)
out = Path(sys.argv[2])
out.mkdir()
pipeline.run(parse_spec(json.loads(sys.argv[1])), datasets=DatasetStore(None), inputs={}, out=out)
"""


def _spec(seed: int) -> Document:
    return train_spec(training={"epochs": 1, "seed": seed}, regularization={"penalty": "l1"})


def _files(folder: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "model.pt", "dense.safetensors", "histogram.png", "histogram.json", "report.csv")
    return {name: (folder / name).read_bytes() for name in names}


def _in_a_process_of_its_own(spec: Document, folder: Path) -> dict[str, bytes]:
    command = [sys.executable, "-c", SCRIPT, json.dumps(spec), str(folder), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return _files(folder)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Sums come out in another order with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_same_spec_and_seed_give_the_same_files_bit_for_bit_in_any_process(tmp_path: Path) -> None:
    here = _files(run(_spec(seed=3), tmp_path / "here").folder)

    assert _in_a_process_of_its_own(_spec(seed=3), tmp_path / "there") == here


def test_another_seed_gives_another_network(tmp_path: Path) -> None:
    three, four = (_files(run(_spec(seed), tmp_path / str(seed)).folder) for seed in (3, 4))

    assert three["dense.safetensors"] != four["dense.safetensors"]
    assert three["model.pt"] != four["model.pt"]


def test_seeding_leaves_no_trace() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)

    torch.manual_seed(1)
    with seeded(99):
        torch.rand(5)
    assert torch.equal(torch.rand(3), expected)


def test_streams_of_one_seed_are_independent() -> None:
    assert not torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "b")))
    assert torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "a")))


def test_cuda_that_is_not_there_is_refused_with_a_way_out() -> None:
    assert name_of(choose("cpu"))
    if not torch.cuda.is_available():
        assert choose("auto").type == "cpu"
        with pytest.raises(DeviceUnavailable, match="'auto' or 'cpu'"):
            choose("cuda")
