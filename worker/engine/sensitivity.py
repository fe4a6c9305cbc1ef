"""How much each layer minds being pruned: accuracy against sparsity, one weight tensor at a time."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from app.contract.pruning import WEIGHT_MATRICES, share_of
from app.contract.report import Sensitivity, SensitivityPoint, TensorSensitivity
from app.contract.spec import SensitivitySpec
from worker.engine.evaluate import evaluate
from worker.engine.observer import Observer
from worker.engine.pruning.ranking import lowest


def sensitivity(
    network: nn.Module, spec: SensitivitySpec, images: Tensor, labels: Tensor, *, validation: bool, observer: Observer
) -> Sensitivity:
    """Of `network` as it is, which is left as it was. All other tensors stay whole, and nothing is trained.

    Each weight tensor loses its least |w|, ties by position, exactly ⌊sparsity·entries⌋ of them, what is zero already
    among them.
    """
    evaluations = 1 + len(WEIGHT_MATRICES) * len(spec.sparsities)
    measured = _Measured(copy.deepcopy(network), images, labels, observer, evaluations)
    base = measured.accuracy()
    tensors = []
    for name in WEIGHT_MATRICES:
        weight = measured.network.get_parameter(name)
        whole = weight.detach().clone()
        points = []
        for sparsity in spec.sparsities:
            gone = _least(whole, share_of(whole.numel(), sparsity))
            with torch.no_grad():
                weight.copy_(whole.masked_fill(gone, 0))
            left = int(weight.count_nonzero())
            points.append(SensitivityPoint(sparsity=sparsity, nonzero=left, accuracy=measured.accuracy()))
        with torch.no_grad():
            weight.copy_(whole)
        tensors.append(TensorSensitivity(name=name, total=whole.numel(), points=tuple(points)))
    return Sensitivity(
        images="validation" if validation else "test",
        count=len(labels),
        accuracy=base,
        tensors=tuple(tensors),
    )


def _least(weight: Tensor, count: int) -> Tensor:
    scores = weight.cpu().abs().flatten()
    return lowest(scores, torch.ones_like(scores, dtype=torch.bool), count).view(weight.shape).to(weight.device)


class _Measured:
    """Measures a network again and again, and counts the measurements for whoever watches."""

    def __init__(self, network: nn.Module, images: Tensor, labels: Tensor, observer: Observer, total: int) -> None:
        self.network, self._images, self._labels = network, images, labels
        self._observer, self._done, self._total = observer, 0, total

    def accuracy(self) -> float:
        found = evaluate(self.network, self._images, self._labels, _Part(self._observer, self._done, self._total))
        self._done += 1
        return found.accuracy.accuracy


class _Part(Observer):
    """Tells of one part of a whole that has equal parts."""

    def __init__(self, whole: Observer, before: int, parts: int) -> None:
        self._whole, self._before, self._parts = whole, before, parts

    def advance(self, completed: int, total: int, unit: str) -> None:
        self._whole.advance(self._before * total + completed, self._parts * total, unit)
