from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from app.contract.network import PARAMETER_NAMES
from app.contract.pruning import ThresholdPruning, eligible
from worker.engine.pruning import Mask, prune

Params = ThresholdPruning
WEIGHTS = arrays("float32", st.integers(1, 40), elements=st.floats(-2, 2, width=32))
THRESHOLDS = st.floats(0, 2, width=32)


def _prune(threshold: float, tensor: Tensor) -> Tensor:
    tensors = {"fc1.weight": tensor}
    params = Params(method="threshold", threshold=threshold)
    return prune(params, tensors, Mask.full(tensors)).apply(tensors)["fc1.weight"]


def test_both_ends_of_the_interval_are_pruned() -> None:
    weights = torch.tensor([-0.02, -0.01, -0.0099, 0.0, 0.0099, 0.01, 0.0101])

    # Of numbers in float32, as weights are: 0.01 is pruned at θ = 0.01.
    assert torch.equal(_prune(0.01, weights), torch.tensor([-0.02, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0101]))


def test_a_pruned_entry_is_plus_zero() -> None:
    assert not torch.signbit(_prune(0.5, torch.tensor([-0.1, -0.0, 0.1]))).any()


def test_a_threshold_of_zero_prunes_zeros_alone() -> None:
    assert _prune(0, torch.tensor([0.0, -1e-38, 1e-38])).count_nonzero() == 2


@given(WEIGHTS, THRESHOLDS)
def test_exactly_the_entries_within_the_interval_become_zero(array: object, threshold: float) -> None:
    weights = torch.tensor(array)

    pruned = _prune(threshold, weights)

    for before, after in zip(weights.tolist(), pruned.tolist(), strict=True):
        assert after == (0.0 if -threshold <= before <= threshold else before)


@given(WEIGHTS, THRESHOLDS)
def test_pruning_again_changes_nothing(array: object, threshold: float) -> None:
    once = _prune(threshold, torch.tensor(array))

    assert torch.equal(_prune(threshold, once), once)


@given(WEIGHTS, THRESHOLDS, THRESHOLDS)
def test_a_higher_threshold_keeps_no_entry_that_a_lower_one_prunes(array: object, one: float, two: float) -> None:
    low, high = sorted((one, two))
    tensors = {"fc1.weight": torch.tensor(array)}

    kept = [prune(Params(method="threshold", threshold=t), tensors, Mask.full(tensors)) for t in (low, high)]

    assert not (kept[1]["fc1.weight"] & ~kept[0]["fc1.weight"]).any()


def test_what_was_dropped_stays_dropped() -> None:
    tensors = {"fc1.weight": torch.tensor([5.0, 5.0, 0.0])}
    mask = Mask({"fc1.weight": torch.tensor([True, False, True])})

    assert prune(Params(method="threshold"), tensors, mask)["fc1.weight"].tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("layers", "parameters", "touched"),
    [
        (["conv"], ["weight"], {"layer1.0.weight", "layer2.0.weight", "layer3.0.weight"}),
        (["batchnorm"], ["bias"], {"layer1.1.bias", "layer2.1.bias", "layer3.1.bias"}),
        (["linear"], ["weight", "bias"], {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}),
        (["conv", "batchnorm", "linear"], ["weight", "bias"], set(PARAMETER_NAMES)),
    ],
)
def test_only_what_was_asked_for_is_touched(layers: list[str], parameters: list[str], touched: set[str]) -> None:
    wanted = {"method": "threshold", "threshold": 1, "layers": layers, "parameters": parameters}
    params = Params.model_validate_json(json.dumps(wanted))
    tensors = {name: torch.full((2,), 0.5) for name in PARAMETER_NAMES}

    after = prune(params, tensors, Mask.full(tensors)).apply(tensors)

    assert {name for name, tensor in after.items() if not tensor.any()} == touched
    assert {name for name in PARAMETER_NAMES if eligible(params, name)} == touched


def test_the_input_is_left_alone() -> None:
    weights = torch.tensor([0.001, 1.0])

    _prune(0.01, weights)

    assert weights.tolist() == pytest.approx([0.001, 1.0])


def test_a_mask_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="booleans"):
        Mask({"a": torch.ones(2)})
    with pytest.raises(ValueError, match="not among"):
        Mask({"a": torch.ones(2, dtype=torch.bool)}).apply({})
    with pytest.raises(ValueError, match="shape"):
        Mask({"a": torch.ones(2, dtype=torch.bool)}).apply({"a": torch.ones(3)})


def test_a_mask_drops_even_what_is_not_finite() -> None:
    mask = Mask({"a": torch.tensor([False, False, True])})

    assert mask.apply({"a": torch.tensor([torch.inf, torch.nan, 1.0])})["a"].tolist() == [0.0, 0.0, 1.0]
    assert mask.kept == {"a": 1}


BOTH = Mask({"a": torch.tensor([True, True, False, False])})


def test_a_mask_loses_entries() -> None:
    other = torch.tensor([True, False, True, False])

    assert BOTH.without({"a": other})["a"].tolist() == [False, True, False, False]
    assert BOTH.without({})["a"].tolist() == BOTH["a"].tolist()
    assert BOTH["a"].tolist() == [True, True, False, False]


def test_a_mask_moves_to_a_device() -> None:
    moved = BOTH.to(torch.device("meta"))

    assert moved["a"].device.type == "meta"
    assert BOTH["a"].device.type == "cpu"


def test_in_every_round_a_threshold_prunes_the_same() -> None:
    tensors = {"fc1.weight": torch.tensor([0.001, 0.5, 1.0])}

    for step in (None, 0.0, 0.9):
        after = prune(Params(method="threshold", threshold=0.5), tensors, Mask.full(tensors), sparsity=step)
        assert after["fc1.weight"].tolist() == [False, False, True]
