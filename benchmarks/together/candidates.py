"""Ways of training several members at once, to choose between: how long a step of each takes, and how far it is from a
member trained alone."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from app.contract.datasets import DatasetName
from app.contract.spec import ModelSpec
from worker.engine.data import DatasetStore
from worker.engine.model import Cnn, fresh
from worker.engine.seeding import reproducible

BATCH = 100
MODEL = ModelSpec()


def strengths(members: list[int]) -> list[float]:
    return [1e-5 * (1 + number) for number in members]


class Alone:
    """The plain step, for each of some members one after another."""

    def __init__(self, members: list[int], images: Tensor, labels: Tensor) -> None:
        self.images, self.labels, self.members = images, labels, members
        device = images.device
        self.networks = [fresh(MODEL, seed).to(device).train() for seed in members]
        self.optimizers = [
            torch.optim.Adam(each.parameters(), lr=torch.tensor(1e-3, device=device), fused=True, capturable=True)
            if device.type == "cuda"
            else torch.optim.Adam(each.parameters(), lr=1e-3, fused=True)
            for each in self.networks
        ]
        self.losses = torch.zeros(len(members), dtype=torch.float64, device=device)

    def step(self, chosen: Tensor) -> None:
        """`chosen` [members, batch]."""
        for number, (network, optimizer) in enumerate(zip(self.networks, self.optimizers, strict=True)):
            images, labels = self.images[chosen[number]], self.labels[chosen[number]]
            logits = network(images)
            loss = functional.cross_entropy(logits, labels)
            norms = [torch.linalg.vector_norm(each, ord=1) for each in network.parameters()]
            extra = strengths(self.members)[number] * torch.stack(norms).sum()
            self.losses[number] = loss.detach().double()
            parameters = list(network.parameters())
            # Not `backward`: it would add to `.grad` on the stream on which the parameter was made.
            for parameter, found in zip(parameters, torch.autograd.grad(loss + extra, parameters), strict=True):
                parameter.grad = found
            optimizer.step()

    def states(self) -> list[dict[str, Tensor]]:
        return [each.state_dict() for each in self.networks]


class Stacked:
    """Parameters [members, …]; an optimizer a member, on views of them."""

    def __init__(self, members: list[int], images: Tensor, labels: Tensor, convolve: str, one_optimizer: bool) -> None:
        self.images, self.labels, self.count, self.kind = images, labels, len(members), convolve
        device = images.device
        networks = [fresh(MODEL, seed).to(device).train() for seed in members]
        states = [each.state_dict() for each in networks]
        names = [name for name, _ in networks[0].named_parameters()]
        self.stack = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        self.parameters = {name: self.stack[name].requires_grad_() for name in names}
        self.strength = torch.tensor(strengths(members), device=device)
        cuda = device.type == "cuda"
        rate = torch.tensor(1e-3, device=device) if cuda else 1e-3
        if one_optimizer:
            groups = [list(self.parameters.values())]
        else:
            groups = [
                [each.detach()[m].requires_grad_() for each in self.parameters.values()] for m in range(self.count)
            ]
        self.views = None if one_optimizer else groups
        self.optimizers = [torch.optim.Adam(group, lr=rate, fused=True, capturable=cuda) for group in groups]
        self.losses = torch.zeros(self.count, dtype=torch.float64, device=device)

    def step(self, chosen: Tensor) -> None:
        images, labels = self.images[chosen.t()], self.labels[chosen]
        logits = self.forward(images.flatten(1, 2), chosen.shape[1])
        each = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss = each.view(self.count, -1).mean(1)
        norms = [torch.linalg.vector_norm(each.flatten(1), ord=1, dim=1) for each in self.parameters.values()]
        extra = self.strength * torch.stack(norms).sum(0)
        self.losses.copy_(loss.detach())
        found = torch.autograd.grad((loss + extra).sum(), list(self.parameters.values()))
        grads = [each.contiguous() for each in found]  # in the layout of the parameters, as optimizers take them
        if self.views is None:
            for parameter, grad in zip(self.parameters.values(), grads, strict=True):
                parameter.grad = grad
        else:
            for number, group in enumerate(self.views):
                for view, grad in zip(group, grads, strict=True):
                    view.grad = grad[number]
        for optimizer in self.optimizers:
            optimizer.step()

    def forward(self, images: Tensor, batch: int) -> Tensor:
        """[batch, members · channels, height, width] → [members, batch, classes]."""
        x = images
        if self.kind == "grouped-nhwc":
            x = x.contiguous(memory_format=torch.channels_last)
        for layer, pooled in ((1, False), (2, True), (3, True)):
            x = self.convolve(x, f"layer{layer}.0")
            at = f"layer{layer}.1"
            x = functional.batch_norm(
                x,
                self.stack[f"{at}.running_mean"].view(-1),
                self.stack[f"{at}.running_var"].view(-1),
                self.parameters[f"{at}.weight"].view(-1),
                self.parameters[f"{at}.bias"].view(-1),
                training=True,
            )
            if pooled:
                x = functional.max_pool2d(x, 2)
            x = functional.relu_(x)
        features = x.contiguous().view(batch, self.count, -1).permute(1, 2, 0)
        p = self.parameters
        # The weights to the left: their gradients come out in the weights' own layout.
        hidden = torch.baddbmm(p["fc1.bias"].unsqueeze(2), p["fc1.weight"], features)
        return torch.baddbmm(p["fc2.bias"].unsqueeze(2), p["fc2.weight"], hidden).transpose(1, 2)

    def convolve(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        kernel = weight.shape[-1]
        if self.kind.startswith("grouped"):
            flat = weight.flatten(0, 1)
            if self.kind == "grouped-nhwc":
                flat = flat.contiguous(memory_format=torch.channels_last)
            return functional.conv2d(x, flat, bias.flatten(), padding=kernel // 2, groups=self.count)
        batch, _, height, width = x.shape
        one = x.reshape(batch * self.count, -1, height, width)
        columns = functional.unfold(one, kernel, padding=kernel // 2)
        columns = columns.view(batch, self.count, columns.shape[1], -1)
        found = weight.flatten(2) @ columns + bias.unsqueeze(-1)
        return found.view(batch, -1, height, width)

    def states(self) -> list[dict[str, Tensor]]:
        return [{name: each.detach()[m] for name, each in self.stack.items()} for m in range(self.count)]


class Vmapped(Stacked):
    """`torch.func.vmap` over the module itself."""

    def __init__(self, members: list[int], images: Tensor, labels: Tensor) -> None:
        super().__init__(members, images, labels, "grouped", False)
        self.network = Cnn(MODEL.channels, MODEL.hidden).to("meta").train()
        self.buffers = {name: each for name, each in self.stack.items() if name not in self.parameters}

    def forward(self, images: Tensor, batch: int) -> Tensor:
        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(self.network, (parameters, buffers), (x,))

        x = images.view(batch, self.count, -1, *images.shape[2:]).transpose(0, 1)
        return torch.func.vmap(one)(self.parameters, self.buffers, x)


class Lanes:
    """Units side by side, each on a stream of its own."""

    def __init__(self, units: list[Alone | Stacked], streams: int, sizes: list[int]) -> None:
        self.units, self.sizes = units, sizes
        self.streams = [torch.cuda.Stream() for _ in range(streams)] if streams > 1 else []

    def step(self, chosen: Tensor) -> None:
        parts = torch.split(chosen, self.sizes)
        if not self.streams:
            for unit, part in zip(self.units, parts, strict=True):
                unit.step(part)
            return
        here = torch.cuda.current_stream()
        for stream in self.streams:
            stream.wait_stream(here)
        for number, (unit, part) in enumerate(zip(self.units, parts, strict=True)):
            with torch.cuda.stream(self.streams[number % len(self.streams)]):
                unit.step(part)
        for stream in self.streams:
            here.wait_stream(stream)

    def states(self) -> list[dict[str, Tensor]]:
        return [state for unit in self.units for state in unit.states()]

    @property
    def losses(self) -> Tensor:
        return torch.cat([unit.losses for unit in self.units])


def make(kind: str, members: int, images: Tensor, labels: Tensor, per_unit: int = 1, streams: int = 1) -> Lanes:
    parts = [list(range(start, min(start + per_unit, members))) for start in range(0, members, per_unit)]

    def unit(part: list[int]) -> Alone | Stacked:
        plain = kind.partition("+")[0]
        if plain == "alone":
            found = Alone(part, images, labels)
            if kind.endswith("+nhwc"):
                for network in found.networks:
                    network.to(memory_format=torch.channels_last)
            return found
        if kind == "vmap":
            return Vmapped(part, images, labels)
        return Stacked(part, images, labels, plain.removesuffix("-one"), plain.endswith("-one"))

    return Lanes([unit(part) for part in parts], streams, [len(part) for part in parts])


class Epoch:
    """Steps of an epoch, with each batch found on the device: nothing but a replay a step."""

    def __init__(self, lanes: Lanes, order: Tensor) -> None:
        self.lanes, self.order = lanes, order
        self.at = torch.zeros((), dtype=torch.int64, device=order.device)
        self.span = torch.arange(BATCH, device=order.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def _step(self) -> None:
        self.lanes.step(self.order.index_select(1, self.at + self.span))
        self.at += BATCH

    def step(self) -> None:
        self.graph.replay() if self.graph is not None else self._step()

    def capture(self) -> None:
        """After steps that warm up, and that count."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self.graph = graph


def orders(members: int, count: int, device: torch.device) -> Tensor:
    rows = [torch.randperm(count, generator=torch.Generator().manual_seed(seed)) for seed in range(members)]
    return torch.stack(rows).to(device)


def difference(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> tuple[float, str, bool]:
    worst, where, same = 0.0, "", True
    for one, other in zip(ours, theirs, strict=True):
        for name, tensor in one.items():
            far = float((tensor.double() - other[name].double()).abs().max())
            same = same and bool(torch.equal(tensor, other[name]))
            if far > worst and tensor.is_floating_point():
                worst, where = far, name
    return worst, where, same


def per_step(epoch: Epoch, steps: int) -> float:
    """Milliseconds, the best of three."""
    torch.cuda.synchronize()
    found = []
    for _ in range(3):
        epoch.at.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(steps):
            epoch.step()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / steps)
    return min(found)


CANDIDATES: list[tuple[str, int, int]] = [
    # kind, members a unit, streams
    ("alone", 1, 1),
    ("alone", 1, 4),
    ("alone", 1, 16),
    ("alone", 1, 8),
    ("grouped", 64, 1),
    ("grouped", 4, 4),
    ("grouped-nhwc", 64, 1),
    ("unfold", 64, 1),
    ("unfold", 4, 4),
    ("unfold-one", 64, 1),
    ("vmap", 64, 1),
    ("alone+nhwc", 1, 1),
    ("alone+tf32", 1, 1),
    ("alone+tf32", 1, 16),
    ("grouped+tf32", 64, 1),
    ("grouped-nhwc+tf32", 64, 1),
]


@contextmanager
def tf32(kind: str) -> Iterator[None]:
    torch.backends.cudnn.allow_tf32 = kind.endswith("+tf32")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = False


@contextmanager
def told(what: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        print(f"{what}: FAILED\n{''.join(traceback.format_exc().splitlines(keepends=True)[-6:])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=110)
    arguments = parser.parse_args()
    started = time.perf_counter()
    lines: list[dict[str, object]] = []

    def tell(**facts: object) -> None:
        lines.append(facts)
        print(json.dumps(facts), flush=True)
        (arguments.out / "candidates.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))

    device = torch.device("cuda")
    data = DatasetStore(arguments.folder).load(DatasetName.MNIST)
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    tell(
        torch=torch.__version__,
        cudnn=torch.backends.cudnn.version(),
        device=torch.cuda.get_device_name(),
        gcc=shutil.which("gcc"),
        cc=shutil.which("cc"),
        python=sys.version.split()[0],
        triton=bool(__import__("importlib").util.find_spec("triton")),
        seconds=time.perf_counter() - started,
    )
    with told("a kernel of one's own"):
        source = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2; }'
        numbers = torch.ones(32, device=device)
        twice = torch.cuda._compile_kernel(source, "twice")
        twice((1, 1, 1), (32, 1, 1), (numbers,))
        tell(kernel=numbers.sum().item() == 64)
    with told("Triton"):
        compiled = torch.compile(lambda x: (x * 2 + 1).relu().sum(1))
        tell(compiled=float(compiled(torch.ones(8, 1000, device=device)).sum()), seconds=time.perf_counter() - started)
    with reproducible(device):
        reference = {}
        for kind, unit, streams in CANDIDATES:
            with tf32(kind), told(f"check {kind} {unit}/{streams}"):
                lanes = make(kind, 4, images, labels, unit, streams)
                epoch = Epoch(lanes, orders(4, len(labels), device))
                for _ in range(3):
                    epoch.step()
                eager = [{k: v.clone() for k, v in each.items()} for each in lanes.states()]
                if not reference:
                    reference[3] = eager
                epoch.at.fill_(3 * BATCH)
                epoch.capture()
                for _ in range(17):
                    epoch.step()
                if 23 not in reference:
                    reference[23] = [{k: v.clone() for k, v in each.items()} for each in lanes.states()]
                tell(
                    check=kind,
                    unit=unit,
                    streams=streams,
                    after_3=difference(eager, reference[3]),
                    after_23=difference(lanes.states(), reference[23]),
                    losses=lanes.losses.tolist(),
                    seconds=time.perf_counter() - started,
                )
        for members in (1, 16, 4, 64):
            for kind, unit, streams in CANDIDATES:
                if (streams > 1 and members <= unit) or (streams > 1 and members == 1):
                    continue
                if time.perf_counter() - started > arguments.seconds - 20:
                    tell(left_out=kind, members=members)
                    continue
                if members in (4, 64) and (kind in ("vmap", "unfold-one") or "+" in kind):
                    continue
                with tf32(kind), told(f"time {kind} {unit}/{streams} of {members}"):
                    torch.cuda.reset_peak_memory_stats()
                    lanes = make(kind, members, images, labels, unit, streams)
                    epoch = Epoch(lanes, orders(members, len(labels), device))
                    for _ in range(3):
                        epoch.step()
                    steps = max(4, 64 // members)
                    eager = per_step(epoch, steps)
                    epoch.at.zero_()
                    begun = time.perf_counter()
                    epoch.capture()
                    captured = time.perf_counter() - begun
                    graph = per_step(epoch, steps * 2)
                    tell(
                        time=kind,
                        unit=unit,
                        streams=streams,
                        members=members,
                        eager_ms=round(eager, 4),
                        graph_ms=round(graph, 4),
                        graph_us_a_member=round(1000 * graph / members, 1),
                        capture_s=round(captured, 3),
                        gib=round(torch.cuda.max_memory_allocated() / 2**30, 2),
                        seconds=round(time.perf_counter() - started, 1),
                    )
                    del lanes, epoch
        for kind, unit, streams, members in (
            ("alone", 1, 1, 1),
            ("alone", 1, 16, 16),
            ("grouped", 64, 1, 16),
            ("unfold", 64, 1, 16),
        ):
            if time.perf_counter() - started > arguments.seconds - 8:
                tell(left_out=f"profile {kind}")
                continue
            with told(f"profile {kind}"):
                profile(make(kind, members, images, labels, unit, streams), members, labels, arguments.out, kind)
    tell(seconds=time.perf_counter() - started)


def profile(lanes: Lanes, members: int, labels: Tensor, out: Path, kind: str) -> None:
    epoch = Epoch(lanes, orders(members, len(labels), labels.device))
    epoch.capture()
    epoch.step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(5):
            epoch.step()
        torch.cuda.synchronize()
    table = found.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=100)
    (out / f"profile-{kind}-{members}.txt").write_text(table)


if __name__ == "__main__":
    main()
