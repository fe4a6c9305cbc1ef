"""What is pruned, by which score, how much of it, and when."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Annotated, Literal, NamedTuple, TypeAlias

from pydantic import Field, model_validator

from app.contract.closed import NO_REPEATS, UNIQUE, Closed
from app.contract.network import PARAMETER_NAMES

ParameterKind = Literal["weight", "bias"]
LayerKind = Literal["conv", "batchnorm", "linear"]
TensorName = Literal[PARAMETER_NAMES]  # type: ignore[valid-type]
WEIGHT_MATRICES = tuple(name for name in PARAMETER_NAMES if name.endswith(".weight") and ".1." not in name)
WeightName = Literal[WEIGHT_MATRICES]  # type: ignore[valid-type]


class OneShot(Closed):
    """Everything at once: after the training, or of the initial weights, so that the training itself keeps the mask."""

    name: Literal["one-shot"]
    when: Literal["before-training", "after-training"] = "after-training"


class Iterative(Closed):
    """Rounds of pruning and fine-tuning (Han et al. 2015). Each of the R rounds leaves the same share of what the one
    before it left: after round i, (1 − sparsity)^(i/R) of a dense network. `threshold` and `std` do the same in every
    round.

    With `rewind_epoch`, what each round leaves goes back to its value after that epoch of the training, 0 for the
    initial weights, before it is fine-tuned (Frankle & Carbin 2019; Frankle et al. 2020).
    """

    name: Literal["iterative"]
    rounds: Annotated[int, Field(ge=2, le=50)] = 3
    rewind_epoch: Annotated[int | None, Field(ge=0, le=1000)] = None


class Gradual(Closed):
    """Within a training, every few steps a little more: from s₀, what is pruned already, to the sparsity s by
    s − (s − s₀)·(1 − τ)³, where τ goes from 0 to 1 between the two epochs (Zhu & Gupta 2017)."""

    name: Literal["gradual"]
    begin_epoch: Annotated[int, Field(ge=0, le=1000, description="Whole epochs before the first pruning.")] = 0
    end_epoch: Annotated[int, Field(ge=1, le=1000, description="After so many epochs all is pruned.")]
    every_steps: Annotated[int, Field(ge=1, le=10_000, description="Training steps from one pruning to the next.")] = 50

    @model_validator(mode="after")
    def _takes_time(self) -> Gradual:
        if self.end_epoch <= self.begin_epoch:
            raise ValueError(f"end_epoch {self.end_epoch} must be after begin_epoch {self.begin_epoch}")
        return self


ONE_SHOT = OneShot(name="one-shot")
Rounds: TypeAlias = Annotated[OneShot | Iterative, Field(discriminator="name")]
Schedule: TypeAlias = Annotated[OneShot | Iterative | Gradual, Field(discriminator="name")]
SCHEDULES: tuple[type[Closed], ...] = (OneShot, Iterative, Gradual)
Sparsity = Annotated[float | None, Field(ge=0, lt=1)]


class _Method(Closed):
    recalibrate_batchnorm: Annotated[
        bool,
        Field(
            description="Estimate BatchNorm's running statistics again, on up to 10,000 training images, after each "
            "pruning; where it is gradual, at the end of that training."
        ),
    ] = False


class _Entries(_Method):
    """Single entries of the tensors of these kinds."""

    parameters: Annotated[
        tuple[ParameterKind, ...], Field(min_length=1, max_length=2, json_schema_extra=UNIQUE), NO_REPEATS
    ] = ("weight", "bias")
    layers: Annotated[
        tuple[LayerKind, ...], Field(min_length=1, max_length=3, json_schema_extra=UNIQUE), NO_REPEATS
    ] = ("conv", "batchnorm", "linear")


class ThresholdPruning(_Entries):
    """Sets an entry w to 0 where −threshold ≤ w ≤ threshold, both ends included."""

    method: Literal["threshold"]
    threshold: Annotated[float, Field(ge=0, le=1000)] = 0.01
    schedule: Rounds = ONE_SHOT


class StdPruning(_Entries):
    """A threshold for each tensor: `multiplier` times the standard deviation of those of its entries that no earlier
    round has pruned (Han et al. 2015)."""

    method: Literal["std"]
    multiplier: Annotated[float, Field(ge=0, le=100)] = 1.0
    schedule: Rounds = ONE_SHOT


def _refuse_none_or_both(sparsity: float | None, keep: object) -> None:
    if (sparsity is None) == (keep is None):
        raise ValueError("give exactly one of sparsity and keep")


class Amount(_Entries):
    """How many of the eligible entries go: `sparsity` is the share that is zero afterwards, rounded down to whole
    entries; `keep` the number that stays. Exactly one of them."""

    sparsity: Annotated[
        Sparsity,
        Field(
            description="Share of the eligible entries that is zero afterwards, rounded down to whole entries. Give "
            "this or `keep`, not both."
        ),
    ] = None
    keep: Annotated[
        int | None,
        Field(
            ge=1,
            description="Number of eligible entries that stay. Give this or `sparsity`; not with the scope `layer`.",
        ),
    ] = None
    scope: Annotated[
        Literal["global", "layer", "lamp"],
        Field(
            description="`global` ranks all tensors together, `layer` takes the same share of each tensor, `lamp` "
            "ranks all together by score²/Σ of the squares at least as large in the tensor (Lee et al. 2021), which "
            "spares small layers."
        ),
    ] = "lamp"
    schedule: Schedule = ONE_SHOT

    @model_validator(mode="after")
    def _one_amount(self) -> Amount:
        _refuse_none_or_both(self.sparsity, self.keep)
        if self.keep is not None and self.scope == "layer":
            raise ValueError("keep counts entries of the whole network: with scope 'layer' give a sparsity")
        return self

    def pruned_of(self, total: int) -> int:
        """How many of `total` eligible entries are zero at the end. At least one is kept."""
        if self.keep is not None:
            return total - min(self.keep, total)
        return share_of(total, self.sparsity or 0.0)


def share_of(total: int, sparsity: float) -> int:
    """⌊sparsity·total⌋, of the decimal number that was written: 0.29 of 100 is 29, which floats say is 28."""
    return math.floor(Fraction(repr(sparsity)) * total)


class MagnitudePruning(Amount):
    """Zeroes the entries of least |w|."""

    method: Literal["magnitude"]


class FoldedMagnitudePruning(Amount):
    """Zeroes the entries of least |w·γ/√(σ² + ε)|: kernels and biases of convolutions as they act once BatchNorm is
    folded into them, since BatchNorm makes their own scale meaningless. All other entries by |w|."""

    method: Literal["bn-folded"]


class ByGradient(Amount):
    images: Annotated[
        int,
        Field(
            ge=1,
            le=60_000,
            description="Training images for the backward pass, evenly spaced; all when there are fewer.",
        ),
    ] = 1000


class TaylorPruning(ByGradient):
    """Zeroes the entries of least mean (w·∂L/∂w)² over batches of training images, equally large, of 100 at most
    (Molchanov et al. 2019)."""

    method: Literal["taylor"]


class SnipPruning(ByGradient):
    """Zeroes the entries of least |w·∂L/∂w|, L the mean loss of the images (Lee et al. 2019). Meant for the schedule
    `one-shot` with `when` `before-training`; the paper ranks with `scope` `global`."""

    method: Literal["snip"]


class RandomPruning(Amount):
    """Zeroes entries at random: the control that every method has to beat."""

    method: Literal["random"]
    scope: Annotated[
        Literal["global", "layer"],
        Field(description="`global` draws from all tensors together, `layer` the same share of each."),
    ] = "global"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class NmPruning(_Method):
    """Keeps the n largest |w| of every m consecutive inputs: input channels at one place of a kernel, or inputs of a
    linear layer (2:4 is what NVIDIA's sparse tensor cores read; Mishra et al. 2021)."""

    method: Literal["n:m"]
    n: Annotated[int, Field(ge=1, le=64)] = 2
    m: Annotated[int, Field(ge=2, le=64)] = 4
    tensors: Annotated[
        tuple[WeightName, ...], Field(min_length=1, max_length=5, json_schema_extra=UNIQUE), NO_REPEATS
    ] = ("layer2.0.weight", "layer3.0.weight", "fc1.weight", "fc2.weight")
    schedule: OneShot = ONE_SHOT

    @model_validator(mode="after")
    def _prunes(self) -> NmPruning:
        if self.n >= self.m:
            raise ValueError(f"n must be below m: {self.n}:{self.m} prunes nothing")
        return self


class Widths(Closed):
    """Channels of the three convolutions, and hidden units."""

    channels: tuple[
        Annotated[int, Field(ge=1, le=512)], Annotated[int, Field(ge=1, le=512)], Annotated[int, Field(ge=1, le=512)]
    ]
    hidden: Annotated[int, Field(ge=1, le=4096)]


class ChannelPruning(_Method):
    """Zeroes whole channels, with all that reads them, and hidden units likewise, so that they can be removed.

    `sparsity` is the share of the units that go, rounded down; `keep` the widths that stay. At least one unit of each
    layer stays. Widths are rounded up to a multiple of `multiple` where the layer has as many. `keep` has to name the
    widths of layers that are not pruned as they are.
    """

    method: Literal["channels"]
    criterion: Annotated[
        Literal["batchnorm-scale", "l1", "l2"],
        Field(
            description="Of a channel: |γ| of its BatchNorm (Liu et al. 2017), or the norm of its kernel (Li et al. "
            "2017). Hidden units, which have no BatchNorm, go by a norm in any case: l2 unless l1 is asked for."
        ),
    ] = "batchnorm-scale"
    sparsity: Annotated[
        Sparsity, Field(description="Share of the units that goes, rounded down. Give this or `keep`, not both.")
    ] = None
    keep: Annotated[
        Widths | None, Field(description="Widths that stay. Give this or `sparsity`; not with the scope `global`.")
    ] = None
    scope: Annotated[
        Literal["global", "layer"],
        Field(description="`global` ranks the channels of all three convolutions together; hidden units go apart."),
    ] = "layer"
    layers: Annotated[
        tuple[Literal["conv", "linear"], ...],
        Field(
            min_length=1,
            max_length=2,
            json_schema_extra=UNIQUE,
            description="`conv` for channels, `linear` for hidden units.",
        ),
        NO_REPEATS,
    ] = ("conv", "linear")
    multiple: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Each width is rounded up to a multiple of it, where the layer has as many: odd widths can be "
            "slower.",
        ),
    ] = 1
    schedule: Rounds = ONE_SHOT

    @model_validator(mode="after")
    def _one_amount(self) -> ChannelPruning:
        _refuse_none_or_both(self.sparsity, self.keep)
        if self.keep is not None and self.scope == "global":
            raise ValueError("keep names the width of each layer: leave scope at 'layer'")
        return self


Scored: TypeAlias = MagnitudePruning | FoldedMagnitudePruning | TaylorPruning | SnipPruning | RandomPruning
Pruning: TypeAlias = Annotated[
    ThresholdPruning | StdPruning | Scored | NmPruning | ChannelPruning, Field(discriminator="method")
]
METHODS: tuple[type[Closed], ...] = (
    ThresholdPruning,
    StdPruning,
    MagnitudePruning,
    FoldedMagnitudePruning,
    TaylorPruning,
    SnipPruning,
    RandomPruning,
    NmPruning,
    ChannelPruning,
)


class Place(Closed):
    """Where a trainable tensor sits: `layer2.1.bias` is the bias of layer2.1, a BatchNorm."""

    layer: str
    layer_kind: LayerKind
    kind: ParameterKind


def place_of(name: str) -> Place:
    layer, _, kind = name.rpartition(".")
    parameter: ParameterKind = "weight" if kind == "weight" else "bias"
    if layer.startswith("fc"):
        return Place(layer=layer, layer_kind="linear", kind=parameter)
    return Place(layer=layer, layer_kind="conv" if layer.endswith(".0") else "batchnorm", kind=parameter)


def eligible(pruning: Pruning, name: str) -> bool:
    """Whether this pruning is to touch the tensor at all. BatchNorm's running statistics are no parameters: never."""
    if name not in PARAMETER_NAMES:
        return False
    place = place_of(name)
    if isinstance(pruning, NmPruning):
        return name in pruning.tensors
    if isinstance(pruning, ChannelPruning):
        return name in _touched_by_units(pruning.layers)
    return place.layer_kind in pruning.layers and place.kind in pruning.parameters


def _touched_by_units(layers: Iterable[str]) -> frozenset[str]:
    """A unit is its own entries and what reads it."""
    names = set[str]()
    if "conv" in layers:
        names |= {name for name in PARAMETER_NAMES if name.startswith("layer")} | {"fc1.weight"}
    if "linear" in layers:
        names |= {"fc1.weight", "fc1.bias", "fc2.weight"}
    return frozenset(names)


class Misfit(NamedTuple):
    """Why a network cannot be pruned so, and what to do."""

    pointer: str
    """Of the field to mend, from the pruning."""
    reason: str


def misfit(pruning: Pruning, shapes: Mapping[str, tuple[int, ...]]) -> Misfit | None:
    """None when a network of these shapes can be pruned so."""
    if isinstance(pruning, Amount) and pruning.keep is not None:
        total = sum(math.prod(shape) for name, shape in shapes.items() if eligible(pruning, name))
        if pruning.keep > total:
            reason = f"pruning.keep is {pruning.keep}, but only {total} entries are eligible: keep at most so many"
            return Misfit("/keep", reason)
    if isinstance(pruning, NmPruning):
        for name in pruning.tensors:
            if shapes[name][1] % pruning.m:
                return Misfit(
                    "/m",
                    f"pruning.m is {pruning.m}, which does not divide the {shapes[name][1]} inputs of {name}: "
                    "leave the tensor out of pruning.tensors, or take another m",
                )
    if isinstance(pruning, ChannelPruning) and pruning.keep is not None:
        return _unlike(pruning.keep, pruning.layers, shapes)
    return None


def _unlike(keep: Widths, layers: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> Misfit | None:
    asked = (*keep.channels, keep.hidden)
    found = tuple(shapes[f"{layer}.weight"][0] for layer in ("layer1.0", "layer2.0", "layer3.0", "fc1"))
    if any(a > f for a, f in zip(asked, found, strict=True)):
        return Misfit("/keep", f"pruning.keep asks for widths {asked}, the network has {found}: keep at most as many")
    if "conv" not in layers and asked[:3] != found[:3]:
        return Misfit(
            "/keep/channels",
            f"pruning.keep.channels is {asked[:3]}, but pruning.layers leaves conv out: add it, or keep {found[:3]}",
        )
    if "linear" not in layers and asked[3] != found[3]:
        return Misfit(
            "/keep/hidden",
            f"pruning.keep.hidden is {asked[3]}, but pruning.layers leaves linear out: add it, or keep {found[3]}",
        )
    return None
