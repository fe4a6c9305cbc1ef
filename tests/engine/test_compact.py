from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.contract.network import layer_positions
from app.contract.spec import ModelSpec
from tests.engine.pruned import LAYERS, Pruned, State, dense, images, pruned
from worker.engine.compact import INPUTS, Compact, Widths, build, compact, load, shapes, to_safetensors
from worker.engine.errors import InvalidCheckpoint
from worker.engine.model import EPSILON, Cnn

ROUNDING = 2.0**-24
"""Of one number to float32, relative to it."""


def _logits(network: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(batch)
    return logits


def _magnitude(small: Compact, batch: Tensor) -> Tensor:
    """Logits of the network of absolute values, in float64: no sum on the way to a logit is larger, whatever cancels.

    Every rounding of a weight, relative to it, changes a logit by at most that share of it.
    """
    state = {name: tensor.abs() for name, tensor in small.state.items()}
    return _logits(build(Compact(small.widths, state)).double(), batch.double())


def _assert_equal(network: Pruned, small: Compact, batch: Tensor) -> None:
    whole, magnitude = network.network(), _magnitude(small, batch)
    # In float64 what is left are at most three roundings on any way to a logit: of the convolutions' kernels, or of a
    # bias and of the kernels behind it. The linear layers' weights are what they were.
    exact = _logits(whole.double(), batch.double())
    assert bool(((_logits(build(small).double(), batch.double()) - exact).abs() <= 3.001 * ROUNDING * magnitude).all())
    # In float32 both sides round sums of up to 1,568 terms as they go.
    tolerance = 1e-5 * magnitude
    logits = _logits(build(small), batch)
    assert bool(((logits - exact).abs() <= tolerance).all())
    first, second = exact.topk(2, dim=1).values.T
    clear = first - second > 2 * tolerance.amax(dim=1)
    assert torch.equal(logits.argmax(dim=1)[clear], exact.argmax(dim=1)[clear])


def _as_plain(small: Compact) -> State:
    """The same network with all features read and a BatchNorm that does nothing."""
    channels, hidden = small.widths.channels, small.widths.hidden
    state = Cnn(channels, hidden).state_dict() | {name: t for name, t in small.state.items() if name != INPUTS}
    for layer in LAYERS:
        state[f"{layer}.1.running_var"] = torch.full_like(state[f"{layer}.1.running_var"], 1 - EPSILON)
    weight = torch.zeros(hidden, 49 * channels[2])
    weight[:, small.state.get(INPUTS, torch.arange(weight.shape[1]))] = small.state["fc1.weight"]
    return state | {"fc1.weight": weight}


@settings(max_examples=60, deadline=None)
@given(pruned())
def test_the_compact_network_computes_what_the_pruned_one_does(network: Pruned) -> None:
    _assert_equal(network, compact(network.state), images())


@settings(max_examples=60, deadline=None)
@given(pruned())
def test_nothing_is_left_to_remove(network: Pruned) -> None:
    small = compact(network.state)

    assert compact(_as_plain(small)).widths == small.widths


@settings(max_examples=60, deadline=None)
@given(pruned())
def test_what_is_left_is_read_and_is_fed(network: Pruned) -> None:
    small = compact(network.state)

    for layer, reader in pairwise(("layer1.0", "layer2.0", "layer3.0", "fc1", "fc2")):
        weight, bias, reads = (small.state[name] for name in (f"{layer}.weight", f"{layer}.bias", f"{reader}.weight"))
        if len(weight) == 1:
            continue  # the one that always stays
        if reader != "fc1":  # which reads chosen features
            assert bool(reads.transpose(0, 1).flatten(1).any(dim=1).all())
        fed = weight.flatten(1).any(dim=1)
        assert bool((fed | (bias > 0)).all() if reader.startswith("layer") else fed.all())
    assert small.widths.inputs == 1 or bool(small.state["fc1.weight"].any(dim=0).all())


@settings(max_examples=30, deadline=None)
@given(pruned())
def test_its_shapes_are_those_that_its_widths_say(network: Pruned) -> None:
    small = compact(network.state)

    assert {name: tuple(tensor.shape) for name, tensor in small.state.items()} == shapes(small.widths)
    assert list(shapes(small.widths)) == list(small.state)
    assert small.widths.gathers == (INPUTS in small.state)
    assert build(small).state_dict().keys() == small.state.keys()


def test_a_dense_network_keeps_its_widths() -> None:
    network = dense()

    small = compact(network.state)

    assert small.widths == Widths(channels=(3, 2, 4), hidden=5, inputs=4 * 49)
    assert INPUTS not in small.state
    _assert_equal(network, small, images())


def test_a_network_of_zeros_keeps_one_of_each() -> None:
    network = dense()
    for name, tensor in network.state.items():
        if name.endswith((".weight", ".bias")):
            tensor.zero_()

    small = compact(network.state)

    assert small.widths == Widths(channels=(1, 1, 1), hidden=1, inputs=1)
    assert not _logits(build(small), images()).any()
    assert (small.nonzero, small.macs_effective) == (0, 0)


def test_what_an_empty_network_says_is_in_its_last_bias() -> None:
    network = dense()
    for layer in ("layer1.0", "layer2.0", "layer3.0", "fc1"):
        network.state[f"{layer}.weight"].zero_()

    small = compact(network.state)

    assert small.widths.hidden == 1
    _assert_equal(network, small, images())
    assert torch.equal(_logits(build(small), images()), small.state["fc2.bias"].expand(3, 10))


@pytest.mark.parametrize(
    ("layer", "shift", "channels"),
    [
        ("layer1", 0.7, (3, 2, 4)),  # read by a padded convolution: stays
        ("layer1", -0.7, (2, 2, 4)),
        ("layer1", 0.0, (2, 2, 4)),
        ("layer2", 0.7, (3, 2, 4)),
        ("layer2", -0.7, (3, 1, 4)),
        ("layer3", 0.7, (3, 2, 3)),  # read by fc1: moves into its bias
        ("layer3", -0.7, (3, 2, 3)),
    ],
)
def test_a_channel_whose_scale_is_zero(layer: str, shift: float, channels: tuple[int, int, int]) -> None:
    network = dense()
    network.state[f"{layer}.1.weight"][1] = 0
    network.state[f"{layer}.1.bias"][1] = shift

    small = compact(network.state)

    assert small.widths.channels == channels
    _assert_equal(network, small, images())


def test_a_constant_that_a_bias_cancels_is_rounded_once_and_after_that() -> None:
    network = dense((1, 1, 1), 1)
    network.state["layer3.0.weight"].zero_()
    network.state["layer3.0.bias"][0], network.state["layer3.1.running_mean"][0] = 0.7, 0.1
    network.state["layer3.1.weight"][0], network.state["layer3.1.bias"][0] = 0.3, 0
    network.state["fc1.weight"].fill_(1)
    scale = 0.3 / float(network.state["layer3.1.running_var"][0] + EPSILON) ** 0.5
    network.state["fc1.bias"][0] = -49 * scale * (0.7 - 0.1)

    _assert_equal(network, compact(network.state), images(1))


def test_a_constant_before_a_padded_convolution_is_right_at_the_border_too() -> None:
    network = dense((1, 1, 1), 1)
    network.state["layer1.1.weight"][0] = 0
    network.state["layer1.1.bias"][0] = 2
    small = compact(network.state)
    whole, cut = network.network(), build(small)

    planes = [_logits(net.layer2[0], _logits(net.layer1, images(1))) for net in (whole, cut)]
    planes[0] = _logits(whole.layer2[1], planes[0])

    assert planes[1][0, 0, 0, 0] != pytest.approx(float(planes[1][0, 0, 5, 5]))
    assert torch.allclose(planes[0], planes[1], rtol=1e-6)


def test_a_constant_channel_that_nothing_reads_goes() -> None:
    network = dense()
    network.state["layer1.1.weight"][1] = 0
    network.state["layer1.1.bias"][1] = 2
    network.state["layer2.0.weight"][:, 1] = 0

    assert compact(network.state).widths.channels == (2, 2, 4)


def test_what_a_removed_channel_read_goes_with_it() -> None:
    network = dense()
    network.state["fc2.weight"][:, 2:] = 0  # hidden units 2, 3 and 4 are not read,
    network.state["fc1.weight"][:2, 49:] = 0  # so that of layer3 only the first channel is,
    network.state["layer3.0.weight"][0, 1] = 0  # and of layer2 and layer1 likewise
    network.state["layer2.0.weight"][0, 1:] = 0

    small = compact(network.state)

    assert small.widths == Widths(channels=(1, 1, 1), hidden=2, inputs=49)
    _assert_equal(network, small, images())


def test_single_inputs_that_nothing_reads_go() -> None:
    network = dense()
    network.state["fc1.weight"][:, 49:98] = 0  # channel 1
    network.state["fc1.weight"][:, [0, 48, 195]] = 0

    small = compact(network.state)

    assert small.widths == Widths(channels=(3, 2, 3), hidden=5, inputs=144)
    assert small.state[INPUTS].tolist() == [*range(1, 48), *range(49, 146)]
    _assert_equal(network, small, images())


def test_the_counts_of_a_network_of_a_few_weights_by_hand() -> None:
    network = dense((2, 2, 2), 2)
    for name in ("layer1.0.weight", "layer2.0.weight", "layer3.0.weight", "fc1.weight", "fc1.bias", "fc2.weight"):
        network.state[name].zero_()
    for layer in LAYERS:
        network.state[f"{layer}.1.bias"].fill_(-1)
        network.state[f"{layer}.0.bias"].zero_()
        network.state[f"{layer}.1.running_mean"].zero_()
    network.state["layer1.0.weight"][0, 0, 1, :2] = 1
    network.state["layer2.0.weight"][1, 0, 1, 1] = 1
    network.state["layer2.0.weight"][0, 1, 1, 1] = 1  # reads a channel that is silent
    network.state["layer3.0.weight"][0, 1, 0, :] = 1
    network.state["layer3.0.weight"][1, 0, 0, 0] = 1  # likewise, one layer on
    network.state["fc1.weight"][0, 4:6] = 1
    network.state["fc1.weight"][1, 60] = 1  # likewise
    network.state["fc2.weight"][3] = 1
    network.state["fc2.bias"].fill_(1)

    small = compact(network.state)

    assert small.widths == Widths(channels=(1, 1, 1), hidden=1, inputs=2)
    assert small.parameters == (25 + 1) + (9 + 1) + (9 + 1) + (2 + 1) + (10 + 10)
    assert small.nonzero == (2 + 1) + (1 + 1) + (3 + 1) + 2 + (1 + 10)
    assert small.macs == 784 * 25 + 784 * 9 + 196 * 9 + 2 + 10
    assert small.macs_effective == 784 * 2 + 784 * 1 + 196 * 3 + 2 + 1


@settings(max_examples=30, deadline=None)
@given(pruned())
def test_the_multiplications_counted_are_those_made(network: Pruned) -> None:
    counted = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal counted
        if isinstance(module, nn.Conv2d | nn.Linear):
            counted += output[0].numel() * module.weight[0].numel()

    small = compact(network.state)
    cut = build(small)
    for module in cut.modules():
        module.register_forward_hook(count)
    _logits(cut, images(1))

    weights = {layer: network.state[f"{layer}.weight"] for layer in layer_positions()}
    nonzero = sum(count * int(weights[layer].count_nonzero()) for layer, count in layer_positions().items())
    assert small.macs == counted <= ModelSpec(channels=network.channels, hidden=network.hidden).macs()
    assert small.macs_effective <= min(nonzero, small.macs)
    assert small.parameters == sum(parameter.numel() for parameter in cut.parameters())


def test_folding_knows_batchnorms_epsilon() -> None:
    norm = Cnn((1, 1, 1), 1).layer1[1]

    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.eps == EPSILON


def test_the_input_is_left_alone_and_random_numbers_are_too() -> None:
    network = dense()
    network.state["layer1.1.weight"][1] = 0
    before, drawn = {name: tensor.clone() for name, tensor in network.state.items()}, torch.get_rng_state()

    build(compact(network.state))

    assert all(torch.equal(network.state[name], tensor) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "compact.safetensors"


@pytest.fixture
def small() -> Compact:
    """One that reads chosen inputs."""
    network = dense()
    network.state["fc1.weight"][:, 3] = 0
    return compact(network.state)


@settings(max_examples=30, deadline=None)
@given(pruned())
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, network: Pruned) -> None:
    file, small = tmp_path_factory.getbasetemp() / "compact.safetensors", compact(network.state)
    file.write_bytes(to_safetensors(small))

    loaded = load(file)

    assert loaded.widths == small.widths
    assert loaded.state.keys() == small.state.keys()
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in small.state.items())
    assert load_file(file).keys() == small.state.keys()


def test_the_file_says_what_it_holds(small: Compact, file: Path) -> None:
    file.write_bytes(to_safetensors(small))

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["widths"]) == {"channels": [3, 2, 4], "hidden": 5, "inputs": 195}


def test_the_same_state_gives_the_same_bytes(small: Compact) -> None:
    copy = Compact(small.widths, {name: tensor.clone() for name, tensor in small.state.items()})

    assert len({to_safetensors(small), *(to_safetensors(copy) for _ in range(20))}) == 1


WIDTHS = '{"channels":[3,2,4],"hidden":5,"inputs":195}'


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fc2.bias": None}, r"missing \['fc2.bias'\]"),
        ({"fc3.bias": torch.zeros(1)}, r"unexpected \['fc3.bias'\]"),
        ({"fc2.bias": torch.zeros(11)}, r"fc2.bias has shape \(11,\), expected \(10,\)"),
        ({"fc1.weight": torch.zeros(5, 196)}, r"fc1.weight has shape \(5, 196\), expected \(5, 195\)"),
        ({INPUTS: None}, r"missing \['fc1.inputs'\]"),
        ({INPUTS: torch.zeros(195)}, "fc1.inputs has type F32, expected torch.int64"),
        ({INPUTS: torch.arange(1, 196).flip(0)}, "fc1.inputs must be ascending"),
        ({INPUTS: torch.arange(195) - 1}, "fc1.inputs must be ascending indices of 196"),
        ({INPUTS: torch.arange(195) + 2}, "fc1.inputs must be ascending indices of 196"),
        ({"fc2.bias": torch.full((10,), torch.nan)}, "fc2.bias holds values that are not finite"),
    ],
)
def test_another_network_is_refused_by_name(
    small: Compact, file: Path, changes: dict[str, Tensor | None], words: str
) -> None:
    state = {name: tensor for name, tensor in ({**small.state, **changes}).items() if tensor is not None}
    save_file(state, file, metadata={"widths": WIDTHS})

    with pytest.raises(InvalidCheckpoint, match=words):
        load(file)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "says no widths"),
        ({"widths": "[]"}, "out of bounds"),
        ({"widths": "no json"}, "out of bounds"),
        ({"widths": WIDTHS.replace("195", "197")}, "out of bounds"),
        ({"widths": WIDTHS.replace("195", "0")}, "out of bounds"),
        ({"widths": WIDTHS.replace("195", "196")}, r"unexpected \['fc1.inputs'\]"),
        (
            {"widths": WIDTHS.replace("[3,", "[2,")},
            r"layer1.0.weight has shape \(3, 1, 5, 5\), expected \(2, 1, 5, 5\)",
        ),
    ],
)
def test_widths_that_do_not_hold_are_refused(
    small: Compact, file: Path, metadata: dict[str, str] | None, words: str
) -> None:
    save_file(dict(small.state), file, metadata=metadata)

    with pytest.raises(InvalidCheckpoint, match=words):
        load(file)


def test_what_is_no_safetensors_is_refused(small: Compact, file: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match="cannot be read"):
        load(file)
    file.write_bytes(to_safetensors(small)[:-1])
    with pytest.raises(InvalidCheckpoint, match="cannot be read"):
        load(file)
