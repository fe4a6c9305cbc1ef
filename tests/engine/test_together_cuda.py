"""Members that are trained together on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.contract.spec import ModelSpec
from tests.engine.conftest import Listener
from tests.engine.together import DIGITS, alone, apart, copied, course, going_on, half_masked, interrupted, same_bits
from tests.specs import Document
from worker.engine.convolve import Outputs, convolved
from worker.engine.errors import NonFiniteLoss
from worker.engine.model import fresh
from worker.engine.normalize import Affine, Running, normalized
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


Layer = tuple[int, int, tuple[int, int], int, bool]
LAYERS: list[Layer] = [
    (1, 16, (28, 28), 5, False),
    (16, 16, (28, 28), 3, True),
    (16, 32, (14, 14), 3, True),
    (3, 8, (13, 11), 5, False),
    (20, 40, (9, 9), 3, True),
]
"""Channels in and out, the images' size, the kernel's, and whether pooled."""


def _drawn(layer: Layer, groups: int, images: int = 20) -> list[Tensor]:
    """For each group: images, weight, bias, scale, shift and the gradient of what comes out."""
    width_in, width_out, (height, width), kernel, pooled = layer
    stream = torch.Generator().manual_seed(2)
    side = 2 if pooled else 1
    shapes = [
        (images, width_in, height, width),
        (width_out, width_in, kernel, kernel),
        *[(width_out,)] * 3,
        (images, width_out, height // side, width // side),
    ]
    return [torch.randn(groups, *shape, generator=stream).to(CUDA) for shape in shapes]


def _computed(given: list[Tensor], layer: Layer) -> list[Tensor]:
    """What comes out of the groups side by side, their running statistics, and the gradients, group by group."""
    groups, (images, weight, bias, scale, shift, slopes) = len(given[0]), given
    inputs = [images.transpose(0, 1).flatten(1, 2), *(each.flatten(0, 1) for each in (weight, bias, scale, shift))]
    inputs = [each.contiguous().requires_grad_() for each in inputs]
    running = Running(torch.zeros_like(inputs[2]), torch.ones_like(inputs[2]), 0.1, 1e-5)
    features = convolved(inputs[0], inputs[1], groups)
    out = normalized(features, Affine(*inputs[2:]), running, pooled=layer[-1])
    by_inputs = torch.autograd.grad(out, inputs, slopes.transpose(0, 1).flatten(1, 2))
    of_images = [torch.stack(each.chunk(groups, dim=1)) for each in (out.detach(), by_inputs[0])]
    flat = (running.mean.detach(), running.variance.detach(), *by_inputs[1:])
    return [*of_images, *(torch.stack(each.chunk(groups)) for each in flat)]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers_side_by_side_have_the_bits_of_each_alone(layer: Layer) -> None:
    given = _drawn(layer, groups=3)

    together = _computed(given, layer)

    for number in range(3):
        alone = _computed([each[number : number + 1] for each in given], layer)
        assert all(torch.equal(one[number], other[0]) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("layer", LAYERS[:3], ids=str)
def test_so_they_have_where_they_fill_a_gpu_and_each_alone_does_not(layer: Layer) -> None:
    processors = torch.cuda.get_device_properties(CUDA).multi_processor_count
    given = _drawn(layer, groups=3, images=2 * processors)
    one, weight = given[0][0], given[1]
    many = one.repeat(1, 3, 1, 1)
    cuts = [Outputs.of(one, weight[0], processors), Outputs.of(many, weight.flatten(0, 1), processors)]
    assert [cut.each for cut in cuts] == [4, 8]

    together = _computed(given, layer)

    for number in range(3):
        alone = _computed([each[number : number + 1] for each in given], layer)
        assert all(torch.equal(one[number], other[0]) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("layer", LAYERS[1:3], ids=str)
def test_what_is_no_number_shows_and_stays_with_its_member(layer: Layer) -> None:
    given = _drawn(layer, groups=2)
    given[0][0, 2, 3, 1, 1] = torch.nan

    out, by_images, *_ = _computed(given, layer)

    assert bool(out[0].isnan().any(dim=(0, 2, 3)).all())
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
        assert apart(members[number].network, others[number].network) == 0


def test_here_they_are_trained_together() -> None:
    assert way([each.course for each in _members()], CUDA).together
