"""Pruning in patterns: n of m, and whole units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from app.contract.failure import FailureCode
from app.contract.network import parameter_shapes
from app.contract.pruning import eligible, share_of
from app.contract.spec import ModelSpec
from tests.prunings import SMALL, UNHURRIED, full, masked, pruning, random_mask, shrunk, state_of
from worker.engine.errors import PruningImpossible
from worker.engine.model import Cnn, fresh
from worker.engine.pruning import Mask, prune

LAYERS = ("layer1", "layer2", "layer3", "fc1")
SHARES = st.floats(0, 1, exclude_max=True)
CHANNELS = st.tuples(*[st.integers(1, 9)] * 3)


def _kept_in_groups(keep: Tensor, m: int) -> Tensor:
    """How many are kept of every m consecutive inputs."""
    return keep.movedim(1, -1).reshape(-1, m).sum(1)


@UNHURRIED
@given(st.integers(0, 1000), st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4)]))
def test_n_of_every_m_inputs_stay(seed: int, pattern: tuple[int, int]) -> None:
    n, m = pattern
    state = state_of((4, 4, 8), 8, seed=seed)
    params = pruning("n:m", n=n, m=m)

    after = prune(params, state, full(state))

    for name, keep in after.items():
        assert keep.all() if name not in params.tensors else (_kept_in_groups(keep, m) == n).all(), name


@UNHURRIED
@given(st.integers(0, 1000), st.floats(0, 1))
def test_what_is_masked_is_never_one_of_the_n(seed: int, kept: float) -> None:
    state = state_of((4, 4, 8), 8)
    state["fc1.weight"].zero_()  # so that the values cannot tell what is masked
    before = random_mask(state, kept, seed)

    after = prune(pruning("n:m"), state, before)

    assert shrunk(before, after)
    for name in ("layer2.0.weight", "fc1.weight"):
        had = _kept_in_groups(before[name], 4)
        assert torch.equal(_kept_in_groups(after[name], 4), had.clamp(max=2))


def test_the_largest_of_each_group_stay_and_of_equal_ones_the_last() -> None:
    state = state_of((4, 4, 8), 8)
    state["fc2.weight"] = torch.tensor([[1.0, -4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0]]).repeat(10, 1)
    # Groups of a kernel are the input channels at one place of it.
    state["layer2.0.weight"] = torch.arange(4.0).view(1, 4, 1, 1).expand(4, 4, 3, 3)

    after = prune(pruning("n:m"), state, full(state))

    assert after["fc2.weight"][0].tolist() == [False, True, True, False, False, False, True, True]
    assert after["layer2.0.weight"][0, :, 1, 2].tolist() == [False, False, True, True]


def test_n_of_m_refuses_inputs_that_m_does_not_divide() -> None:
    state = state_of((4, 6, 8), 8)

    with pytest.raises(
        PruningImpossible, match=r"m is 4, which does not divide the 6 inputs of layer3\.0\.weight: "
    ) as e:
        prune(pruning("n:m"), state, full(state))
    assert e.value.code is FailureCode.PRUNING_IMPOSSIBLE
    assert not e.value.code.retryable


def test_leaving_out_what_m_does_not_divide_is_a_way_out() -> None:
    state = state_of((4, 6, 8), 8)

    after = prune(pruning("n:m", tensors=["layer2.0.weight"]), state, full(state))

    assert masked(after) == state["layer2.0.weight"].numel() // 2


def _widths(mask: Mask) -> tuple[int, ...]:
    """How many units of each layer have anything of their own left."""
    owned = [
        *([f"layer{index}.{part}" for part in ("0.weight", "0.bias", "1.weight", "1.bias")] for index in (1, 2, 3)),
        ["fc1.weight", "fc1.bias"],
    ]
    return tuple(
        int(torch.stack([mask[name].reshape(len(mask[name]), -1).any(1) for name in names]).any(0).sum())
        for names in owned
    )


def _channels(
    state: dict[str, Tensor], mask: Mask | None = None, *, step: float | None = None, **fields: Any
) -> tuple[int, ...]:
    mask = mask or full(state)
    after = prune(pruning("channels", **fields), state, mask, sparsity=step)
    assert shrunk(mask, after)
    return _widths(after)


@UNHURRIED
@given(CHANNELS, st.integers(1, 9), SHARES)
def test_the_share_of_each_layers_units_goes(channels: tuple[int, int, int], hidden: int, sparsity: float) -> None:
    full_widths = (*channels, hidden)

    widths = _channels(state_of(channels, hidden), sparsity=sparsity)

    assert widths == tuple(n - share_of(n, sparsity) for n in full_widths)


@UNHURRIED
@given(CHANNELS, SHARES, st.integers(0, 100))
def test_the_share_of_all_channels_goes_but_no_layers_last(
    channels: tuple[int, int, int], sparsity: float, seed: int
) -> None:
    state = state_of(channels, 5, seed)
    state["layer1.1.weight"] *= 1e-6  # first to go

    *widths, hidden = _channels(state, sparsity=sparsity, scope="global")

    assert sum(widths) == max(sum(channels) - share_of(sum(channels), sparsity), 3)
    assert min(widths) >= 1
    assert hidden == 5 - share_of(5, sparsity)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("criterion", ["batchnorm-scale", "l1", "l2"])
def test_one_unit_of_each_layer_stays(scope: str, criterion: str) -> None:
    state = fresh(ModelSpec(), seed=0).state_dict()
    mask = Mask.full({name: state[name] for name in parameter_shapes((16, 16, 32), 300)})

    widths = _channels(state, mask, sparsity=0.999, scope=scope, criterion=criterion)

    # The share is 299 of the hidden units, and under `global` 63 of the 64 channels, but three have to stay.
    assert widths == (1, 1, 1, 1)


@UNHURRIED
@given(CHANNELS, st.integers(1, 9), st.integers(1, 12), SHARES, st.sampled_from(["global", "layer"]))
def test_widths_are_rounded_up_to_a_multiple(
    channels: tuple[int, int, int], hidden: int, multiple: int, sparsity: float, scope: str
) -> None:
    state = state_of(channels, hidden)
    exact = _channels(state, sparsity=sparsity, scope=scope)

    rounded = _channels(state, sparsity=sparsity, scope=scope, multiple=multiple)

    for width, asked, all_there_are in zip(rounded, exact, (*channels, hidden), strict=True):
        assert width == all_there_are or (width % multiple == 0 and asked <= width < asked + multiple)


def test_exact_widths_stay() -> None:
    keep = {"channels": [1, 4, 3], "hidden": 2}

    assert _channels(state_of(), keep=keep) == (1, 4, 3, 2)
    assert _channels(state_of(), keep=keep, multiple=4) == (4, 4, 4, 4)


@UNHURRIED
@given(SHARES, SHARES, st.sampled_from(["global", "layer"]), st.integers(1, 3))
def test_a_step_of_a_schedule_takes_no_more_than_the_last(final: float, step: float, scope: str, multiple: int) -> None:
    state = state_of()

    widths = _channels(state, sparsity=final, step=step, scope=scope, multiple=multiple)

    assert widths == _channels(state, sparsity=min(step, final), scope=scope, multiple=multiple)


@UNHURRIED
@given(st.floats(0, 1, exclude_max=True))
def test_a_step_towards_exact_widths_stops_at_them(step: float) -> None:
    asked = (1, 3, 5, 2)

    widths = _channels(state_of(), keep={"channels": [1, 3, 5], "hidden": 2}, step=step)

    shares = [n - share_of(n, step) for n in (*SMALL[0], SMALL[1])]
    assert widths == tuple(max(pair) for pair in zip(asked, shares, strict=True))


@UNHURRIED
@given(SHARES, SHARES, st.sampled_from(["global", "layer"]))
def test_rounds_lead_to_the_same_units_as_one_shot(one: float, two: float, scope: str) -> None:
    low, high = sorted((one, two))
    state = state_of()
    # By a norm they need not be the same: what read a removed channel has become smaller meanwhile.
    params = pruning("channels", sparsity=high, scope=scope, layers=["conv"])

    in_rounds = prune(params, state, prune(params, state, full(state), sparsity=low))
    at_once = prune(params, state, full(state))

    assert all(torch.equal(in_rounds[name], at_once[name]) for name in at_once)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_channels_of_least_batchnorm_scale_go(scope: str) -> None:
    state = state_of((4, 4, 4), 4)
    for index, scales in enumerate([[1.0, -0.1, 2.0, 3.0], [0.2, 5.0, -4.0, 3.0], [6.0, 7.0, 8.0, -0.3]], start=1):
        state[f"layer{index}.1.weight"] = torch.tensor(scales)

    after = prune(pruning("channels", sparsity=0.25, scope=scope, layers=["conv"]), state, full(state))

    assert after["layer1.1.weight"].tolist() == [True, False, True, True]
    assert after["layer2.1.weight"].tolist() == [False, True, True, True]
    assert after["layer3.1.weight"].tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("criterion", "channel", "unit"),
    [("l1", 0, 0), ("l2", 1, 1), ("batchnorm-scale", 3, 1)],
)
def test_units_go_by_the_norm_that_is_asked_for(criterion: str, channel: int, unit: int) -> None:
    state = state_of((4, 4, 8), 2)
    # Least in the 1-norm: the single 5. Least in the 2-norm: the nine ones.
    for row, values in enumerate([[5.0], [1.0] * 9, [7.0] * 9, [8.0] * 9]):
        state["layer1.0.weight"][row] = 0
        state["layer1.0.weight"][row].view(-1)[: len(values)] = torch.tensor(values)
    state["layer1.1.weight"] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    state["fc1.weight"].zero_()
    state["fc1.weight"][0, 0] = 5
    state["fc1.weight"][1, :9] = 1

    after = prune(
        pruning("channels", keep={"channels": [3, 4, 8], "hidden": 1}, criterion=criterion), state, full(state)
    )

    assert (~after["layer1.0.bias"]).nonzero().flatten().tolist() == [channel]
    assert (~after["fc1.bias"]).nonzero().flatten().tolist() == [unit]


def test_a_unit_goes_with_all_that_reads_it() -> None:
    state = state_of((2, 2, 2), 2)
    for name in ("layer1.1.weight", "layer2.1.weight", "layer3.1.weight"):
        state[name] = torch.tensor([1.0, 0.0])
    state["fc1.weight"][0] = 0

    after = prune(pruning("channels", sparsity=0.5), state, full(state))

    for index in (1, 2, 3):
        for part in ("0.weight", "0.bias", "1.weight", "1.bias"):
            own = after[f"layer{index}.{part}"]
            assert not own[1].any()
        assert after[f"layer{index}.1.bias"].tolist() == [True, False]
    for reader in ("layer2.0.weight", "layer3.0.weight"):
        assert after[reader][0, 0].all()
        assert not after[reader][:, 1].any()
    # Flattened channel by channel: the first 49 pixels are channel 0's. Hidden unit 0 is gone.
    assert after["fc1.weight"][1].tolist() == [True] * 49 + [False] * 49
    assert not after["fc1.weight"][0].any()
    assert after["fc1.bias"].tolist() == [False, True]
    assert after["fc2.weight"].tolist() == [[False, True]] * 10
    assert after["fc2.bias"].all()


@UNHURRIED
@given(SHARES, st.sampled_from(["global", "layer"]))
def test_removed_units_can_be_anything_without_a_difference(sparsity: float, scope: str) -> None:
    state = state_of()
    mask = prune(pruning("channels", sparsity=sparsity, scope=scope), state, full(state))
    network = Cnn(*SMALL).eval()
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    network.load_state_dict(mask.apply(state), strict=False)
    expected = network(images)
    # Running statistics of channels that are gone are nobody's any more.
    for index in (1, 2, 3):
        gone = ~mask[f"layer{index}.1.weight"]
        state[f"layer{index}.1.running_mean"][gone] = 99.0
    network.load_state_dict(mask.apply(state), strict=False)

    assert torch.equal(network(images), expected)


def test_units_that_are_dead_already_count_among_the_removed() -> None:
    state = state_of((4, 4, 8), 6)
    dead = torch.tensor([False, False, True, True])
    names = ("layer1.0.weight", "layer1.0.bias", "layer1.1.weight", "layer1.1.bias")
    mask = full(state).without({name: dead.view(-1, *[1] * (state[name].dim() - 1)) for name in names})

    after = prune(pruning("channels", sparsity=0.5, layers=["conv"]), state, mask)

    assert after["layer1.1.weight"].tolist() == [True, True, False, False]
    assert not after["layer2.0.weight"][:, 2:].any()


def test_a_unit_of_which_anything_is_left_is_not_dead() -> None:
    state = state_of((4, 4, 8), 6)
    state["layer1.1.weight"] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    kernel = torch.tensor([False, False, False, True])
    mask = full(state).without({"layer1.0.weight": kernel.view(4, 1, 1, 1)})

    after = prune(pruning("channels", sparsity=0.25, layers=["conv"]), state, mask)

    assert after["layer1.1.weight"].tolist() == [False, True, True, True]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_layer_that_is_dead_stays_dead_and_no_error(scope: str) -> None:
    state = state_of((2, 2, 2), 2)
    mask = Mask({name: keep & (not name.startswith("layer2")) for name, keep in full(state).items()})

    widths = _channels(state, mask, sparsity=0.5, scope=scope)

    # Under `global` three of six go: the two dead ones and one more.
    assert widths[1] == 0
    assert sum(widths[:3]) == (3 if scope == "global" else 2)


@pytest.mark.parametrize("layers", [["conv"], ["linear"], ["conv", "linear"]])
def test_only_the_layers_asked_for_lose_units(layers: list[str]) -> None:
    state = state_of((4, 4, 4), 4)
    params = pruning("channels", sparsity=0.5, layers=layers)

    after = prune(params, state, full(state))

    convolutions, hidden = (2, 2, 2) if "conv" in layers else (4, 4, 4), 2 if "linear" in layers else 4
    assert _widths(after) == (*convolutions, hidden)
    assert {name for name, keep in after.items() if not keep.all()} == {
        name for name in after if eligible(params, name)
    }


def test_wider_than_the_network_is_impossible() -> None:
    state = state_of()

    with pytest.raises(PruningImpossible, match=r"widths \(4, 5, 8, 6\), the network has \(4, 4, 8, 6\): keep at most"):
        _channels(state, keep={"channels": [4, 5, 8], "hidden": 6})
