"""A training step on a GPU: recorded once as a CUDA graph, then replayed, so that no step waits for Python.

What a step needs lies on the device before the epoch begins: the order of the images, their shifts, the learning rates,
and a counter that says which batch is next. A replay reads and writes the same tensors each time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from worker.engine.optimize import optimizer
from worker.engine.plan import Course
from worker.engine.pruning import Mask
from worker.engine.step import Step, memory_of

_WARM_UPS = 3
"""Steps ahead of the recording, in which libraries make their choices and take their memory."""


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream | None = None) -> Iterator[None]:
    """What is launched within goes into the graph. Other threads may go on with what they do on the device."""
    collects, here = gc.isenabled(), torch.cuda.current_stream()
    gc.disable()  # the end of an older graph, that is garbage by now, would spoil this one
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            yield
    finally:
        torch.cuda.set_stream(here)  # as not every PyTorch does when what has failed within spoils the recording's end
        if collects:
            gc.enable()


class CapturedStep(Step):
    """The same operations in the same order as without `capture`, and so the same bits. The last, smaller batch of an
    epoch is never captured."""

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        course: Course,
        teacher: nn.Module | None,
        *,
        capture: bool,
    ) -> None:
        count, size = len(labels), course.settings.batch_size
        on = images.device
        self._rate = torch.zeros((), device=on)
        super().__init__(network, images, labels, course, teacher)
        self._capture, self._graph = capture, None
        self._order = torch.zeros(count, dtype=torch.int64, device=on)
        self._moved = torch.zeros(count, 2, dtype=torch.int64, device=on) if course.settings.random_shift else None
        self._all_rates = torch.zeros(-(-count // size), device=on)
        self._next = torch.zeros(1, dtype=torch.int64, device=on)
        self._lanes = torch.arange(size, device=on)
        self._keeps: dict[str, Tensor] = {}
        if course.gradual is not None:  # there will be a mask, and the recording has to know
            self._keeps = {name: torch.ones_like(each) for name, each in self.parameters.items()}

    _graph: torch.cuda.CUDAGraph | None

    def begin(self, order: Tensor, shifts: Tensor | None, rates: Sequence[float], first: int) -> None:
        self._order.copy_(order)
        if self._moved is not None and shifts is not None:
            self._moved.copy_(shifts)
        self._all_rates.copy_(torch.tensor(rates, dtype=torch.float32))
        self._next.fill_(first)
        super().begin(self._order, self._moved, rates, first)

    def take(self, number: int, done: int) -> None:  # noqa: ARG002 - to look at the loss would stall every step
        """NonFiniteLoss is for the end of the epoch."""
        chosen = self._batches[number]
        self.tally.images += len(chosen)
        if self._capture and len(chosen) == self._settings.batch_size:
            self._graph = self._graph or self._recorded()
            self._graph.replay()
        else:
            self._take(chosen, self._all_rates[number])

    def mask(self, mask: Mask | None) -> None:
        for name, keep in (mask or {}).items():
            if name not in self._keeps and not bool(keep.all()):
                self._keeps[name] = torch.ones_like(self.parameters[name])
            if name in self._keeps:
                self._keeps[name].copy_(keep)

    def load(self, network: Mapping[str, Tensor], optimizer: dict[str, object]) -> None:
        own = [{name: value for name, value in group.items() if name != "params"} for group in self._groups]
        super().load(network, optimizer)
        for group, settings in zip(self._groups, own, strict=True):
            group.update(settings)

    @property
    def _groups(self) -> list[dict[str, object]]:
        return self.optimizer.param_groups

    def _optimizer(self) -> torch.optim.Optimizer:
        """With all that it keeps of the parameters in place, as zeros: a recording must not find it missing."""
        made = optimizer(self._settings, self.parameters.values(), self._rate)
        for group in made.param_groups:
            group["lr"] = self._rate
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        made.step()  # by a learning rate of 0
        made.zero_grad()
        for state in made.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()
        return made

    def _descend(self, rate: float | Tensor) -> None:
        assert isinstance(rate, Tensor)
        self._rate.copy_(rate)
        super()._descend(self._rate)

    @torch.no_grad()
    def _hold(self) -> None:
        held, keeps = [], []
        for name, keep in self._keeps.items():
            parameter = self.parameters[name]
            for tensor in (parameter, *memory_of(self.optimizer, parameter)):
                held.append(tensor)
                keeps.append(keep)
        if held:
            torch._foreach_mul_(held, keeps)

    def _take(self, chosen: Tensor, rate: Tensor) -> None:
        self._go_back(chosen)
        self._descend(rate)
        self._hold()

    def _take_next(self) -> None:
        """The batch that the counter on the device points to."""
        chosen = self._order.index_select(0, self._next * self._settings.batch_size + self._lanes)
        self._take(chosen, self._all_rates.index_select(0, self._next).squeeze(0))
        self._next += 1

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """Nothing of it is left in the network, the optimizer, the sums, or the place in the epoch."""
        changed = self._all_that_a_step_changes()
        before = [tensor.clone() for tensor in changed]
        first = self._next.clone()
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        here = torch.cuda.current_stream(self._device)
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._take_next()
                self._next.copy_(first)  # there may be no second whole batch
            with torch.no_grad():
                for tensor, value in zip(changed, before, strict=True):
                    tensor.copy_(value)
        here.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with recording(graph, stream):
            self._take_next()
        return graph

    def _all_that_a_step_changes(self) -> list[Tensor]:
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        return [
            *self.network.state_dict().values(),
            *(value for value in kept if isinstance(value, Tensor)),
            *self.tally.tensors,
            self._rate,
        ]
