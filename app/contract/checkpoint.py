"""What a state dict of the `cnn` architecture is: its names, types and shapes, held against one without its values."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from pydantic import ValidationError

from app.contract.network import (
    LEAST_CLASSES,
    LEAST_SIDE,
    MNIST_ENDS,
    MOST_CLASSES,
    MOST_SIDE,
    POOLED,
    Ends,
)
from app.contract.spec import ModelSpec


class TensorFacts(NamedTuple):
    """All that is known of a tensor ahead of its values. `dtype` is safetensors' word: F32, I64 and so on."""

    dtype: str
    shape: tuple[int, ...]


_NO_FAULTS: Mapping[str, str] = MappingProxyType({})


class NotTheNetwork(ValueError):
    """The message names what is wrong, what was expected and what was found; `faults` says it of each tensor at fault,
    if it is not all of them."""

    def __init__(self, message: str, faults: Mapping[str, str] = _NO_FAULTS) -> None:
        super().__init__(message)
        self.faults = faults


class Network(NamedTuple):
    """All that decides of a network's tensors' shapes."""

    model: ModelSpec
    ends: Ends = MNIST_ENDS

    def __str__(self) -> str:
        return f"channels {list(self.model.channels)} and hidden {self.model.hidden}, for {self.ends}"


def tensors_of(model: ModelSpec, ends: Ends = MNIST_ENDS) -> dict[str, TensorFacts]:
    """Every tensor of a state dict, BatchNorm's running statistics included, in the order of PyTorch's."""
    tensors: dict[str, TensorFacts] = {}
    for name, shape in model.shapes(ends).items():
        tensors[name] = TensorFacts("F32", shape)
        if name.endswith(".1.bias"):  # BatchNorm's last parameter
            layer = name.removesuffix("bias")
            tensors[layer + "running_mean"] = tensors[layer + "running_var"] = tensors[name]
            tensors[layer + "num_batches_tracked"] = TensorFacts("I64", ())
    return tensors


NAMES = tuple(tensors_of(ModelSpec()))
_SIDES = range(LEAST_SIDE >> sum(POOLED), (MOST_SIDE >> sum(POOLED)) + 1)
_FEATURES = frozenset(height * width for height in _SIDES for width in _SIDES)
_FEATURES_TOLD = "(height // 4)·(width // 4) features"
_WIDTHS = ("layer1.0.weight", "layer2.0.weight", "layer3.0.weight", "fc1.weight")
"""The first dimension of each is a width of the network."""
_RANKS = {name: len(facts.shape) for name, facts in tensors_of(ModelSpec()).items()}
_MOST_TOLD = 5


def network_of(tensors: Mapping[str, TensorFacts], model: ModelSpec | None = None, ends: Ends | None = None) -> Network:
    """The network whose state dict these tensors are: of the widths `model` and with those `ends`, or what the shapes
    say. Raises `NotTheNetwork`."""
    _refuse_names(tensors)
    widths = model or _widths(tensors)
    found = Network(widths, ends or _ends(tensors, widths))
    for name, expected in tensors_of(*found).items():
        if tensors[name].shape != expected.shape:
            inferred = "" if model and ends else f", in a network of {found}"
            raise _wrong(name, f"has shape {list(tensors[name].shape)}, expected {list(expected.shape)}{inferred}")
        if tensors[name].dtype != expected.dtype:
            hint = ": save model.float().state_dict()" if expected.dtype == "F32" else ""
            raise _wrong(name, f"has type {tensors[name].dtype}, expected {expected.dtype}{hint}")
    return found


def _wrong(name: str, what: str) -> NotTheNetwork:
    return NotTheNetwork(f"{name} {what}", {name: f"{name} {what}"})


def _refuse_names(found: Collection[str]) -> None:
    if prefix := _prefix(found):
        raise NotTheNetwork(
            f"every name begins with {prefix!r}, where none of the cnn architecture does: save the state dict of the "
            "network inside, as model.module.state_dict() does"
        )
    missing = [name for name in NAMES if name not in found]
    unexpected = [name for name in found if name not in NAMES]
    if missing or unexpected:
        told = [f"{what} {_told(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names]
        faults = {name: f"{name} is missing" for name in missing}
        faults |= {name: f"{_shown(name)} is no tensor of the cnn architecture: leave it out" for name in unexpected}
        raise NotTheNetwork(f"no state dict of the cnn architecture: {'; '.join(told)}", faults)


def _prefix(found: Collection[str]) -> str:
    """What alone keeps these from being the network's names, as wrappers put it ahead of each; else nothing."""
    last = next((name for name in found if name.endswith(NAMES[-1])), NAMES[-1])
    prefix = last.removesuffix(NAMES[-1])
    return prefix if set(found) == {prefix + name for name in NAMES} else ""


def _told(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_TOLD} more" if len(names) > _MOST_TOLD else ""
    return ", ".join(map(_shown, names[:_MOST_TOLD])) + more


def _shown(name: str) -> str:
    """Of what a client sent, no more than the start."""
    return repr(name if len(name) <= 64 else f"{name[:61]}...")


def _widths(tensors: Mapping[str, TensorFacts]) -> ModelSpec:
    for name in _WIDTHS:
        if len(tensors[name].shape) != _RANKS[name]:
            raise _wrong(name, f"has shape {list(tensors[name].shape)}, expected {_RANKS[name]} dimensions")
    first, second, third, hidden = (tensors[name].shape[0] for name in _WIDTHS)
    try:
        return ModelSpec(channels=(first, second, third), hidden=hidden)
    except ValidationError as error:
        detail = error.errors()[0]
        name = _WIDTHS[-1 if detail["loc"][0] == "hidden" else int(detail["loc"][1])]
        bound = detail["msg"].removeprefix("Input ")
        shape = list(tensors[name].shape)
        raise _wrong(name, f"has shape {shape}, expected a first dimension, the width, that {bound}") from error


def _ends(tensors: Mapping[str, TensorFacts], model: ModelSpec) -> Ends:
    """What is no data set's is refused by what it is read from."""
    channels = _dimension(tensors, "layer1.0.weight", 1, (1, 3), "1 or 3 image channels")
    read, last = f"{_FEATURES_TOLD} of each of {model.channels[2]} channels", model.channels[2]
    features = _dimension(tensors, "fc1.weight", 1, {last * each for each in _FEATURES}, read) // last
    told = f"{LEAST_CLASSES} to {MOST_CLASSES} classes"
    return Ends(channels, features, _dimension(tensors, "fc2.weight", 0, range(LEAST_CLASSES, MOST_CLASSES + 1), told))


def _dimension(tensors: Mapping[str, TensorFacts], name: str, which: int, allowed: Container[int], told: str) -> int:
    shape = tensors[name].shape
    if len(shape) != _RANKS[name] or shape[which] not in allowed:
        raise _wrong(name, f"has shape {list(shape)}, expected {told} in dimension {which}")
    return shape[which]
