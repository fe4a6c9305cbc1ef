"""What a run has come to, beside the network itself: what later stages need of the earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from app.contract.report import Accuracy, EpochMetrics
from worker.engine.pruning import Mask

State = Mapping[str, Tensor]
"""A whole state dict, on the CPU."""


@dataclass(eq=False)
class Progress:
    """Grows with the run. `stage` is the place in its plan."""

    stage: int = 0
    steps: int = 0
    """Training steps of all courses so far."""
    together: int | None = None
    """How many members the largest group had in which it was trained with others."""
    mask: Mask | None = None
    thresholds: dict[str, float | None] = field(default_factory=dict)
    """Half-widths of the intervals that the cuts so far have set to zero, by tensor; none where they changed."""
    dense: State | None = None
    """The network when its pruning began."""
    early: State | None = None
    """The weights that rewinding goes back to."""
    accuracies: dict[str, Accuracy] = field(default_factory=dict)
    """On the test images, by the point of the run at which they were measured."""
    predictions: dict[str, Tensor] = field(default_factory=dict)
    """Likewise, the class that each test image was taken for."""
    history: list[EpochMetrics] = field(default_factory=list)


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy on the CPU, which later changes of the network leave alone."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
