"""The steps of members that are trained together: forward, backward, optimizers, penalties and masks of all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worker.engine.augment import shifted
from worker.engine.captured import recording
from worker.engine.optimize import optimizer
from worker.engine.plan import Course
from worker.engine.pruning import Mask
from worker.engine.together.penalties import Penalties
from worker.engine.together.stack import Stack
from worker.engine.train import Examples

WARM = 3
"""Steps, of the training's own, that PyTorch wants to have run before one is captured."""


class Steps:
    """Takes the members through an epoch. What changes from step to step lies on the device, so that a captured step
    finds it there: how many steps are done, each member's order of images and its learning rates."""

    def __init__(
        self, stack: Stack, examples: Examples, courses: Sequence[Course], masks: Sequence[Mask | None]
    ) -> None:
        self._stack, self._examples, self._settings = stack, examples, courses[0].settings
        self._device = device = examples.images.device
        members, images = len(stack), len(examples.labels)
        self._done = torch.zeros(1, dtype=torch.int64, device=device)
        self._order = torch.zeros(members, images, dtype=torch.int64, device=device)
        self._shifts = torch.zeros(members, images if self._settings.random_shift else 0, 2, dtype=torch.int64)
        self._shifts = self._shifts.to(device)
        size = self._settings.batch_size
        self.steps_an_epoch = -(-images // size)
        self._rates = torch.zeros(self.steps_an_epoch, members, dtype=torch.float64, device=device)
        self._rates_now = torch.zeros(members, device=device)
        self._within = torch.arange(min(size, images), device=device)
        self._penalties = Penalties([course.regularization for course in courses], device)
        self._dropped = _dropped(masks, stack, device)
        self.optimizers = [
            # On a GPU a captured step reads the rate there.
            optimizer(self._settings, network.parameters(), rate if device.type == "cuda" else None)
            for network, rate in zip(stack.networks, self._rates_now, strict=True)
        ]
        # One member's step fills a small part of a GPU.
        self._streams = _streams(min(members, 16)) if device.type == "cuda" else []
        self._moments: Mapping[str, Mapping[str, Tensor]] = {}
        """What the optimizers remember of each parameter, stacked: by what it is called, and by the parameter."""
        self._whole: torch.optim.Optimizer | None = None
        self._one_rate = len({course.settings.learning_rate for course in courses}) == 1
        self.sums = Sums(members, device)
        self._full = Replayed()

    # An epoch

    def begin(self, step: int, orders: Sequence[Tensor], shifts: Sequence[Tensor], rates: Tensor) -> None:
        """At `step` of an epoch: each member's order of the images and, if images are shifted, by how much; `rates`
        [steps, members]."""
        self._done.fill_(step)
        self._order.copy_(torch.stack(list(orders)))
        if shifts:
            self._shifts.copy_(torch.stack(list(shifts)))
        self._rates.copy_(rates)

    # A step

    def take(self, size: int, descending: Callable[[], Sequence[bool]]) -> None:
        """A step with batches of `size`. On a CPU `descending` tells, once the losses are known, which members are to
        go on; on a GPU, where the question would stall each step, all do."""
        if self._device.type == "cuda":
            self._full(self._whole_step) if size == len(self._within) else self._whole_step(size)
            return
        self._advance(size)
        self._descend(descending())

    def _whole_step(self, size: int | None = None) -> None:
        self._advance(size or len(self._within))
        self._descend([True] * len(self._stack))

    def _advance(self, size: int) -> None:
        chosen = self._order.index_select(1, self._done * self._settings.batch_size + self._within[:size])
        images, labels = self._images(chosen), self._examples.labels[chosen]
        logits = self._stack.logits(images)
        each = functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), label_smoothing=self._settings.label_smoothing, reduction="none"
        )
        loss = each.view(labels.shape).mean(dim=1)
        with torch.set_grad_enabled(not self._penalties.by_hand):
            extra = self._penalties.terms(self._stack.parameters)
        self.sums.add(logits.detach(), labels, loss.detach(), extra.detach())
        # Not `backward`, which adds up on the stream on which a parameter was made, where a capture may not reach.
        # The sum mixes nothing: no member's loss hangs on another's weights, and a NaN stays with its member.
        found = torch.autograd.grad((loss + extra).sum(), list(self._stack.parameters.values()))
        gradients = [each.contiguous() for each in found]  # fused optimizers read memory as it lies
        if self._penalties.by_hand:
            self._penalties.add_gradients(gradients, self._stack.parameters)
        for parameter, gradient in zip(self._stack.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        for number, network in enumerate(self._stack.networks):
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.grad = gradient[number]

    def _images(self, chosen: Tensor) -> Tensor:
        """[members, batch, channels, height, width]."""
        images = self._examples.images[chosen]
        if not (most := self._settings.random_shift):
            return images
        shifts = self._shifts.gather(1, chosen.unsqueeze(2).expand(-1, -1, 2))
        return shifted(images.flatten(0, 1), shifts.flatten(0, 1), most).view(images.shape)

    @torch.no_grad()
    def _descend(self, goes_on: Sequence[bool]) -> None:
        rates = self._rates.index_select(0, self._done)[0]
        self._rates_now.copy_(rates)
        if self._device.type == "cpu":
            for each, rate in zip(self.optimizers, rates.tolist(), strict=True):
                each.param_groups[0]["lr"] = rate
        if self._whole is None:
            self._step_each(goes_on)
        else:
            self._whole.step()
        if self._penalties.shrinks:
            self._penalties.shrink(self._stack.parameters, rates)
        if self._dropped and not self._moments:
            self.stack_moments()
        self._hold()
        self._done.add_(1)

    def _step_each(self, goes_on: Sequence[bool]) -> None:
        with side_by_side(self._streams) as aside:
            for number, (each, going) in enumerate(zip(self.optimizers, goes_on, strict=True)):
                if going:
                    with aside(number):
                        each.step()
        if self._device.type == "cuda" and self._one_rate:
            self._join()

    def _join(self) -> None:
        """One optimizer steps for all from now on, in one pass. What it remembers are the stacks of what the members'
        own do, so that these stay what each would keep."""
        self.stack_moments()
        self._whole = optimizer(self._settings, self._stack.parameters.values(), self._rates_now[0])
        remembered = [[each.state.get(p, {}) for p in each.param_groups[0]["params"]] for each in self.optimizers]
        for place, (name, parameter) in enumerate(self._stack.parameters.items()):
            own = {key: stacked[name] for key, stacked in self._moments.items()}
            states = [of_member[place] for of_member in remembered]
            for step in [state["step"] for state in states if "step" in state][:1]:
                own["step"] = step
                for state in states:
                    state["step"] = step
            self._whole.state[parameter] = own

    def _hold(self) -> None:
        """The masks, in the optimizers' state too."""
        for name, dropped in self._dropped.items():
            self._stack.parameters[name].masked_fill_(dropped, 0)
            for moment in self._moments.values():
                moment[name].masked_fill_(dropped, 0)

    def stack_moments(self) -> None:
        """Let what the optimizers remember of each parameter lie stacked, so that a mask is laid on all at once."""
        remembered = [[each.state.get(p, {}) for p in each.param_groups[0]["params"]] for each in self.optimizers]
        found: dict[str, dict[str, Tensor]] = {}
        for place, (name, parameter) in enumerate(self._stack.parameters.items()):
            states = [of_member[place] for of_member in remembered]
            whole = [key for state in states for key, value in state.items() if _is_like(value, parameter[0])]
            for key in dict.fromkeys(whole):  # a member that failed at once remembers nothing
                # Fused optimizers read memory as it lies: as the parameters do, however it has come.
                moments = [state.get(key, torch.zeros_like(parameter[0])).contiguous() for state in states]
                stacked = torch.stack(moments)
                found.setdefault(key, {})[name] = stacked
                for state, part in zip(states, stacked, strict=True):
                    state[key] = part
        self._moments = found

    # From one process to the next

    def load_optimizer(self, number: int, state: dict[str, Any]) -> None:
        (group,) = self.optimizers[number].param_groups
        own = {name: value for name, value in group.items() if name != "params"}
        self.optimizers[number].load_state_dict(state)
        self.optimizers[number].param_groups[0].update(own)


class Sums:
    """Over an epoch's images so far, for each member, kept on the device so that no step waits for a number."""

    def __init__(self, members: int, device: torch.device) -> None:
        self._correct = torch.zeros(members, dtype=torch.int64, device=device)
        # Doubles: a sum of finite floats stays finite, so a sum that is not finite met a loss that was not.
        self._loss, self._penalty = torch.zeros(2, members, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor, extra: Tensor) -> None:
        """Of a batch: logits [members, batch, classes], labels [members, batch], mean loss and penalty [members]."""
        self._correct += (logits.argmax(dim=2) == labels).sum(dim=1)
        self._loss += loss.double() * labels.shape[1]
        self._penalty += extra.double() * labels.shape[1]

    def clear(self) -> None:
        for each in (self._correct, self._loss, self._penalty):
            each.zero_()

    def finite(self) -> list[bool]:
        found: list[bool] = torch.isfinite(self._loss + self._penalty).tolist()
        return found

    def of(self, number: int) -> dict[str, float]:
        correct, loss, extra = (each[number].item() for each in (self._correct, self._loss, self._penalty))
        return {"correct": correct, "loss": loss, "penalty": extra}

    def restore(self, number: int, sums: Mapping[str, float]) -> None:
        self._correct[number] = int(sums["correct"])
        self._loss[number], self._penalty[number] = sums["loss"], sums["penalty"]


def _is_like(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _dropped(masks: Sequence[Mask | None], stack: Stack, device: torch.device) -> dict[str, Tensor]:
    """[members, …] of each tensor that a mask holds at zero somewhere, True where."""
    found = {}
    for name, parameter in stack.parameters.items():
        keep = [torch.ones(parameter.shape[1:]).bool() if mask is None else mask[name].cpu() for mask in masks]
        dropped = ~torch.stack(keep)
        if bool(dropped.any()):
            found[name] = dropped.to(device)
    return found


def _streams(count: int) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream() for _ in range(count)]  # type: ignore[no-untyped-call]


@contextmanager
def side_by_side(streams: Sequence[torch.cuda.Stream]) -> Iterator[Callable[[int], AbstractContextManager[object]]]:
    """Gives a context for each number, whose work runs beside that of the others; behind it all of it is done. Without
    streams, one after another."""
    if not streams:
        yield lambda _: nullcontext()
        return
    here = torch.cuda.current_stream()
    for stream in streams:
        stream.wait_stream(here)
    try:
        yield lambda number: torch.cuda.stream(streams[number % len(streams)])
    finally:  # of what fails while it is recorded, the recording's end would say instead that a stream was left behind
        for stream in streams:
            here.wait_stream(stream)


class Replayed:
    """A step that is run as it is a few times, then captured as a CUDA graph and replayed: one launch for all its
    kernels. Each call is one step, the first ones and that of the capture too. It is the same at each call, and not
    kept: whoever keeps this would be kept by it, and the GPU's memory with both until a collection of garbage."""

    def __init__(self) -> None:
        self._ran = 0
        self._aside: list[
            torch.cuda.Stream
        ] = []  # one: the libraries keep memory for each stream that they are used on
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, step: Callable[[], None]) -> None:
        if self._ran < WARM:
            self._ran += 1
            self._aside = self._aside or _streams(1)
            with side_by_side(self._aside) as aside, aside(0):
                step()
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with recording(self._graph):
                step()
        self._graph.replay()
