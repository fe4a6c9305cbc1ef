"""What one step of a training computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from app.contract.training import L1Penalty
from worker.engine import device
from worker.engine.augment import shifted
from worker.engine.objective import objective
from worker.engine.optimize import optimizer
from worker.engine.plan import Course
from worker.engine.pruning import Mask
from worker.engine.regularize import add_gradient, penalty, shrink
from worker.engine.tally import Tally


class Step:
    """Forward, penalty, backward, the optimizer's step, the proximal step, and the mask on top."""

    def __init__(
        self, network: nn.Module, images: Tensor, labels: Tensor, course: Course, teacher: nn.Module | None
    ) -> None:
        """Of `images` [N, C, H, W] and `labels` [N], on the network's device."""
        self.network, self._images, self._labels = network, images, labels
        self._course, self._settings, self._teacher = course, course.settings, teacher
        self._device = images.device
        self.parameters = dict(network.named_parameters())
        self.optimizer = self._optimizer()
        self.tally = Tally(self._device)
        self._shifts: Tensor | None = None
        self._dropped: Sequence[tuple[nn.Parameter, Tensor]] = ()

    def begin(
        self,
        order: Tensor,
        shifts: Tensor | None,
        rates: Sequence[float],
        first: int,  # noqa: ARG002 - for a subclass that counts on the device
    ) -> None:
        """An epoch: its batches take the images in this order [N], moved by `shifts` [N, 2], each with its learning
        rate; the step to come is number `first`."""
        self._batches = torch.split(order, self._settings.batch_size)
        self._shifts, self._rates = shifts, rates

    def take(self, number: int, done: int) -> None:
        """The epoch's step of that number, which is the course's `done`-th. Raises NonFiniteLoss ahead of what would
        spoil the weights."""
        self.tally.images += len(self._batches[number])
        self._go_back(self._batches[number])
        self.tally.refuse_non_finite(done)
        self._descend(self._rates[number])
        self._hold()

    def mask(self, mask: Mask | None) -> None:
        """It holds after every step from now on. Momentum would bring a pruned weight back, so it holds in the
        optimizer's state too."""
        if mask is not None:
            dropped = {name: ~keep for name, keep in mask.to(self._device).items()}
            self._dropped = [(self.parameters[name], each) for name, each in dropped.items() if bool(each.any())]

    def hold(self) -> None:
        """The mask, at once."""
        self._hold()

    def load(self, network: Mapping[str, Tensor], optimizer: dict[str, object]) -> None:
        """What an observer kept of them. Raises what PyTorch does when they are of another network."""
        self.network.load_state_dict(network)
        self.optimizer.load_state_dict(optimizer)
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                # A fused optimizer reads memory as it lies, and what was trained together lies otherwise.
                if (
                    isinstance(value, Tensor)
                    and value.shape == parameter.shape
                    and value.stride() != parameter.stride()
                ):
                    state[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)

    # What subclasses share

    def _optimizer(self) -> torch.optim.Optimizer:
        return optimizer(self._settings, self.parameters.values())

    def _go_back(self, chosen: Tensor) -> None:
        """Forward and backward of the images at these places."""
        self.optimizer.zero_grad()
        images, labels = self._images[chosen], self._labels[chosen]
        if self._shifts is not None:
            images = shifted(images, self._shifts[chosen], self._settings.random_shift)
        with device.computing_in(self._settings.precision, self._device):
            taught = self._taught(images)  # first, while no activations of the network are kept
            logits = self.network(images)
        logits, taught = _single(logits), None if taught is None else _single(taught)
        loss = objective(self._settings, logits, labels, taught)
        regularization = self._course.regularization
        with torch.set_grad_enabled(not isinstance(regularization, L1Penalty)):
            extra = penalty(regularization, self.parameters)
        self.tally.add(logits.detach(), labels, loss.detach(), extra.detach())
        (loss + extra).backward()  # type: ignore[no-untyped-call]
        if isinstance(regularization, L1Penalty):
            add_gradient(regularization, self.parameters)

    @torch.no_grad()
    def _taught(self, images: Tensor) -> Tensor | None:
        if self._teacher is None:
            return None
        taught: Tensor = self._teacher(images)
        return taught

    def _descend(self, rate: float | Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        shrink(self._course.regularization, self.parameters, rate)

    @torch.no_grad()
    def _hold(self) -> None:
        for parameter, entries in self._dropped:
            parameter.masked_fill_(entries, 0)
            for value in memory_of(self.optimizer, parameter):
                value.masked_fill_(entries, 0)


def _single(logits: Tensor) -> Tensor:
    """What was computed in bf16, in single precision; of a network in double precision, nothing is lost."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def memory_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    """What the optimizer keeps for each entry of the parameter: moments, or momentum."""
    state = optimizer.state[parameter].values()
    return [value for value in state if isinstance(value, Tensor) and value.shape == parameter.shape]
