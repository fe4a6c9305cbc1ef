"""Members that are trained together on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.contract.spec import ModelSpec
from tests.engine.conftest import Listener
from tests.engine.layers import Case, apart, by_kernels, inputs
from tests.engine.together import DIGITS, alone, copied, course, going_on, half_masked, interrupted, same_bits
from tests.engine.together import apart as largest
from tests.specs import Document
from worker.engine.errors import NonFiniteLoss
from worker.engine.model import fresh
from worker.engine.progress import Progress
from worker.engine.pruning import Mask
from worker.engine.seeding import reproducible
from worker.engine.together import Member, train_together, way
from worker.engine.train import Examples, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA drives")

CUDA = torch.device("cuda")
MODEL = ModelSpec()
LAYERS = [
    Case(3, 1, 16, 100, 28, 28, 5, False),
    Case(3, 16, 16, 100, 28, 28, 3, True),
    Case(2, 16, 32, 100, 14, 14, 3, True),
    Case(2, 3, 8, 20, 13, 11, 5, False),
    Case(2, 20, 40, 10, 9, 9, 3, True),
]


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    with reproducible(CUDA):
        yield


def _examples(count: int = 950) -> Examples:
    images, labels = DIGITS.train_images.to(CUDA), DIGITS.train_labels.to(CUDA)
    return Examples(images[:count], labels[:count], images[count : count + 200], labels[count : count + 200])


def _members(
    penalty: Document | None = None, masks: list[Mask | None] | None = None, **settings: object
) -> list[Member]:
    found = []
    for seed in range(3):
        rate = {"learning_rate": 0.0005 * (seed + 1)}
        mask, network = (masks or [None] * 3)[seed], fresh(MODEL, seed).to(CUDA)
        if mask is not None:
            network.load_state_dict(mask.to(CUDA).apply(network.state_dict()))
        given = course(seed, penalty, batch_size=100, **{**rate, **settings})
        found.append(Member(network, given, Progress(mask=mask)))
    return found


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_a_layer_and_its_gradients_are_pytorchs(case: Case) -> None:
    found = apart(case, "cuda")

    # Ours is 0 to the bit; PyTorch adds up what is 0 but for the rounding of doubles.
    assert found.pop("by_bias") < 1e-9
    # Where two of four are as large, or one is nearly 0, rounding sends a whole gradient another way.
    by_input = [found.pop(name) for name in ("by_images", "by_weight", "by_scale", "by_shift")]
    assert max(found.values()) < 3e-6
    assert max(by_input) < 5e-3


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_a_layer_comes_to_the_same_bits_each_time(case: Case) -> None:
    first, second = (by_kernels(inputs(case, "cuda"), case) for _ in range(2))

    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("pooled", [False, True])
def test_what_is_no_number_shows_and_stays_with_its_member(pooled: bool) -> None:
    case = Case(2, 16, 16, 10, 14, 14, 3, pooled)
    given = inputs(case, "cuda")
    with torch.no_grad():
        given[1][0, 3, 2, 1, 1] = torch.nan

    out, _, _, by_images, *_ = by_kernels(given, case)

    assert bool(out[0, 3].isnan().all())
    assert bool(by_images[0].isnan().all())
    assert bool(out[1].isfinite().all())
    assert bool(by_images[1].isfinite().all())


@pytest.mark.parametrize(
    ("changes", "penalty"),
    [
        ({}, None),
        ({}, {"penalty": "l1", "strength": 1e-4}),
        ({"optimizer": {"name": "adamw"}, "random_shift": 2, "label_smoothing": 0.1}, {"penalty": "group-lasso"}),
        ({"optimizer": {"name": "sgd"}, "select": "best", "learning_rate_schedule": "cosine"}, {"penalty": "l2"}),
        ({"optimizer": {"name": "sgd", "momentum": 0}}, {"penalty": "l1-proximal"}),
    ],
    ids=str,
)
def test_a_training_is_that_of_each_alone_to_rounding(changes: Document, penalty: Document | None) -> None:
    masks = [half_masked(0, MODEL), None, half_masked(2, MODEL)]
    members = _members(penalty, masks, epochs=2, **changes)
    others, data = copied(members), _examples()

    assert train_together(members, data) == (None, None, None)

    alone(others, data)
    for ours, theirs in zip(members, others, strict=True):
        for mine, other in zip(ours.progress.history, theirs.progress.history, strict=True):
            assert mine.loss == pytest.approx(other.loss, rel=1e-3)
            assert mine.penalty == pytest.approx(other.penalty, rel=1e-3)
            assert mine.accuracy == pytest.approx(other.accuracy, abs=0.01)
        for name, keep in (ours.progress.mask or {}).items():
            assert not bool(dict(ours.network.named_parameters())[name][~keep.to(CUDA)].any())


def test_the_same_members_come_to_the_same_bits() -> None:
    members = _members({"penalty": "l1"})
    again, data = copied(members), _examples()

    train_together(members, data)
    train_together(again, data)

    assert all(same_bits(one.network, other.network) for one, other in zip(members, again, strict=True))


def test_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    members = _members({"penalty": "l1"})
    whole, data = copied(members), _examples()
    train_together(whole, data)
    kept = interrupted(members, data, 13, tmp_path)

    resumed = going_on(members, kept, fresh(MODEL, 9).to(CUDA))
    train_together(resumed, data)

    assert all(same_bits(one.network, other.network) for one, other in zip(resumed, whole, strict=True))


def test_one_goes_on_alone(tmp_path: Path) -> None:
    members, data = _members({"penalty": "l1"}), _examples()
    others = copied(members)
    state = interrupted(members, data, 13, tmp_path)[1]

    network = fresh(MODEL, 9).to(CUDA)
    train(network, data, members[1].course, state.progress, Listener(), resumed=state)

    alone(others[1:2], data)
    ours, theirs = state.progress.history[-1], others[1].progress.history[-1]
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-3)


def test_one_that_fails_does_not_take_the_others_along() -> None:
    members = _members()
    others, data = copied(members), _examples()
    with torch.no_grad():
        next(members[1].network.parameters()).fill_(torch.nan)

    failures = train_together(members, data)

    assert [type(each) for each in failures] == [type(None), NonFiniteLoss, type(None)]
    assert len(members[1].progress.history) == 0
    train_together(others, data)
    for number in (0, 2):
        assert largest(members[number].network, others[number].network) == 0


def test_here_they_are_trained_together() -> None:
    assert way([each.course for each in _members()], CUDA).together
