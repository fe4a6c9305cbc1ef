"""Members that are trained together come to what each comes to alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.conftest import Listener
from tests.engine.together import (
    MODEL,
    Keeping,
    alone,
    apart,
    copied,
    course,
    examples,
    half_masked,
    member,
    same_bits,
    told,
)
from tests.specs import Document
from worker.engine.errors import InvalidCheckpoint, NonFiniteLoss
from worker.engine.model import fresh
from worker.engine.observer import Observer
from worker.engine.progress import Progress
from worker.engine.resume import TogetherState, TrainingState, load_together
from worker.engine.together import Member, train_together
from worker.engine.train import train

OPTIMIZERS: list[Document] = [
    {"name": "adam"},
    {"name": "adamw", "weight_decay": 0.1},
    {"name": "sgd", "momentum": 0.9},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "sgd", "momentum": 0},
]
PENALTIES: list[Document | None] = [
    None,
    {"penalty": "l1"},
    {"penalty": "l2"},
    {"penalty": "elastic-net", "l1_ratio": 0.3},
    {"penalty": "group-lasso"},
    {"penalty": "l1-proximal"},
    {"penalty": "l1-proximal", "batchnorm_scale_strength": 0.5},
]
NEAR = 1e-6
"""In double precision, after a few steps of parameters that are about 0.1 and move by 0.01."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """So little work is done sooner than it is shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _agree(together: list[Member], apart_from: list[Member]) -> None:
    for ours, theirs in zip(together, apart_from, strict=True):
        assert apart(ours.network, theirs.network) < NEAR
        for mine, other in zip(told(ours.progress), told(theirs.progress), strict=True):
            assert mine.keys() == other.keys()
            for name, value in mine.items():
                assert value == (pytest.approx(other[name], rel=NEAR) if isinstance(value, float) else other[name])
        assert ours.progress.steps == theirs.progress.steps


@pytest.mark.parametrize(
    ("optimizer", "penalty"),
    [(optimizer, PENALTIES[0]) for optimizer in OPTIMIZERS] + [(OPTIMIZERS[0], penalty) for penalty in PENALTIES[1:]],
    ids=str,
)
def test_every_optimizer_and_penalty_comes_to_what_it_does_alone(optimizer: Document, penalty: Document | None) -> None:
    members = [member(course(seed, penalty, optimizer=optimizer)) for seed in range(3)]
    others, data = copied(members), examples()

    assert train_together(members, data, Listener()) == (None, None, None)

    alone(others, data)
    _agree(members, others)
    assert not same_bits(members[0].network, members[1].network)


@pytest.mark.parametrize(
    "changes",
    [
        {"label_smoothing": 0.2},
        {"random_shift": 2},
        {"learning_rate_schedule": "cosine", "warmup_epochs": 1},
        {"batch_size": 500},
        {"batch_size": 1, "epochs": 1},
    ],
    ids=str,
)
def test_every_setting_comes_to_what_it_does_alone(changes: Document) -> None:
    members = [member(course(seed, {"penalty": "l1"}, **changes)) for seed in range(2)]
    others, data = copied(members), examples(30)

    train_together(members, data, Listener())

    alone(others, data)
    _agree(members, others)


@settings(max_examples=8, deadline=None)
@given(
    count=st.integers(1, 5),
    images=st.integers(2, 30),
    size=st.integers(6, 35),
    rates=st.lists(st.floats(1e-4, 0.01), min_size=5, max_size=5),
)
def test_any_number_of_members_images_and_rates_agrees(count: int, images: int, size: int, rates: list[float]) -> None:
    members = [
        member(course(seed, {"penalty": "l2"}, epochs=1, batch_size=size, learning_rate=rates[seed]))
        for seed in range(count)
    ]
    others, data = copied(members), examples(images)

    train_together(members, data, Listener())

    alone(others, data)
    _agree(members, others)


def test_in_single_precision_they_agree_to_rounding() -> None:
    """SGD, which does not blow rounding up: within a thousandth of what the training has moved."""
    members = [
        member(course(seed, {"penalty": "l1"}, optimizer={"name": "sgd"}), dtype=torch.float32) for seed in range(3)
    ]
    begun, others, data = copied(members), copied(members), examples(dtype=torch.float32)

    train_together(members, data, Listener())

    alone(others, data)
    for ours, theirs, before in zip(members, others, begun, strict=True):
        moved = apart(theirs.network, before.network)
        assert apart(ours.network, theirs.network) < 1e-3 * moved
        assert [each.accuracy for each in ours.progress.history] == [each.accuracy for each in theirs.progress.history]


def test_the_best_epoch_is_each_members_own() -> None:
    members = [member(course(seed, epochs=6, learning_rate=0.03, select="best")) for seed in range(3)]
    others, data = copied(members), examples(100, validation=40)

    train_together(members, data, Listener())

    alone(others, data)
    for ours, theirs in zip(members, others, strict=True):
        assert apart(ours.network, theirs.network) < 1e-5  # thirty steps of so large a rate
        told_best = [each.validation_accuracy for each in ours.progress.history]
        assert told_best == [each.validation_accuracy for each in theirs.progress.history]


class _Watchful(Listener):
    """Sees that nothing that a mask dropped is anything but zero, in the weights and in the optimizer's memory."""

    def __init__(self, members: list[Member]) -> None:
        super().__init__()
        self._members, self.seen = members, 0

    def checkpoint_together(self, state: object, epoch_ended: bool) -> None:
        assert callable(state)
        for now, watched in zip(state().members, self._members, strict=True):
            mask = watched.progress.mask
            for number, (name, keep) in enumerate((mask or {}).items()):
                assert now.network[name][~keep].count_nonzero() == 0
                for value in now.optimizer["state"].get(number, {}).values():
                    if isinstance(value, torch.Tensor) and value.shape == keep.shape:
                        assert value[~keep].count_nonzero() == 0
        self.seen += 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("penalty", [None, {"penalty": "l1-proximal"}], ids=str)
def test_each_members_mask_holds_at_every_step(optimizer: Document, penalty: Document | None) -> None:
    masks = [half_masked(0), None, half_masked(2)]
    members = [
        member(course(seed, penalty, "fine_tuning", optimizer=optimizer), mask) for seed, mask in enumerate(masks)
    ]
    others, data, watch = copied(members), examples(), _Watchful(members)

    train_together(members, data, watch)

    assert watch.seen == 6
    alone(others, data)
    _agree(members, others)


def test_the_weights_to_rewind_to_are_kept() -> None:
    members = [member(replace(course(seed), keep_epoch=seed)) for seed in range(3)]
    others, data = copied(members), examples()

    train_together(members, data, Listener())

    alone(others, data)
    for ours, theirs in zip(members, others, strict=True):
        assert ours.progress.early is not None
        assert theirs.progress.early is not None
        for name, tensor in theirs.progress.early.items():
            assert torch.allclose(ours.progress.early[name], tensor, atol=NEAR), name


def test_steps_are_told_once_and_epochs_with_their_member() -> None:
    heard = Listener()

    train_together([member(course(seed)) for seed in range(2)], examples(), heard)

    assert heard.steps == [(step, 6, "steps") for step in range(1, 7)]
    told = [(kind, data["epoch"], data["member"]) for kind, data in heard.records]
    assert told == [("epoch", 1, 0), ("epoch", 1, 1), ("epoch", 2, 0), ("epoch", 2, 1)]


def test_the_same_members_come_to_the_same_bits() -> None:
    members = [member(course(seed, {"penalty": "l1"}), dtype=torch.float32) for seed in range(3)]
    again, data = copied(members), examples(dtype=torch.float32)

    train_together(members, data, Listener())
    train_together(again, data, Listener())

    assert all(same_bits(one.network, other.network) for one, other in zip(members, again, strict=True))
    assert [told(each.progress) for each in members] == [told(each.progress) for each in again]


def test_members_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="member 1 differs from member 0 in batch_size"):
        train_together([member(course(0)), member(course(1, batch_size=7))], examples(), Listener())


# One fails


def _bound_to_fail(at: str) -> Member:
    """At the first step, in the middle, or by what the last step does to the weights."""
    if at == "first":
        broken = member(course(1))
        with torch.no_grad():
            next(broken.network.parameters()).fill_(torch.inf)
        return broken
    return member(course(1, learning_rate=10, optimizer={"name": "sgd"}, epochs=4))


def test_one_member_that_fails_at_once_is_left_as_it_was_and_does_not_take_the_others_along() -> None:
    members = [member(course(0)), _bound_to_fail("first"), member(course(2))]
    others, data, heard = copied(members), examples(), Listener()

    failures = train_together(members, data, heard)

    with pytest.raises(NonFiniteLoss) as failed:
        alone(others[1:2], data)
    assert [failures[0], str(failures[1]), failures[2]] == [None, str(failed.value), None]
    assert ("failed", {"member": 1, "code": "non_finite_loss", "message": str(failed.value)}) in heard.records
    assert members[1].progress.history == []
    for ours, theirs in zip(members[1].network.parameters(), others[1].network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    alone([others[0], others[2]], data)
    _agree([members[0], members[2]], [others[0], others[2]])


def test_one_member_that_fails_later_leaves_the_others_alone() -> None:
    sgd = {"optimizer": {"name": "sgd"}, "epochs": 30}
    weak, strong = {"penalty": "l2", "strength": 0.001}, {"penalty": "l2", "strength": 1.0}
    members = [member(course(0, weak, **sgd)), member(course(1, strong, **{**sgd, "learning_rate": 9.0}))]
    others, data = copied(members), examples(40)

    failures = train_together(members, data, Listener())

    assert failures[0] is None
    assert "training step" in str(failures[1])
    assert 0 < len(members[1].progress.history) < 30
    alone(others[:1], data)
    _agree(members[:1], others[:1])


def test_when_all_have_failed_nothing_more_is_done() -> None:
    heard = Listener()

    failures = train_together([_bound_to_fail("first")], examples(), heard)

    assert isinstance(failures[0], NonFiniteLoss)
    assert heard.steps[-1][0] == 3  # the epoch's; the second is not begun


# Interrupted


class _Impatient(Observer):
    class Stopped(Exception):
        pass

    def advance(self, completed: int, total: int, unit: str) -> None:
        if completed == 2:
            raise self.Stopped


def test_an_observer_can_end_it() -> None:
    with pytest.raises(_Impatient.Stopped):
        train_together([member(course(seed, epochs=9)) for seed in range(2)], examples(), _Impatient())


def _resumed(members: list[Member], kept: TogetherState) -> list[Member]:
    """In another process: networks anew, and the progress that was kept."""
    return [
        Member(fresh(MODEL, 7).float(), each.course, each.progress if isinstance(state, str) else state.progress)
        for each, state in zip(members, kept.members, strict=True)
    ]


@pytest.mark.parametrize("step", [1, 3, 4, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_it_goes_on_from_any_step_to_the_same_bits(step: int, masked: bool, tmp_path: Path) -> None:
    def members() -> list[Member]:
        masks = [half_masked(seed) if masked else None for seed in range(3)]
        return [member(course(seed, {"penalty": "l1"}), masks[seed], torch.float32) for seed in range(3)]

    whole, cut, data = members(), members(), examples(dtype=torch.float32)
    train_together(whole, data, Listener())
    keeping = Keeping(step)
    with pytest.raises(Keeping.Power):
        train_together(cut, data, keeping)
    assert keeping.kept is not None
    (tmp_path / "kept.pt").write_bytes(keeping.kept.to_bytes())
    kept = load_together(tmp_path / "kept.pt")

    resumed = _resumed(cut, kept)
    heard = Listener()
    train_together(resumed, data, heard, resumed=kept)

    assert [done for done, _, _ in heard.steps] == list(range(step + 1, 7))
    for ours, theirs in zip(resumed, whole, strict=True):
        assert same_bits(ours.network, theirs.network)
        assert told(ours.progress) == told(theirs.progress)
        assert ours.progress.steps == theirs.progress.steps


def test_a_failed_member_stays_failed_when_the_others_go_on(tmp_path: Path) -> None:
    members = [member(course(0), dtype=torch.float32), _bound_to_fail("first")]
    members[1].network.float()
    whole, data = copied(members), examples(dtype=torch.float32)
    train_together(whole, data, Listener())
    keeping = Keeping(4)
    with pytest.raises(Keeping.Power):
        train_together(members, data, keeping)
    assert keeping.kept is not None
    (tmp_path / "kept.pt").write_bytes(keeping.kept.to_bytes())
    kept = load_together(tmp_path / "kept.pt")

    resumed = _resumed(members, kept)
    failures = train_together(resumed, data, Listener(), resumed=kept)

    assert same_bits(resumed[0].network, whole[0].network)
    assert failures[0] is None
    assert "training step 1" in str(failures[1])


def test_one_member_can_go_on_alone() -> None:
    """What is kept of a member is what its training alone would have kept."""
    members, data = [member(course(seed)) for seed in range(2)], examples()
    others = copied(members)
    keeping = Keeping(4)
    with pytest.raises(Keeping.Power):
        train_together(members, data, keeping)
    assert keeping.kept is not None
    state = keeping.kept.members[1]
    assert isinstance(state, TrainingState)

    network = fresh(MODEL, 7).double()
    train(network, data, members[1].course, state.progress, Listener(), resumed=state)

    alone(others[1:], data)
    assert apart(network, others[1].network) < NEAR


def test_a_state_of_other_members_is_refused() -> None:
    keeping = Keeping(1)
    with pytest.raises(Keeping.Power):
        train_together([member(course(0))], examples(), keeping)
    assert keeping.kept is not None

    with pytest.raises(InvalidCheckpoint, match="of 1 members, not of 2"):
        train_together([member(course(seed)) for seed in range(2)], examples(), Listener(), resumed=keeping.kept)
    state = keeping.kept.members[0]
    assert isinstance(state, TrainingState)
    state.network.pop("fc1.weight")
    with pytest.raises(InvalidCheckpoint, match="member 0 is of another network"):
        train_together([member(course(0))], examples(), Listener(), resumed=keeping.kept)


def test_nothing_of_the_progress_before_is_lost() -> None:
    members = [Member(fresh(MODEL, 0).double(), course(0, name="fine_tuning"), Progress(steps=40))]

    train_together(members, examples(), Listener())

    assert members[0].progress.steps == 46
    assert [each.course for each in members[0].progress.history] == ["fine_tuning"] * 2
