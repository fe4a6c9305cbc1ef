"""By which numbers entries are ranked: worked out by hand, or another way."""

from __future__ import annotations

import copy
import math
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from app.contract.network import PARAMETER_NAMES
from app.contract.pruning import share_of
from tests.prunings import UNHURRIED, full, pruning, random_mask, state_of
from worker.engine.model import Cnn
from worker.engine.pruning import BatchGradients, Mask, needs_gradients, prune, taylor, thresholds
from worker.engine.pruning.gradients import gradients
from worker.engine.pruning.lamp import lamp_scores


def _doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_lamp_scores_are_squares_over_what_is_at_least_as_large() -> None:
    assert torch.equal(lamp_scores(torch.tensor([1.0, 2.0, 3.0])), _doubles(1 / 14, 4 / 13, 1.0))
    assert torch.equal(lamp_scores(torch.tensor([2.0, 2.0])), _doubles(0.5, 1.0))


def test_lamp_scores_of_nothing_but_zeros_are_zero() -> None:
    assert torch.equal(lamp_scores(torch.zeros(3)), _doubles(0.0, 0.0, 0.0))
    assert torch.equal(lamp_scores(torch.tensor([0.0, 1e-30])), _doubles(0.0, 1.0))
    assert lamp_scores(torch.zeros(0)).shape == (0,)


def test_what_is_not_finite_spoils_no_other_lamp_score() -> None:
    scores = lamp_scores(torch.tensor([3.0, 4.0, math.inf, math.nan]))

    assert torch.equal(scores, _doubles(9 / 25, 1.0, math.inf, math.inf))


def test_lamp_ranks_by_what_is_left_in_the_tensor() -> None:
    tensors = {"fc1.weight": torch.tensor([10.0, 20.0, 30.0]), "fc2.weight": torch.tensor([1.0, 2.0])}
    # Scores: 1/14, 4/13, 1 and 1/5, 1. By magnitude both of fc2 would go first.

    after = prune(pruning("magnitude", keep=3), tensors, Mask.full(tensors))

    assert after["fc1.weight"].tolist() == [False, True, True]
    assert after["fc2.weight"].tolist() == [False, True]


def test_lamp_does_not_count_what_is_masked() -> None:
    tensors = {"fc1.weight": torch.tensor([3.0, 4.0, 100.0]), "fc2.weight": torch.tensor([2.0, 4.0])}
    mask = Mask({"fc1.weight": torch.tensor([True, True, False]), "fc2.weight": torch.tensor([True, True])})
    # With the masked 100 fc1's 3 would score nothing; without it 9/25, and fc2's 2 scores 4/20.

    after = prune(pruning("magnitude", keep=3), tensors, mask)

    assert after["fc1.weight"].tolist() == [True, True, False]
    assert after["fc2.weight"].tolist() == [False, True]


@UNHURRIED
@given(st.integers(0, 1000), st.sampled_from(["magnitude", "bn-folded"]))
def test_lamp_spares_the_largest_entry_of_every_tensor(seed: int, method: str) -> None:
    state = state_of(seed=seed)
    state["fc2.weight"] *= 1e-12  # which ranking all together would empty at once

    after = prune(pruning(method, keep=len(PARAMETER_NAMES)), state, full(state))

    assert set(after.kept.values()) == {1}


def _folded(state: dict[str, Tensor], index: int) -> tuple[Tensor, Tensor]:
    """Kernel and bias with BatchNorm folded in by PyTorch; its shift and mean left out, which come on top."""
    zeros = torch.zeros_like(state[f"layer{index}.1.bias"])
    return nn.utils.fuse_conv_bn_weights(
        state[f"layer{index}.0.weight"],
        state[f"layer{index}.0.bias"],
        zeros,
        state[f"layer{index}.1.running_var"],
        nn.BatchNorm2d(1).eps,
        state[f"layer{index}.1.weight"],
        zeros,
    )


@UNHURRIED
@given(st.integers(0, 1000), st.floats(0, 1, exclude_max=True), st.sampled_from(["global", "layer", "lamp"]))
def test_bn_folded_prunes_what_is_least_once_batchnorm_is_folded_in(seed: int, sparsity: float, scope: str) -> None:
    # In double precision the two ways of computing it cannot swap two entries by rounding.
    state = {name: tensor.double() for name, tensor in state_of(seed=seed).items()}
    state["layer2.1.running_var"] *= 1e-5  # as small as what BatchNorm adds to it
    folded = dict(state)
    for index in (1, 2, 3):
        folded[f"layer{index}.0.weight"], folded[f"layer{index}.0.bias"] = _folded(state, index)

    ours = prune(pruning("bn-folded", scope=scope, sparsity=sparsity), state, full(state))

    expected = prune(pruning("magnitude", scope=scope, sparsity=sparsity), folded, full(state))
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_a_channel_that_batchnorm_silences_goes_first() -> None:
    state = state_of()
    state["layer2.1.weight"] = torch.tensor([0.0, 1.0, 1.0, 1.0])
    params = pruning("bn-folded", scope="layer", sparsity=0.25, layers=["conv"], parameters=["weight"])

    after = prune(params, state, full(state))

    assert after["layer2.0.weight"].any((1, 2, 3)).tolist() == [False, True, True, True]


WEIGHTS = {"fc2.bias": torch.tensor([1.0, 2.0, 4.0, 3.0])}
BATCHES = [
    BatchGradients(100, {"fc2.bias": torch.tensor([3.0, -1.0, 0.5, 0.0])}),
    BatchGradients(50, {"fc2.bias": torch.tensor([-3.0, -1.0, 0.5, 1.5])}),
]
# (w·g)² of the batches: 9 4 4 0 and 9 4 4 20.25, so on average 9, 4, 4, 10.125.
# |w·ḡ| with ḡ = (2·g₁ + g₂)/3 = 1, −1, 0.5, 0.5: 1, 2, 2, 1.5.


@pytest.mark.parametrize(
    ("method", "order"),
    [("taylor", [1, 2, 0, 3]), ("snip", [0, 3, 1, 2])],
)
def test_sensitivities_rank_as_worked_out_by_hand(method: str, order: list[int]) -> None:
    for count in range(4):
        after = prune(
            pruning(method, keep=4 - count, scope="global"), WEIGHTS, Mask.full(WEIGHTS), gradients=iter(BATCHES)
        )
        assert set((~after["fc2.bias"]).nonzero().flatten().tolist()) == set(order[:count])


def test_sensitivities_do_not_underflow() -> None:
    weights = {"fc2.bias": torch.tensor([3e-30, 2e-30, 1e-30])}
    batch = BatchGradients(1, {"fc2.bias": torch.full((3,), 1e-30)})

    for method in ("taylor", "snip"):
        after = prune(pruning(method, keep=1), weights, Mask.full(weights), gradients=[batch])
        assert after["fc2.bias"].tolist() == [True, False, False]


@pytest.mark.parametrize("method", ["taylor", "snip"])
def test_sensitivities_need_gradients(method: str) -> None:
    assert needs_gradients(pruning(method, keep=1))
    with pytest.raises(ValueError, match="at least one batch"):
        prune(pruning(method, keep=1), WEIGHTS, Mask.full(WEIGHTS))


@pytest.mark.parametrize("method", ["magnitude", "bn-folded", "random"])
def test_other_scores_leave_gradients_unread(method: str) -> None:
    params, unread = pruning(method, keep=1), iter(BATCHES)

    prune(params, WEIGHTS, Mask.full(WEIGHTS), gradients=unread)

    assert not needs_gradients(params)
    assert len(list(unread)) == len(BATCHES)


def test_std_prunes_within_so_many_deviations_of_each_tensor() -> None:
    # Deviations √(2·16/4) ≈ 2.83 and √(0.02/2) = 0.1.
    tensors = {"fc2.weight": torch.tensor([-4.0, 0.0, 4.0, 0.0]), "fc2.bias": torch.tensor([1.1, 0.9])}

    after = prune(pruning("std", multiplier=1.4), tensors, Mask.full(tensors))

    assert after["fc2.weight"].tolist() == [True, False, True, False]
    assert after["fc2.bias"].tolist() == [True, True]


def test_std_takes_both_ends_of_the_interval() -> None:
    tensors = {"fc2.bias": torch.tensor([-1.0, 1.0])}

    assert prune(pruning("std", multiplier=1), tensors, Mask.full(tensors)).kept == {"fc2.bias": 0}


def test_std_is_of_the_entries_that_are_kept() -> None:
    tensors = {"fc2.bias": torch.tensor([100.0, 1.0, 3.0])}
    mask = Mask({"fc2.bias": torch.tensor([False, True, True])})

    # Of 1 and 3 it is 1; with the 100 it would be 46, with a 0 in its place 1.25.
    assert prune(pruning("std", multiplier=0.9), tensors, mask)["fc2.bias"].tolist() == [False, True, True]
    assert prune(pruning("std", multiplier=1.1), tensors, mask)["fc2.bias"].tolist() == [False, False, True]


@pytest.mark.parametrize("values", [[0.5], [2.0, 2.0], [0.0]])
def test_without_spread_std_prunes_zeros_alone(values: list[float]) -> None:
    tensors = {"fc2.bias": torch.tensor(values)}

    after = prune(pruning("std", multiplier=100), tensors, Mask.full(tensors))

    assert after["fc2.bias"].tolist() == [value != 0 for value in values]


def test_std_of_a_tensor_without_kept_entries_is_no_error() -> None:
    tensors = {"fc2.bias": torch.ones(3)}
    mask = Mask({"fc2.bias": torch.zeros(3, dtype=torch.bool)})

    assert prune(pruning("std"), tensors, mask).kept == {"fc2.bias": 0}


@UNHURRIED
@given(st.integers(0, 1000), st.floats(0, 5), st.floats(0, 1))
def test_the_thresholds_told_are_those_that_prune(seed: int, multiplier: float, kept: float) -> None:
    state = state_of(seed=seed)
    mask = random_mask(state, kept, seed)
    params = pruning("std", multiplier=multiplier, layers=["conv", "linear"])

    told, after = thresholds(params, state, mask), prune(params, state, mask)

    assert set(told) == {name for name in PARAMETER_NAMES if ".1." not in name}
    for name, limit in told.items():
        assert limit is not None
        assert torch.equal(after[name], mask[name] & (state[name].double().abs() > limit))


def test_thresholds_are_told_where_a_method_has_them() -> None:
    state = state_of()

    assert thresholds(pruning("threshold", threshold=0.25), state, full(state)) == dict.fromkeys(PARAMETER_NAMES, 0.25)
    assert thresholds(pruning("random", keep=1, layers=["linear"], parameters=["bias"]), state, full(state)) == {
        "fc1.bias": None,
        "fc2.bias": None,
    }
    assert set(thresholds(pruning("n:m"), state, full(state))) == {
        "layer2.0.weight",
        "layer3.0.weight",
        "fc1.weight",
        "fc2.weight",
    }


def _images(count: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    return torch.rand(count, 1, 28, 28, generator=source), torch.randint(10, (count,), generator=source)


def _network() -> Cnn:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Cnn((2, 2, 2), 3)


def test_gradients_are_those_of_a_backward_pass_in_training_mode() -> None:
    network, (images, labels) = _network().eval(), _images(10)
    reference = copy.deepcopy(network).train()

    found = list(gradients(network, images, labels, count=10, batch=4))

    assert [batch.size for batch in found] == [4, 3, 3]
    for batch, part in zip(found, torch.split(torch.arange(10), [4, 3, 3]), strict=True):
        reference.zero_grad()
        functional.cross_entropy(reference(images[part]), labels[part]).backward()  # type: ignore[no-untyped-call]
        assert set(batch.gradients) == set(PARAMETER_NAMES)
        for name, parameter in reference.named_parameters():
            assert parameter.grad is not None
            assert torch.equal(batch.gradients[name], parameter.grad)


def test_a_single_image_more_does_not_rule_the_taylor_scores() -> None:
    images = torch.zeros(101, 1)
    images[-1] = 1  # alone in a second batch it would say 2,500 times as much
    network = nn.Linear(1, 10)

    scores = taylor.scores({"weight": network.weight.detach()}, gradients(network, images, torch.arange(101) % 10, 101))

    slope = network(images[-1]).softmax(0) - functional.one_hot(torch.tensor(0), 10)
    by_hand = (network.weight[:, 0] * slope / 50).square() / 2
    torch.testing.assert_close(scores["weight"][:, 0], by_hand.detach().double())


def test_batches_weighted_by_size_give_the_gradient_of_all_images() -> None:
    network, (images, labels) = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), _images(7)

    parts = list(gradients(network, images, labels, count=7, batch=3))
    [whole] = gradients(network, images, labels, count=7, batch=7)

    for name, gradient in whole.gradients.items():
        mean = sum(batch.size * batch.gradients[name] for batch in parts) / 7
        torch.testing.assert_close(mean, gradient)


@pytest.mark.parametrize("read", [0, 1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_leave_the_network_as_it_was(read: int, training: bool) -> None:
    network, (images, labels) = _network().train(training), _images(6)
    network.fc2.bias.grad = torch.ones(10)
    before = copy.deepcopy(network.state_dict())
    batches = gradients(network, images, labels, count=6, batch=2)

    assert len(list(islice(batches, read))) == read

    # The reader holds on to `batches`: nothing waits for it to end.
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert {module.training for module in network.modules()} == {training}
    assert [name for name, parameter in network.named_parameters() if parameter.grad is not None] == ["fc2.bias"]
    assert torch.equal(network.fc2.bias.grad, torch.ones(10))


@UNHURRIED
@given(st.integers(1, 40), st.integers(1, 60))
def test_images_are_evenly_spaced_and_no_more_than_there_are(available: int, count: int) -> None:
    # Each image is a class of its own, and the gradient by the bias is least at its class.
    network = nn.Linear(1, available)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)

    found = gradients(network, torch.zeros(available, 1), torch.arange(available), count, batch=1)

    chosen = [int(batch.gradients["bias"].argmin()) for batch in found]
    assert len(chosen) == min(count, available)
    gaps = {after - before for before, after in zip([0, *chosen], [*chosen, available], strict=True)} - {0}
    assert max(gaps) - min(gaps) <= 1


def test_gradients_come_also_where_none_are_wanted() -> None:
    with torch.no_grad():
        [batch] = gradients(_network(), *_images(2), count=2)

    assert batch.gradients["fc1.weight"].any()


def test_pruning_by_gradients_of_the_network_itself() -> None:
    network, (images, labels) = _network(), _images(20)
    state, mask = network.state_dict(), Mask.full(dict(network.named_parameters()))
    total = sum(mask.kept.values())

    for method in ("taylor", "snip"):
        params = pruning(method, sparsity=0.9, images=20)
        after = prune(params, state, mask, gradients=gradients(network, images, labels, params.images))
        assert sum(after.kept.values()) == total - share_of(total, 0.9)


def test_parameters_that_training_goes_on_with_can_be_pruned() -> None:
    parameters = dict(_network().named_parameters())
    mask = random_mask({name: parameter.detach() for name, parameter in parameters.items()}, 0.9)

    for method in ("magnitude", "threshold", "std"):
        amount = {"sparsity": 0.5} if method == "magnitude" else {}
        assert sum(prune(pruning(method, **amount), parameters, mask).kept.values()) < sum(mask.kept.values())
