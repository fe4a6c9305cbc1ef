"""Members that are trained together on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.contract.spec import ModelSpec
from tests.engine.conftest import Listener
from tests.engine.layers import LAYERS, Layer, drawn, has_bits_of_each_alone, what_is_no_number_stays
from tests.engine.together import DIGITS, alone, apart, copied, course, going_on, half_masked, interrupted, same_bits
from tests.specs import Document
from worker.engine.convolve import Outputs
from worker.engine.errors import NonFiniteLoss
from worker.engine.model import fresh
from worker.engine.placed import Placed
from worker.engine.progress import Progress
from worker.engine.pruning import Mask
from worker.engine.seeding import reproducible
from worker.engine.together import Member, train_together, way
from worker.engine.train import Examples, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA drives")

CUDA = torch.device("cuda")
MODEL = ModelSpec()


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    with reproducible(CUDA):
        yield


def _examples(count: int = 950) -> Examples:
    whole = Placed().examples(DIGITS, 0, CUDA)
    images, labels = whole.images, whole.labels
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


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers_side_by_side_have_the_bits_of_each_alone(layer: Layer) -> None:
    assert has_bits_of_each_alone(drawn(layer, groups=3, images=20, on=CUDA), layer)


@pytest.mark.parametrize("layer", LAYERS[:3], ids=str)
def test_so_they_have_where_they_fill_a_gpu_and_each_alone_does_not(layer: Layer) -> None:
    processors = torch.cuda.get_device_properties(CUDA).multi_processor_count
    given = drawn(layer, groups=3, images=2 * processors, on=CUDA)
    one, weight = given[0][0], given[1]
    many = one.repeat(1, 3, 1, 1)
    cuts = [Outputs.of(one, weight[0], processors), Outputs.of(many, weight.flatten(0, 1), processors)]
    assert [cut.each for cut in cuts] == [4, 8]

    assert has_bits_of_each_alone(given, layer)


@pytest.mark.parametrize("layer", LAYERS[1:3], ids=str)
def test_what_is_no_number_shows_and_stays_with_its_member(layer: Layer) -> None:
    assert what_is_no_number_stays(drawn(layer, groups=2, images=20, on=CUDA), layer)


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
        assert apart(members[number].network, others[number].network) == 0


def test_here_they_are_trained_together() -> None:
    assert way([each.course for each in _members()], CUDA).together
