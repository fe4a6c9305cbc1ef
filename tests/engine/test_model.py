from __future__ import annotations

import pytest
import torch
from torch import nn

from app.contract.checkpoint import TensorFacts, tensors_of
from app.contract.network import MNIST_ENDS, MNIST_SHAPE, PARAMETER_NAMES, DataShape, Ends
from app.contract.pruning import place_of
from app.contract.spec import ModelSpec
from worker.engine.device import place
from worker.engine.model import Cnn, fresh

SOURCE = ModelSpec()


def _written_down(first: int, second: int, third: int, hidden: int) -> nn.Sequential:
    """The same network as one plain sequence."""
    return nn.Sequential(
        *(nn.Conv2d(1, first, 5, padding=2), nn.BatchNorm2d(first), nn.ReLU()),
        *(nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(second, third, 3, padding=1), nn.BatchNorm2d(third), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(7 * 7 * third, hidden), nn.Linear(hidden, 10)),
    )


@pytest.mark.parametrize("widths", [(16, 16, 32, 300), (1, 1, 1, 1), (3, 5, 7, 11)])
def test_it_computes_what_the_plain_sequence_computes(widths: tuple[int, int, int, int]) -> None:
    first, second, third, hidden = widths
    ours, plain = Cnn((first, second, third), hidden).eval(), _written_down(*widths).eval()
    plain.load_state_dict(dict(zip(plain.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))

    assert torch.equal(ours(images), plain(images))


@pytest.mark.parametrize("widths", [(16, 16, 32, 300), (3, 5, 7, 11)])
def test_a_training_step_moves_it_as_it_moves_the_plain_sequence(widths: tuple[int, int, int, int]) -> None:
    first, second, third, hidden = widths
    ours, plain = Cnn((first, second, third), hidden), _written_down(*widths)
    plain.load_state_dict(dict(zip(plain.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))

    for network in (ours, plain):
        nn.functional.cross_entropy(network(images), torch.arange(8)).backward()  # type: ignore[no-untyped-call]

    pairs = zip(ours.named_parameters(), plain.parameters(), strict=True)
    assert [name for (name, one), other in pairs if not torch.equal(one.grad, other.grad)] == []  # type: ignore[arg-type]


def test_on_a_cpu_it_lies_channels_last() -> None:
    network = fresh(SOURCE, seed=0)
    place(network, torch.device("cpu"))

    features = network.layer1(torch.zeros(2, 1, 28, 28))
    assert features.is_contiguous(memory_format=torch.channels_last)
    assert network.get_parameter("layer2.0.weight").is_contiguous(memory_format=torch.channels_last)


def test_the_sources_network_has_its_size_and_its_keys() -> None:
    network = fresh(SOURCE, seed=0)

    assert sum(parameter.numel() for parameter in network.parameters()) == SOURCE.parameters() == 481_214
    assert tuple(name for name, _ in network.named_parameters()) == PARAMETER_NAMES
    assert {name.rpartition(".")[0] for name in network.state_dict()} == {
        *("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "fc1", "fc2")
    }


@pytest.mark.parametrize("shape", [MNIST_SHAPE, DataShape(channels=3, height=10, width=13, classes=4)], ids=str)
@pytest.mark.parametrize("model", [SOURCE, ModelSpec(channels=(3, 5, 7), hidden=11)])
def test_the_contract_counts_the_multiplications_that_are_made(model: ModelSpec, shape: DataShape) -> None:
    counted = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal counted
        if isinstance(module, nn.Conv2d):
            counted += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            counted += module.weight.numel()

    network = fresh(model, 0, shape.ends).eval()
    for module in network.modules():
        module.register_forward_hook(count)
    logits = network(torch.zeros(1, shape.channels, shape.height, shape.width))

    assert logits.shape == (1, shape.classes)
    assert counted == model.macs(shape)
    assert SOURCE.macs() == 3_496_504


def test_initial_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(99)
    first = fresh(SOURCE, seed=7).state_dict()
    torch.manual_seed(1)
    again, other = fresh(SOURCE, seed=7).state_dict(), fresh(SOURCE, seed=8).state_dict()

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])


@pytest.mark.parametrize("ends", [MNIST_ENDS, Ends(3, 6, 3)])
def test_the_contract_knows_the_networks_state_dict(ends: Ends) -> None:
    words = {torch.float32: "F32", torch.int64: "I64"}
    state = fresh(SOURCE, 0, ends).state_dict()

    found = {name: TensorFacts(words[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()}

    assert list(found.items()) == list(tensors_of(SOURCE, ends).items())


def test_every_parameter_has_its_place() -> None:
    modules = dict(fresh(SOURCE, seed=0).named_modules())
    kinds = {nn.Conv2d: "conv", nn.BatchNorm2d: "batchnorm", nn.Linear: "linear"}

    for name in PARAMETER_NAMES:
        place = place_of(name)
        assert f"{place.layer}.{place.kind}" == name
        assert kinds[type(modules[place.layer])] == place.layer_kind
