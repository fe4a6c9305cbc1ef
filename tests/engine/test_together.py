"""Members that are trained together come to what each comes to alone."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.engine.conftest import Listener
from tests.engine.optimizers import OPTIMIZERS
from tests.engine.together import (
    NEAR,
    agree,
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
from worker.engine.errors import NonFiniteLoss
from worker.engine.pruning import Mask
from worker.engine.resume import TrainingState
from worker.engine.together import Member, train_together
from worker.engine.together.steps import Steps

pytestmark = pytest.mark.usefixtures("one_thread")

PENALTIES: list[Document | None] = [
    None,
    {"penalty": "l1"},
    {"penalty": "l2"},
    {"penalty": "elastic-net", "l1_ratio": 0.3},
    {"penalty": "group-lasso"},
    {"penalty": "l1-proximal"},
    {"penalty": "l1-proximal", "batchnorm_scale_strength": 0.5},
]
EXACT = 1e-9
"""What one step of Adam can make of a gradient's rounding, 1e-15: its rate over its epsilon, 0.01 over 1e-8, times as
much."""


@pytest.mark.parametrize(
    ("optimizer", "penalty"),
    [(optimizer, PENALTIES[0]) for optimizer in OPTIMIZERS] + [(OPTIMIZERS[0], penalty) for penalty in PENALTIES[1:]],
    ids=str,
)
def test_every_optimizer_and_penalty_comes_to_what_it_does_alone(optimizer: Document, penalty: Document | None) -> None:
    members = [member(course(seed, penalty, optimizer=optimizer)) for seed in range(3)]
    others, data = copied(members), examples()

    assert train_together(members, data) == (None, None, None)

    alone(others, data)
    agree(members, others)
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

    train_together(members, data)

    alone(others, data)
    agree(members, others)


def test_nothing_is_left_of_it_for_a_collection_of_garbage() -> None:
    """Which may be long in coming, while a GPU's memory is taken."""
    gc.collect()
    gc.disable()
    try:
        train_together([member(course(seed)) for seed in range(2)], examples(30))
        assert not [each for each in gc.get_objects() if type(each) is Steps]
    finally:
        gc.enable()


@settings(max_examples=8, deadline=None)
@given(
    optimizer=st.sampled_from(OPTIMIZERS),
    count=st.integers(1, 5),
    images=st.integers(2, 30),
    size=st.integers(6, 35),
    rates=st.lists(st.floats(1e-4, 0.01), min_size=5, max_size=5),
)
@example(optimizer=OPTIMIZERS[0], count=5, images=13, size=13, rates=[0.01] * 5)  # with a gradient of all but 0
def test_any_number_of_members_images_and_rates_agrees(
    optimizer: Document, count: int, images: int, size: int, rates: list[float]
) -> None:
    """Adam takes one step: what it makes of rounding where a gradient is all but 0, it makes again of that in each step
    after it, and no bound holds for every network."""
    size = size if optimizer["name"] == "sgd" else max(size, images)
    given = {"optimizer": optimizer, "epochs": 1, "batch_size": size}
    members = [member(course(seed, {"penalty": "l2"}, learning_rate=rates[seed], **given)) for seed in range(count)]
    others, data = copied(members), examples(images)

    train_together(members, data)

    alone(others, data)
    agree(members, others, EXACT)


def test_in_single_precision_they_agree_to_rounding() -> None:
    """SGD, which does not blow rounding up: within a thousandth of what the training has moved."""
    members = [
        member(course(seed, {"penalty": "l1"}, optimizer={"name": "sgd"}), dtype=torch.float32) for seed in range(3)
    ]
    begun, others, data = copied(members), copied(members), examples(dtype=torch.float32)

    train_together(members, data)

    alone(others, data)
    for ours, theirs, before in zip(members, others, begun, strict=True):
        moved = apart(theirs.network, before.network)
        assert apart(ours.network, theirs.network) < 1e-3 * moved
        assert [each.accuracy for each in ours.progress.history] == [each.accuracy for each in theirs.progress.history]


def test_the_best_epoch_is_each_members_own() -> None:
    members = [member(course(seed, epochs=6, learning_rate=0.03, select="best")) for seed in range(3)]
    others, data = copied(members), examples(50, validation=40)

    train_together(members, data)

    alone(others, data)
    for ours, theirs in zip(members, others, strict=True):
        assert apart(ours.network, theirs.network) < 1e-5  # thirty steps of so large a rate
        told_best = [each.validation_accuracy for each in ours.progress.history]
        assert told_best == [each.validation_accuracy for each in theirs.progress.history]


class _Watchful(Listener):
    """Sees that nothing that a mask dropped is anything but zero, in the weights and in the optimizer's memory."""

    def __init__(self, mask: Mask | None) -> None:
        super().__init__()
        self._mask, self.seen = mask, 0

    def checkpoint(self, state: Callable[[], TrainingState], epoch_ended: bool) -> None:
        now = state()
        for number, (name, keep) in enumerate((self._mask or {}).items()):
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
    others, data, watches = copied(members), examples(), [_Watchful(mask) for mask in masks]

    failures = train_together(
        [replace(each, observer=watch) for each, watch in zip(members, watches, strict=True)], data
    )

    assert failures == (None, None, None)
    assert [watch.seen for watch in watches] == [6, 6, 6]
    alone(others, data)
    agree(members, others)


def test_the_weights_to_rewind_to_are_kept() -> None:
    members = [member(replace(course(seed), keep_epoch=seed)) for seed in range(3)]
    others, data = copied(members), examples()

    train_together(members, data)

    alone(others, data)
    for ours, theirs in zip(members, others, strict=True):
        assert ours.progress.early is not None
        assert theirs.progress.early is not None
        for name, tensor in theirs.progress.early.items():
            assert torch.allclose(ours.progress.early[name], tensor, atol=NEAR), name


def test_each_hears_what_it_would_alone() -> None:
    listeners, others = [Listener() for _ in range(2)], [Listener() for _ in range(2)]
    for seed, other in enumerate(others):
        alone([member(course(seed))], examples(), other)

    train_together([replace(member(course(seed)), observer=heard) for seed, heard in enumerate(listeners)], examples())

    for heard, other in zip(listeners, others, strict=True):
        assert heard.steps == other.steps == [(step, 6, "steps") for step in range(1, 7)]
        assert heard.heard == other.heard == ["epoch", "epoch"]


def test_a_member_knows_how_many_they_were() -> None:
    members = [member(course(seed)) for seed in range(3)]
    train_together(members, examples())
    train_together(members[:2], examples())
    assert [each.progress.together for each in members] == [3, 3, 3]


def test_the_same_members_come_to_the_same_bits() -> None:
    members = [member(course(seed, {"penalty": "l1"}), dtype=torch.float32) for seed in range(3)]
    again, data = copied(members), examples(dtype=torch.float32)

    train_together(members, data)
    train_together(again, data)

    assert all(same_bits(one.network, other.network) for one, other in zip(members, again, strict=True))
    assert [told(each.progress) for each in members] == [told(each.progress) for each in again]


def test_members_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="member 1 differs from member 0 in batch_size"):
        train_together([member(course(0)), member(course(1, batch_size=7))], examples())


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
    others, data = copied(members), examples()

    failures = train_together(members, data)

    with pytest.raises(NonFiniteLoss) as failed:
        alone(others[1:2], data)
    assert [failures[0], str(failures[1]), failures[2]] == [None, str(failed.value), None]
    assert members[1].progress.history == []
    for ours, theirs in zip(members[1].network.parameters(), others[1].network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    alone([others[0], others[2]], data)
    agree([members[0], members[2]], [others[0], others[2]])


def test_one_member_that_fails_later_leaves_the_others_alone() -> None:
    sgd = {"optimizer": {"name": "sgd"}, "epochs": 30}
    weak, strong = {"penalty": "l2", "strength": 0.001}, {"penalty": "l2", "strength": 1.0}
    members = [member(course(0, weak, **sgd)), member(course(1, strong, **{**sgd, "learning_rate": 9.0}))]
    others, data = copied(members), examples(20)

    failures = train_together(members, data)

    assert failures[0] is None
    assert "training step" in str(failures[1])
    assert 0 < len(members[1].progress.history) < 30
    alone(others[:1], data)
    agree(members[:1], others[:1])


def test_when_all_have_failed_nothing_more_is_done() -> None:
    heard = Listener()

    failures = train_together([replace(_bound_to_fail("first"), observer=heard)], examples())

    assert isinstance(failures[0], NonFiniteLoss)
    assert (heard.steps, heard.heard) == ([], [])


# Interrupted


class _Impatient(Listener):
    """Leaves at a step, as who was cancelled does."""

    class Left(Exception):
        pass

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def advance(self, completed: int, total: int, unit: str) -> None:
        super().advance(completed, total, unit)
        if completed == self._step:
            raise self.Left


def test_one_that_leaves_does_not_hold_up_the_others() -> None:
    leaving, staying = _Impatient(2), Listener()
    members = [replace(member(course(0)), observer=leaving), replace(member(course(1)), observer=staying)]
    others, data = copied(members), examples()

    told_of: list[tuple[int, int]] = []

    failures = train_together(members, data, lambda number, _: told_of.append((number, len(staying.steps))))

    assert [type(each) for each in failures] == [_Impatient.Left, type(None)]
    assert told_of == [(0, 1)]  # ahead of the other's second step
    assert (len(leaving.steps), leaving.heard, len(staying.steps)) == (2, [], 6)
    alone(others[1:], data)
    agree(members[1:], others[1:])


def test_when_all_have_left_it_ends() -> None:
    members = [replace(member(course(seed, epochs=9)), observer=_Impatient(2 + seed)) for seed in range(2)]

    failures = train_together(members, examples())

    assert [type(each) for each in failures] == [_Impatient.Left] * 2
    assert [each.progress.steps for each in members] == [2, 3]


class _Ending(Listener):
    def advance(self, completed: int, total: int, unit: str) -> None:
        raise SystemExit


def test_what_ends_the_process_ends_it_for_all() -> None:
    with pytest.raises(SystemExit):
        train_together([member(course(0)), replace(member(course(1)), observer=_Ending())], examples())
