"""Compaction: a pruned network made physically smaller, computing the same function in evaluation mode.

BatchNorm is folded into the convolution before it. Then goes what cannot change an output: channels, hidden units and
single inputs of fc1 that nothing reads, and those that emit a constant, which moves into the bias of what reads it.
A constant other than zero before a convolution stays: the convolution's padding is zero, so that at the border a
bias would be wrong.

The compact state has the keys of the `cnn` architecture without BatchNorm's. Where fc1 does not read every feature of
layer3, `fc1.inputs` (int64, ascending) says which of the flattened features it reads. One of each always stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

import safetensors
import safetensors.torch
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from app.contract.closed import Closed
from app.contract.network import KERNELS, MNIST_SHAPE, POOLED, DataShape, layer_positions, parameter_shapes
from app.contract.pruning import place_of
from app.contract.spec import Channels
from worker.engine.errors import InvalidCheckpoint
from worker.engine.model import EPSILON

State = Mapping[str, Tensor]

INPUTS = "fc1.inputs"

_LAYERS = ("layer1.0", "layer2.0", "layer3.0", "fc1", "fc2")
_DTYPES = {"F32": torch.float32, "I64": torch.int64}


class Widths(Closed):
    """What is left of each layer: enough to build the compact network."""

    channels: tuple[Channels, Channels, Channels]
    hidden: Annotated[int, Field(ge=1, le=4096)]
    inputs: Annotated[int, Field(ge=1, description="Features of layer3 that fc1 reads.")]
    shape: DataShape = MNIST_SHAPE

    @model_validator(mode="after")
    def _no_more_inputs_than_features(self) -> Self:
        if self.inputs > self.features:
            raise ValueError(f"inputs must be at most {self.shape.features} for each channel of layer3")
        return self

    @property
    def features(self) -> int:
        """Of layer3, that fc1 can read."""
        return self.shape.features * self.channels[2]

    @property
    def gathers(self) -> bool:
        """Whether fc1 reads some of the features only, and the state says which."""
        return self.inputs < self.features


def shapes(widths: Widths) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape by its key, in the order of the network's state dict."""
    plain = parameter_shapes(widths.channels, widths.hidden, widths.shape.ends)
    compact = {name: shape for name, shape in plain.items() if place_of(name).layer_kind != "batchnorm"}
    compact["fc1.weight"] = (widths.hidden, widths.inputs)
    return compact | ({INPUTS: (widths.inputs,)} if widths.gathers else {})


@dataclass(frozen=True, eq=False)
class Compact:
    """A compact network as widths and state; the counts are of weights and biases, never of `fc1.inputs`."""

    widths: Widths
    state: State = field(repr=False)

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for name, tensor in self.state.items() if name != INPUTS)

    @property
    def nonzero(self) -> int:
        return sum(int(tensor.count_nonzero()) for name, tensor in self.state.items() if name != INPUTS)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image as they are run, those with zeros and with the padding included."""
        positions = layer_positions(self.widths.shape)
        return sum(positions[layer] * self.state[f"{layer}.weight"].numel() for layer in _LAYERS)

    @property
    def macs_effective(self) -> int:
        """Of the non-zero weights alone. These are the weights of the network before compaction that are not zero,
        are fed and are read; the other weights of a pruned network do no work even where they are not zero."""
        positions = layer_positions(self.widths.shape)
        return sum(positions[layer] * int(self.state[f"{layer}.weight"].count_nonzero()) for layer in _LAYERS)


@torch.no_grad()
def compact(state: State, shape: DataShape = MNIST_SHAPE) -> Compact:
    """The smaller network of a `Cnn`'s whole state dict on the CPU, running statistics included; `shape` is that of
    its data set.

    Weights are rounded once from float64, so that logits differ by float32 rounding alone. Values that overflow
    float32 when BatchNorm is folded in become infinite.
    """
    folded = _fold(state)
    _move_constants(folded)
    # Unread channels go last and by one pass: what they leave unread lies before them, and no kernel that is
    # read changes, so that no new constant comes up.
    _silence_unread(folded)
    return _cut(folded, shape)


def _fold(state: State) -> dict[str, Tensor]:
    """BatchNorm into convolutions: w·γ/√(σ²+ε) and β + (b−μ)·γ/√(σ²+ε). All in float64, under compact keys."""
    wide = {
        name: tensor.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    folded: dict[str, Tensor] = {}
    for layer in ("layer1", "layer2", "layer3"):
        scale = wide[f"{layer}.1.weight"] / (wide[f"{layer}.1.running_var"] + EPSILON).sqrt()
        shift = wide[f"{layer}.1.bias"] + (wide[f"{layer}.0.bias"] - wide[f"{layer}.1.running_mean"]) * scale
        # Kernels are rounded here: what is zero in float32 is to count as zero when constants are looked for.
        folded[f"{layer}.0.weight"] = (wide[f"{layer}.0.weight"] * scale[:, None, None, None]).float().double()
        folded[f"{layer}.0.bias"] = shift
    return folded | {name: tensor for name, tensor in wide.items() if name.startswith("fc")}


def _move_constants(folded: Mapping[str, Tensor]) -> None:
    """From the first layer to the last, in place: readers of a constant take it into their biases, or keep it."""
    for layer, reader in pairwise(_LAYERS):
        weight, bias = folded[f"{layer}.weight"], folded[f"{layer}.bias"]
        constant = ~weight.flatten(start_dim=1).any(dim=1)
        # Max pooling leaves a constant as it is.
        emitted = bias if layer == "fc1" else bias.relu()
        reads = _reads(folded[f"{reader}.weight"], len(weight))
        if reader.startswith("fc"):
            folded[f"{reader}.bias"].add_((reads.sum(dim=2)[:, constant] * emitted[constant]).sum(dim=1))
        else:
            constant &= emitted.float() == 0
        reads[:, constant] = 0


def _reads(weight: Tensor, producers: int) -> Tensor:
    """A view of a reader's weights, [its width, channels or units that it reads, weights on each of them]."""
    return weight.view(len(weight), producers, -1)


def _silence_unread(folded: Mapping[str, Tensor]) -> None:
    """From the last layer to the first, in place: what nothing reads reads nothing."""
    for layer, reader in reversed(list(pairwise(_LAYERS))):
        weight, bias = folded[f"{layer}.weight"], folded[f"{layer}.bias"]
        unread = ~_reads(folded[f"{reader}.weight"], len(weight)).any(dim=(0, 2))
        weight[unread], bias[unread] = 0, 0


def _cut(folded: Mapping[str, Tensor], shape: DataShape) -> Compact:
    """Leaves out what is unread; reads of the silent one that a layer without any keeps are zero like itself."""
    kept = {"fc2": torch.arange(len(folded["fc2.weight"]))}
    for layer, reader in pairwise(_LAYERS):
        reads = _reads(folded[f"{reader}.weight"], len(folded[f"{layer}.weight"]))
        kept[layer] = _at_least_one(reads.any(dim=(0, 2)))
    state = {f"{layer}.bias": folded[f"{layer}.bias"][kept[layer]] for layer in _LAYERS}
    state["layer1.0.weight"] = folded["layer1.0.weight"][kept["layer1.0"]]
    for layer, reader in pairwise(_LAYERS):
        weight = folded[f"{reader}.weight"][kept[reader]]
        chosen = _reads(weight, len(folded[f"{layer}.weight"]))[:, kept[layer]]
        state[f"{reader}.weight"] = chosen.view(len(chosen), -1, *weight.shape[2:])
    inputs = _at_least_one(state["fc1.weight"].any(dim=0))
    state["fc1.weight"] = state["fc1.weight"][:, inputs]
    first, second, third, hidden = (len(kept[layer]) for layer in _LAYERS[:-1])
    widths = Widths(channels=(first, second, third), hidden=hidden, inputs=len(inputs), shape=shape)
    rounded = {name: inputs if name == INPUTS else state[name].float().contiguous() for name in shapes(widths)}
    return Compact(widths, rounded)


def _at_least_one(live: Tensor) -> Tensor:
    """Indices of what is live, ascending; the first of all where nothing is."""
    indices = live.nonzero().flatten()
    return indices if len(indices) else torch.zeros(1, dtype=torch.int64)


class ChosenInputs(nn.Linear):
    """A linear layer that reads the features at `inputs` only: [N, features] → [N, outputs]."""

    inputs: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("inputs", torch.arange(inputs))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.index_select(1, self.inputs))


class CompactCnn(nn.Module):
    """The `cnn` architecture after compaction: images [N, channels, height, width] → logits [N, classes]."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        first, second, third = widths.channels
        self.layer1 = _convolutional(widths.shape.channels, first, KERNELS[0], pooled=POOLED[0])
        self.layer2 = _convolutional(first, second, KERNELS[1], pooled=POOLED[1])
        self.layer3 = _convolutional(second, third, KERNELS[2], pooled=POOLED[2])
        self.fc1 = (ChosenInputs if widths.gathers else nn.Linear)(widths.inputs, widths.hidden)
        self.fc2 = nn.Linear(widths.hidden, widths.shape.classes)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layer3(self.layer2(self.layer1(images)))
        logits: Tensor = self.fc2(self.fc1(features.flatten(start_dim=1)))
        return logits


def _convolutional(width_in: int, width: int, kernel: int, *, pooled: bool) -> nn.Sequential:
    pooling = [nn.MaxPool2d(2)] if pooled else []
    return nn.Sequential(nn.Conv2d(width_in, width, kernel, padding=kernel // 2), nn.ReLU(), *pooling)


def build(compact: Compact) -> CompactCnn:
    """The network in evaluation mode, with tensors of its own. Draws no random numbers."""
    with torch.device("meta"):
        network = CompactCnn(compact.widths)
    network.load_state_dict({name: tensor.clone() for name, tensor in compact.state.items()}, assign=True)
    return network.eval()


def to_safetensors(compact: Compact) -> bytes:
    """The state, and the widths as JSON under `widths` in the file's metadata. Same state, same bytes."""
    metadata = {"format": "pt", "widths": compact.widths.model_dump_json(exclude_defaults=True)}
    return _with_metadata(safetensors.torch.save(dict(compact.state)), metadata)


def _with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The library writes metadata in an order that changes from call to call; here they keep theirs.

    A file is the header's length (8 bytes, little-endian), the header as JSON, padded to 8 bytes, and the data.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps({"__metadata__": metadata} | json.loads(content[8:end]), separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def load(path: Path) -> Compact:
    """What `to_safetensors` wrote. Raises `InvalidCheckpoint`; values are read only when every size is right."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            widths = _widths(path, file.metadata() or {})
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            found = {name: tuple(part.get_shape()) for name, part in slices.items()}
            _refuse_other_tensors(path, widths, found, {name: part.get_dtype() for name, part in slices.items()})
            state = {name: file.get_tensor(name) for name in shapes(widths)}
    except (safetensors.SafetensorError, OSError) as error:
        raise InvalidCheckpoint(f"{path.name} cannot be read as safetensors: {error}") from error
    _refuse_impossible_values(path, widths, state)
    return Compact(widths, state)


def _widths(path: Path, metadata: Mapping[str, str]) -> Widths:
    if "widths" not in metadata:
        raise InvalidCheckpoint(f"{path.name} says no widths in its metadata: it is no compact network")
    try:
        return Widths.model_validate_json(metadata["widths"])
    except ValidationError as error:
        raise InvalidCheckpoint(f"{path.name}: widths {metadata['widths']!r:.200} are out of bounds") from error


def _refuse_other_tensors(
    path: Path, widths: Widths, found: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]
) -> None:
    expected = shapes(widths)
    if odd := sorted(expected.keys() ^ found.keys()):
        raise InvalidCheckpoint(
            f"{path.name} is no compact network of its widths: missing {[name for name in odd if name in expected]}, "
            f"unexpected {[name for name in odd if name not in expected]}"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise InvalidCheckpoint(f"{path.name}: {name} has shape {found[name]}, expected {shape}")
        dtype = torch.int64 if name == INPUTS else torch.float32
        if _DTYPES.get(dtypes[name]) is not dtype:
            raise InvalidCheckpoint(f"{path.name}: {name} has type {dtypes[name]}, expected {dtype}")


def _refuse_impossible_values(path: Path, widths: Widths, state: State) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InvalidCheckpoint(f"{path.name}: {name} holds values that are not finite, expected finite numbers")
    if widths.gathers:
        inputs, features = state[INPUTS], widths.features
        if bool((inputs.diff() <= 0).any()) or not 0 <= int(inputs[0]) <= int(inputs[-1]) < features:
            raise InvalidCheckpoint(f"{path.name}: {INPUTS} must be ascending indices of {features} features")
