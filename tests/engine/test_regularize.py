"""Each penalty against the formula in its docstring."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from app.contract.training import ElasticNet, GroupLasso, L1Penalty, L2Penalty, ProximalL1, Regularization
from worker.engine.model import Cnn
from worker.engine.regularize import Parameters, add_gradient, penalty, shrink

L1 = L1Penalty(penalty="l1", strength=0.5)
L2 = L2Penalty(penalty="l2", strength=0.5)
ELASTIC = ElasticNet(penalty="elastic-net", strength=0.5, l1_ratio=0.25)
GROUPS = GroupLasso(penalty="group-lasso", strength=0.5)
PROXIMAL = ProximalL1(penalty="l1-proximal", strength=0.5)


def _parameters(*values: list[float]) -> dict[str, nn.Parameter]:
    return {f"fc{number}.weight": nn.Parameter(torch.tensor(each)) for number, each in enumerate(values)}


def _network() -> Parameters:
    network = Cnn((2, 3, 4), 5)
    network(torch.rand(8, 1, 28, 28))  # gives BatchNorm's running statistics values
    return dict(network.named_parameters())


@pytest.mark.parametrize(
    ("regularization", "term", "gradient"),
    [
        (L1, 0.5 * 3.5, [0.5, -0.5, 0.0]),
        (L2, 0.25 * 5.25, [0.5, -1.0, 0.0]),
        (ELASTIC, 0.5 * (0.25 * 3.5 + 0.375 * 5.25), [0.5, -0.875, 0.0]),
        (PROXIMAL, 0.0, None),
        (None, 0.0, None),
    ],
)
def test_a_few_weights_by_hand(
    regularization: Regularization | None, term: float, gradient: list[float] | None
) -> None:
    parameters = _parameters([1.0, -2.0, 0.0], [-0.5])

    found = penalty(regularization, parameters)

    assert found.item() == pytest.approx(term)
    if gradient is not None:
        found.backward()  # type: ignore[no-untyped-call]
        grad = parameters["fc0.weight"].grad
        assert grad is not None
        assert grad.tolist() == gradient


@pytest.mark.parametrize(("regularization", "norm"), [(L1, abs), (L2, lambda value: value**2 / 2)])
def test_it_is_over_all_parameters_and_no_buffer(regularization: Regularization, norm: object) -> None:
    parameters = _network()
    assert callable(norm)

    by_loop = sum(norm(value) for p in parameters.values() for value in p.flatten().tolist())

    assert penalty(regularization, parameters).item() == pytest.approx(0.5 * by_loop, rel=1e-5)


def test_the_groups_are_channels_with_their_batchnorm_and_hidden_units_with_their_bias() -> None:
    parameters = _network()
    total = 0.0
    for layer, width in (("layer1", 2), ("layer2", 3), ("layer3", 4)):
        for channel in range(width):
            names = (f"{layer}.0.weight", f"{layer}.0.bias", f"{layer}.1.weight", f"{layer}.1.bias")
            total += _group([parameters[name][channel] for name in names])
    for unit in range(5):
        total += _group([parameters["fc1.weight"][unit], parameters["fc1.bias"][unit]])

    assert penalty(GROUPS, parameters).item() == pytest.approx(0.5 * total, rel=1e-5)


def _group(parts: list[Tensor]) -> float:
    values = [value for part in parts for value in part.flatten().tolist()]
    return math.sqrt(len(values)) * math.sqrt(sum(value**2 for value in values))


def test_a_group_of_zeros_has_a_gradient_of_zeros() -> None:
    parameters = _network()
    with torch.no_grad():
        for name in ("layer2.0.weight", "layer2.0.bias", "layer2.1.weight", "layer2.1.bias"):
            parameters[name][1] = 0

    penalty(GROUPS, parameters).backward()  # type: ignore[no-untyped-call]

    grad = parameters["layer2.0.weight"].grad
    assert grad is not None
    assert grad[1].count_nonzero() == 0
    assert torch.isfinite(grad).all()


@given(
    st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=20),
    st.floats(2**-10, 1, width=32),
    st.floats(2**-10, 1, width=32),
)
def test_the_proximal_step_takes_the_rate_times_the_strength_from_each_and_stops_at_zero(
    values: list[float], rate: float, strength: float
) -> None:
    parameters = _parameters(values)

    shrink(ProximalL1(penalty="l1-proximal", strength=strength), parameters, rate)

    step = torch.tensor(rate * strength)
    for before, after in zip(values, parameters["fc0.weight"].tolist(), strict=True):
        wanted = math.copysign(max(abs(before) - step.item(), 0), before)
        assert after == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        assert (after == 0.0) == (torch.tensor(abs(before)) <= step)


def test_the_scale_of_batchnorm_may_have_a_strength_of_its_own() -> None:
    parameters = _network()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    shrink(ProximalL1(penalty="l1-proximal", strength=0.01, batchnorm_scale_strength=0.5), parameters, 1.0)

    assert torch.allclose(parameters["layer1.1.weight"], before["layer1.1.weight"] - 0.5)
    moved = (before["fc1.weight"].abs() - parameters["fc1.weight"].abs()).max().item()
    assert moved == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("regularization", [None, L1, L2, ELASTIC, GROUPS], ids=lambda each: each and each.penalty)
def test_no_other_penalty_shrinks_after_the_step(regularization: Regularization | None) -> None:
    parameters = _parameters([1.0, -2.0])

    shrink(regularization, parameters, 1.0)

    assert parameters["fc0.weight"].tolist() == [1.0, -2.0]


def test_the_gradient_of_l1_by_hand_is_autograd_s_to_the_bit() -> None:
    regularization, found = L1Penalty(penalty="l1", strength=0.003), []
    for by_hand in (True, False):
        torch.manual_seed(1)
        network = Cnn((2, 3, 4), 5)
        with torch.no_grad():
            network.fc1.weight[0] = 0
        parameters = dict(network.named_parameters())
        loss = network(torch.rand(4, 1, 28, 28)).square().sum()
        (loss if by_hand else loss + penalty(regularization, parameters)).backward()
        if by_hand:
            add_gradient(regularization, parameters)
        found.append([parameter.grad for parameter in parameters.values()])
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
