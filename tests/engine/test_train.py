from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue, TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from app.contract.datasets import DatasetName
from app.contract.pruning import MagnitudePruning, TaylorPruning
from app.contract.report import EpochMetrics
from app.contract.spec import ModelSpec
from app.contract.training import FineTuningSpec, L1Penalty, ProximalL1, Regularization, TrainingSpec
from tests.engine.conftest import Listener, run
from tests.engine.few import ALL, FEW
from tests.engine.measured import measured
from tests.engine.optimizers import OPTIMIZERS
from tests.specs import Document, train_spec
from worker.engine.device import choose, name_of
from worker.engine.errors import DeviceUnavailable, NonFiniteLoss
from worker.engine.evaluate import evaluate
from worker.engine.model import fresh
from worker.engine.observer import Observer
from worker.engine.plan import Course
from worker.engine.progress import Progress
from worker.engine.pruning import Mask
from worker.engine.resume import TrainingState
from worker.engine.seeding import generator, reproducible, seeded
from worker.engine.train import Examples, train

DIGITS = ALL.load(DatasetName.DIGITS)
IMAGES, LABELS = DIGITS.train_images[:250], DIGITS.train_labels[:250]
MODEL = ModelSpec(channels=(2, 2, 4), hidden=8)


def _train(
    network: nn.Module,
    course: Course,
    observer: Observer | None = None,
    *,
    progress: Progress | None = None,
    images: Tensor = IMAGES,
) -> Sequence[EpochMetrics]:
    """Where the best epoch is wanted, with the last 50 images for validation."""
    progress, labels = progress or Progress(), LABELS[: len(images)]
    cut = 200 if course.settings.select == "best" else len(labels)
    examples = Examples(images[:cut], labels[:cut], images[cut:], labels[cut:])
    train(network, examples, course, progress, observer or Listener())
    return progress.history


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

    history = _train(network, Course(training, penalty))

    book, losses = _by_the_book(training, strength)
    for (name, ours), (_, theirs) in zip(network.named_parameters(), book.named_parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-4), name
    assert [epoch.loss for epoch in history] == pytest.approx(losses, rel=1e-3)


def test_every_step_is_told_and_the_last_small_batch_is_used() -> None:
    heard = Listener()

    _train(fresh(MODEL, 0), Course(TrainingSpec(epochs=2, batch_size=100)), heard)

    assert heard.steps == [(step, 6, "steps") for step in range(1, 7)]
    assert [data["epoch"] for kind, data in heard.records if kind == "epoch"] == [1, 2]


def test_learning_brings_the_loss_down() -> None:
    history = _train(fresh(MODEL, 0), Course(TrainingSpec(epochs=5, batch_size=25)))

    assert history[-1].loss < 0.9 * history[0].loss
    assert history[-1].accuracy > history[0].accuracy
    assert all(epoch.seconds > 0 and epoch.penalty == 0 for epoch in history)


def test_a_loss_that_is_no_number_stops_ahead_of_the_step_that_would_spoil_the_weights() -> None:
    network = fresh(MODEL, 0)
    images = torch.full(IMAGES.shape, torch.inf)
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}

    with pytest.raises(NonFiniteLoss, match="training step 1"):
        _train(network, Course(TrainingSpec(epochs=1)), images=images)
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
        _train(fresh(MODEL, 0), Course(TrainingSpec(epochs=9)), _Impatient())


def _half_masked(network: nn.Module) -> Mask:
    pick = generator(1, "test")
    return Mask({name: torch.rand(p.shape, generator=pick) < 0.5 for name, p in network.named_parameters()})


PENALTIES: list[Document | None] = [None, {"penalty": "l2", "strength": 0.1}, {"penalty": "l1-proximal"}]


class _Watchful(Listener):
    """Sees that nothing that the mask dropped is anything but zero, in the weights and in the optimizer's memory."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask, self.seen = mask, 0

    def checkpoint(self, state: Callable[[], TrainingState], epoch_ended: bool) -> None:
        now = state()
        for number, (name, keep) in enumerate(self.mask.items()):
            assert now.network[name][~keep].count_nonzero() == 0
            assert now.network[name][keep].count_nonzero() > 0
            for value in now.optimizer["state"].get(number, {}).values():
                if isinstance(value, Tensor) and value.shape == keep.shape:
                    assert value[~keep].count_nonzero() == 0
        self.seen += 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_no_pruned_weight_revives_in_fifty_steps(optimizer: Document, penalty: Document | None) -> None:
    network = fresh(MODEL, 0)
    # Trained without a mask first, as weights are that get pruned.
    _train(network, Course(TrainingSpec(epochs=1, batch_size=100)))
    mask = _half_masked(network)
    network.load_state_dict(mask.apply(network.state_dict()))
    settings = FineTuningSpec.model_validate({"epochs": 5, "batch_size": 10, "optimizer": optimizer}, strict=False)
    regularization = None if penalty is None else TypeAdapter(Regularization).validate_python(penalty)
    watch, course = _Watchful(mask), Course(settings, regularization, "fine_tuning")

    _train(network, course, watch, progress=Progress(mask=mask), images=IMAGES[:100])

    assert watch.seen == 50


def test_the_proximal_step_leaves_exact_zeros_where_the_gradient_form_leaves_none() -> None:
    zeros = {}
    for regularization in (L1Penalty(penalty="l1", strength=1.0), ProximalL1(penalty="l1-proximal", strength=1.0)):
        network = fresh(MODEL, 0)
        _train(network, Course(TrainingSpec(epochs=10, batch_size=25), regularization))
        zeros[regularization.penalty] = sum(int((p == 0).sum()) for p in network.parameters())

    assert zeros["l1"] == 0
    assert zeros["l1-proximal"] > 100


def test_label_smoothing_is_in_the_loss() -> None:
    plain, smoothed = (
        _train(fresh(MODEL, 0), Course(TrainingSpec(epochs=1, batch_size=250, label_smoothing=share)))[0].loss
        for share in (0.0, 0.5)
    )
    with torch.no_grad():
        logits = fresh(MODEL, 0).train()(IMAGES[_order()])
    wanted = functional.cross_entropy(logits, LABELS[_order()], label_smoothing=0.5)

    assert smoothed == pytest.approx(wanted.item(), rel=1e-4)
    assert smoothed != pytest.approx(plain, rel=1e-3)


def _order() -> Tensor:
    return torch.randperm(len(LABELS), generator=generator(0, "shuffle"))


def test_shifted_images_are_other_images_each_epoch_and_the_same_in_each_run() -> None:
    spec = TrainingSpec(epochs=2, batch_size=250, learning_rate=1e-9, random_shift=3)
    losses = [[epoch.loss for epoch in _train(fresh(MODEL, 0), Course(spec))] for _ in range(2)]

    assert losses[0] == losses[1]
    # The weights stand still, and the loss is a mean over the same images: only shifts tell the epochs apart.
    assert losses[0][0] != pytest.approx(losses[0][1], rel=1e-4)


def test_the_best_epoch_is_the_first_with_the_best_validation_accuracy() -> None:
    network = fresh(MODEL, 0)
    # So large a rate jumps about: the last epoch is not the best.
    spec = TrainingSpec(epochs=12, batch_size=25, learning_rate=0.03, select="best")

    history = _train(network, Course(spec))

    told = [epoch.validation_accuracy for epoch in history]
    best = max(each for each in told if each is not None)
    assert told[-1] != best
    assert evaluate(network, IMAGES[200:], LABELS[200:], Listener()).accuracy.accuracy == best


def test_without_validation_images_none_is_told_and_the_last_epoch_stays() -> None:
    history = _train(fresh(MODEL, 0), Course(TrainingSpec(epochs=2)))

    assert [(epoch.validation_loss, epoch.validation_accuracy) for epoch in history] == [(None, None)] * 2


def _gradual(**schedule: object) -> MagnitudePruning:
    document = {"method": "magnitude", "keep": 50, "schedule": {"name": "gradual", **schedule}}
    return MagnitudePruning.model_validate(document, strict=False)


class _Counting(Listener):
    """Counts what the mask drops after each step."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress, self.dropped = progress, list[int]()

    def advance(self, completed: int, total: int, unit: str) -> None:
        mask = self.progress.mask
        self.dropped.append(sum(int((~keep).sum()) for keep in mask.values()) if mask else 0)


def test_gradual_pruning_follows_the_cubic_and_ends_at_exactly_the_amount() -> None:
    progress = Progress()
    counting = _Counting(progress)
    pruning = _gradual(begin_epoch=1, end_epoch=3, every_steps=5)

    network = fresh(MODEL, 0)
    _train(network, Course(TrainingSpec(epochs=4, batch_size=25), gradual=pruning), counting, progress=progress)

    total = sum(p.numel() for p in network.parameters())
    sparsity = (total - 50) / total
    wanted = [0] * 10  # steps of an epoch
    for step in range(11, 41):
        due = step <= 30 and (step - 10) % 5 == 0
        share = (step - 10) / 20
        wanted.append(int(sparsity * (1 - (1 - share) ** 3) * total) if due else wanted[-1])
    wanted[29:] = [total - 50] * 11
    assert counting.dropped == pytest.approx(wanted, abs=1)
    assert counting.dropped[29:] == wanted[29:]
    assert sum(int(p.count_nonzero()) for p in network.parameters()) <= 50
    assert progress.dense is not None
    assert progress.history[0].sparsity == 0.0
    assert progress.history[-1].sparsity == pytest.approx(sparsity)


class _Curious(Listener):
    """Looks at the network whenever a score is about to be taken from it."""

    def __init__(self, network: nn.Module, progress: Progress) -> None:
        super().__init__()
        self.network, self.progress, self.seen = network, progress, 0

    def check(self) -> None:
        if self.progress.mask is not None:
            state = self.network.state_dict()
            assert all(not state[name][~keep].any() for name, keep in self.progress.mask.items())
            self.seen += 1


def test_scores_within_a_training_are_of_the_network_with_its_mask_on() -> None:
    progress, network = Progress(), fresh(MODEL, 0)
    document = {"method": "taylor", "keep": 50, "images": 50}
    schedule = {"name": "gradual", "end_epoch": 2, "every_steps": 3}
    pruning = TaylorPruning.model_validate(document | {"schedule": schedule}, strict=False)
    curious = _Curious(network, progress)

    _train(network, Course(TrainingSpec(epochs=2, batch_size=25), gradual=pruning), curious, progress=progress)

    assert curious.seen > 3


def test_an_epoch_before_the_end_of_gradual_pruning_is_never_the_best() -> None:
    progress, network = Progress(), fresh(MODEL, 0)
    pruning = _gradual(end_epoch=4, every_steps=1)

    _train(network, Course(TrainingSpec(epochs=5, batch_size=25, select="best"), gradual=pruning), progress=progress)

    assert sum(int(p.count_nonzero()) for p in network.parameters()) <= 50


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


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.acceptance), 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Sums come out in another order with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_same_spec_and_seed_give_the_same_files_bit_for_bit_in_any_process(tmp_path: Path) -> None:
    spec = {**_spec(seed=3), "histogram": {"tensors": ["fc2.weight"]}}
    here = _files(run(spec, tmp_path / "here").folder)

    assert _in_a_process_of_its_own(spec, tmp_path / "there") == here


def test_another_seed_gives_another_network(tmp_path: Path) -> None:
    three, four = (measured(_spec(seed), tmp_path, datasets=FEW) for seed in (3, 4))

    assert three.progress.dense is not None
    assert four.progress.dense is not None
    assert not torch.equal(three.progress.dense["fc1.weight"], four.progress.dense["fc1.weight"])
    assert not torch.equal(three.state["fc1.weight"], four.state["fc1.weight"])


def test_seeding_leaves_no_trace() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)

    torch.manual_seed(1)
    with seeded(99):
        torch.rand(5)
    assert torch.equal(torch.rand(3), expected)


def test_reproducible_arithmetic_leaves_the_settings_as_they_were() -> None:
    def settings() -> tuple[object, ...]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.get_num_threads(),
            torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        )

    before = settings()
    with reproducible(torch.device("cpu")):
        torch.set_num_threads(1)
        assert settings() == (True, 1, False)
    assert settings() == before


def test_streams_of_one_seed_are_independent() -> None:
    assert not torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "b")))
    assert torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "a")))


def test_cuda_that_is_not_there_is_refused_with_a_way_out() -> None:
    assert name_of(choose("cpu"))
    if not torch.cuda.is_available():
        assert choose("auto").type == "cpu"
        with pytest.raises(DeviceUnavailable, match="'auto' or 'cpu'"):
            choose("cuda")
