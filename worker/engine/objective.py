"""What a course minimizes, but for its penalty: the distance from the labels, and from a teacher's outputs."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from app.contract.training import FineTuningSpec


def objective(settings: FineTuningSpec, logits: Tensor, labels: Tensor, taught: Tensor | None) -> Tensor:
    """Mean over the batch, for logits [N, classes] and labels [N]. With a distillation, which says what it is, it takes
    the teacher's logits too, `taught` [N, classes]."""
    of_labels = functional.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
    if settings.distillation is None:
        return of_labels
    assert taught is not None  # the teacher came with the course
    weight, temperature = settings.distillation.weight, settings.distillation.temperature
    of_teacher = functional.cross_entropy(logits / temperature, (taught / temperature).softmax(dim=1))
    return (1 - weight) * of_labels + weight * temperature**2 * of_teacher
