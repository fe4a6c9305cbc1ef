"""Holds members that are trained together on a GPU against each alone, and measures: `python -m benchmarks.together.gpu
FOLDER OUT`, where FOLDER has MNIST in `MNIST/raw`."""

from __future__ import annotations

import argparse
import itertools
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn import functional

from app.contract.datasets import DatasetName
from app.contract.spec import ModelSpec
from app.contract.training import FineTuningSpec, L1Penalty, ProximalL1
from worker.engine.data import DatasetStore
from worker.engine.evaluate import evaluate
from worker.engine.model import fresh
from worker.engine.observer import Observer
from worker.engine.plan import Course
from worker.engine.progress import Progress
from worker.engine.pruning import Mask
from worker.engine.seeding import generator, reproducible
from worker.engine.together import Member, train_together
from worker.engine.train import Examples, train

MODEL = ModelSpec()


@contextmanager
def told(what: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        print(f"{what}: FAILED\n{''.join(traceback.format_exc().splitlines(keepends=True)[-8:])}", flush=True)


def milliseconds(work: Callable[[], object], times: int = 5) -> float:
    work()
    torch.cuda.synchronize()
    found = []
    for _ in range(3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(times):
            work()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / times)
    return min(found)


def far(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-12))


def check_layer(members: int, width_in: int, width: int, side: int, kernel: int, *, pooled: bool) -> dict[str, object]:
    from worker.engine.together.layers import convolutional

    torch.manual_seed(members + width)
    shape = (members, width_in, 100, side, side)
    given = [torch.randn(shape, device="cuda", requires_grad=width_in > 3)]
    given += [torch.randn(members, width, width_in, kernel, kernel, device="cuda", requires_grad=True)]
    given += [torch.randn(members, width, device="cuda", requires_grad=True) for _ in range(3)]
    wanted = [each for number, each in enumerate(given) if each.requires_grad and number != 2]

    def run() -> list[Tensor]:
        out, mean, variance = convolutional(*given, 1e-5, pooled=pooled)
        weights = torch.linspace(-1, 1, out.numel(), device="cuda").view(out.shape)
        return [out, mean, variance, *torch.autograd.grad((out * weights).sum(), wanted)]

    found, again = run(), run()
    exact = []
    double = [each.detach().double().requires_grad_(each.requires_grad) for each in given]
    for m in range(members):
        x = functional.conv2d(double[0][m].transpose(0, 1), double[1][m], double[2][m], padding=kernel // 2)
        x = functional.batch_norm(x, None, None, double[3][m], double[4][m], training=True, eps=1e-5)
        exact.append(functional.relu(functional.max_pool2d(x, 2) if pooled else x).transpose(0, 1))
    out = torch.stack(exact)
    weights = torch.linspace(-1, 1, out.numel(), device="cuda").view(out.shape)
    of_double = [each for number, each in enumerate(double) if each.requires_grad and number != 2]
    gradients = torch.autograd.grad((out * weights.double()).sum(), of_double)
    return {
        "layer": [members, width_in, width, side],
        "far": [f"{far(a, b):.1e}" for a, b in zip([found[0], *found[3:]], [out, *gradients], strict=True)],
        "same_bits_again": all(torch.equal(a, b) for a, b in zip(found, again, strict=True)),
    }


def check_nan() -> dict[str, object]:
    """One member's NaN shows in its own output, and in no other's."""
    from worker.engine.together.layers import convolutional

    given = [torch.randn(2, 16, 10, 14, 14, device="cuda"), torch.randn(2, 16, 16, 3, 3, device="cuda")]
    given += [torch.randn(2, 16, device="cuda") for _ in range(3)]
    given[1][0, 3, 2, 1, 1] = torch.nan
    told = {}
    for pooled in (False, True):
        out = convolutional(*given, 1e-5, pooled=pooled)[0]
        told[f"pooled={pooled}"] = [bool(out[0, 3].isnan().all()), bool(out[1].isfinite().all())]
    return told


class Listening(Observer):
    def __init__(self) -> None:
        self.records: list[dict[str, JsonValue]] = []

    def record(self, type: str, data: dict[str, JsonValue]) -> None:
        self.records.append({"type": type, **data})


def members_of(courses: list[Course], device: torch.device, *, masked: bool = False) -> list[Member]:
    found = []
    for course in courses:
        network = fresh(MODEL, course.settings.seed).to(device)
        mask = None
        if masked:
            pick = generator(course.settings.seed, "mask")
            mask = Mask({name: torch.rand(p.shape, generator=pick) < 0.5 for name, p in network.named_parameters()})
            network.load_state_dict(mask.to(device).apply(network.state_dict()))
        found.append(Member(network, course, Progress(mask=mask)))
    return found


def settings_of(seed: int, **changes: object) -> FineTuningSpec:
    return FineTuningSpec.model_validate({"seed": seed, "epochs": 1, **changes}, strict=False)


def apart(ours: nn.Module, theirs: nn.Module) -> tuple[float, str]:
    """The largest difference of a parameter, but for the convolutions' biases, which BatchNorm takes away again."""
    worst, where = 0.0, ""
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        found = float((mine - other).abs().max())
        if found > worst and name not in ("layer1.0.bias", "layer2.0.bias", "layer3.0.bias"):
            worst, where = found, name
    return worst, where


def equality(
    examples: Examples, changes: dict[str, object], penalty: type | None, *, masked: bool
) -> dict[str, object]:
    courses = []
    for seed in range(3):
        given = settings_of(seed, learning_rate=0.0005 * (seed + 1), **changes)
        strength = 1e-4 * (seed + 1)
        kind = {"L1Penalty": "l1", "ProximalL1": "l1-proximal"}
        made = None if penalty is None else penalty(penalty=kind[penalty.__name__], strength=strength)
        courses.append(Course(given, made))
    device = examples.images.device
    together, again = (members_of(courses, device, masked=masked) for _ in range(2))
    alone = members_of(courses, device, masked=masked)
    failed = train_together(together, examples, Listening())
    train_together(again, examples, Listening())
    for each in alone:
        train(each.network, examples, each.course, each.progress, Observer())
    same = all(
        torch.equal(a, b)
        for one, other in zip(together, again, strict=True)
        for a, b in zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    )
    losses = [[one.progress.history[-1].loss for one in each] for each in (together, alone)]
    return {
        "equality": {**changes, "penalty": penalty and penalty.__name__, "masked": masked},
        "apart": [apart(a.network, b.network) for a, b in zip(together, alone, strict=True)],
        "loss": [f"{abs(a - b) / b:.1e}" for a, b in zip(*losses, strict=True)],
        "accuracy": [
            (a.progress.history[-1].accuracy, b.progress.history[-1].accuracy)
            for a, b in zip(together, alone, strict=True)
        ],
        "held": all(
            not bool(tensor[~each.progress.mask.to(device)[name]].any())
            for each in together
            if each.progress.mask is not None
            for name, tensor in each.network.named_parameters()
        ),
        "failed": [str(each) for each in failed],
        "same_bits_again": same,
    }


def tiles(members: int = 16) -> Iterator[dict[str, object]]:
    """How long the convolutions' kernels take with other tiles."""
    from worker.engine.together import layers

    x1 = torch.randn(members, 1, 100, 28, 28, device="cuda")
    x16 = torch.randn(members, 16, 100, 28, 28, device="cuda")
    x14 = torch.randn(members, 16, 100, 14, 14, device="cuda")
    w1, w2, w3 = (
        torch.randn(members, *shape, device="cuda") for shape in ((16, 1, 5, 5), (16, 16, 3, 3), (32, 16, 3, 3))
    )
    y14 = torch.randn(members, 32, 100, 14, 14, device="cuda")
    back = w3.transpose(1, 2).contiguous()
    cases = {
        ("convolve", False): {"1": lambda: layers._convolve(x1, w1, None)},
        ("convolve", True): {
            "2": lambda: layers._convolve(x16, w2, None),
            "3": lambda: layers._convolve(x14, w3, None),
            "3 back": lambda: layers._convolve(y14, back, None),
        },
        ("weigh", False): {"1": lambda: layers._weigh(x1, x16, w1)},
        ("weigh", True): {
            "2": lambda: layers._weigh(x16, x16, w2),
            "3": lambda: layers._weigh(x14, y14, w3),
        },
    }
    grids = {
        ("convolve", False): itertools.product((128, 256), (32,), (4, 8), (2,)),
        ("convolve", True): itertools.product((64, 128, 256), (16,), (4,), (2, 3, 4)),
        ("weigh", False): itertools.product((32, 64), (32,), (2, 4), (2, 3)),
        ("weigh", True): itertools.product((32, 64), (16,), (1, 2, 4), (2, 3)),
    }
    for key, grid in grids.items():
        default = layers.TILES[key]
        for values in [tuple(default), *grid]:
            layers.TILES[key] = layers.Tile(*values)
            with told(f"{key} {values}"):
                yield {
                    "tile": key,
                    "values": values,
                    "us": {name: round(1000 * milliseconds(work), 1) for name, work in cases[key].items()},
                }
        layers.TILES[key] = default


def per_step(examples: Examples, members: int, steps: int) -> dict[str, object]:
    from worker.engine.together.stack import Stack
    from worker.engine.together.steps import Steps

    courses = [
        Course(settings_of(seed), L1Penalty(penalty="l1", strength=1e-5 * (1 + seed))) for seed in range(members)
    ]
    device, count = examples.images.device, len(examples.labels)
    stack = Stack([fresh(MODEL, seed).to(device) for seed in range(members)])
    taken = Steps(stack, examples, courses, [None] * members)
    orders = [torch.randperm(count) for _ in range(members)]
    rates = torch.full((taken.steps_an_epoch, members), 1e-3, dtype=torch.float64)
    taken.begin(0, orders, [], rates)
    begun = time.perf_counter()
    for _ in range(5):
        taken.take(100, lambda: [])
    torch.cuda.synchronize()
    prepared = time.perf_counter() - begun
    taken.begin(0, orders, [], rates)
    took = milliseconds(lambda: taken.take(100, lambda: []), steps)
    return {
        "members": members,
        "step_ms": round(took, 3),
        "us_a_member": round(1000 * took / members, 1),
        "first_five_s": round(prepared, 2),
        "gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }


def whole(data: Examples, test: tuple[Tensor, Tensor], members: int, alone: int) -> dict[str, object]:
    """An epoch of MNIST."""
    courses = [
        Course(settings_of(seed), L1Penalty(penalty="l1", strength=1e-5 * (1 + seed))) for seed in range(members)
    ]
    device = data.images.device
    found = members_of(courses, device)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    train_together(found, data, Observer())
    torch.cuda.synchronize()
    together = time.perf_counter() - begun
    others = members_of(courses[:alone], device)
    begun = time.perf_counter()
    for each in others:
        train(each.network, data, each.course, each.progress, Observer())
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - begun) / alone
    quiet = Observer()
    pairs = [
        [evaluate(each.network, *test, quiet).accuracy.accuracy for each in (one, other)]
        for one, other in zip(found, others, strict=False)
    ]
    return {
        "members": members,
        "together_s": round(together, 3),
        "one_alone_s": round(seconds, 3),
        "ratio": round(seconds * members / together, 2),
        "test_accuracy": pairs,
        "losses": [
            [a.progress.history[-1].loss, b.progress.history[-1].loss] for a, b in zip(found, others, strict=False)
        ],
    }


def profiled(examples: Examples, members: int, out: Path) -> None:
    from worker.engine.together.stack import Stack
    from worker.engine.together.steps import Steps

    courses = [Course(settings_of(seed), L1Penalty(penalty="l1", strength=1e-5)) for seed in range(members)]
    device, count = examples.images.device, len(examples.labels)
    taken = Steps(
        Stack([fresh(MODEL, seed).to(device) for seed in range(members)]), examples, courses, [None] * members
    )
    rates = torch.full((taken.steps_an_epoch, members), 1e-3, dtype=torch.float64)
    taken.begin(0, [torch.randperm(count) for _ in range(members)], [], rates)
    for _ in range(6):
        taken.take(100, lambda: [])
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(5):
            taken.take(100, lambda: [])
        torch.cuda.synchronize()
    table = found.key_averages().table(sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=110)
    (out / f"profile-together-{members}.txt").write_text(table)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=110)
    arguments = parser.parse_args()
    started = time.perf_counter()

    def tell(**facts: object) -> None:
        print(json.dumps({**facts, "at": round(time.perf_counter() - started, 1)}, default=str), flush=True)

    device = torch.device("cuda")
    data = DatasetStore(arguments.folder).load(DatasetName.MNIST)
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    test = data.test_images.to(device), data.test_labels.to(device)
    everything = Examples(images, labels, images[:0], labels[:0])
    some = Examples(images[:950], labels[:950], images[1000:1500], labels[1000:1500])
    with reproducible(device):
        for case in (
            (3, 1, 16, 28, 5, False),
            (3, 16, 16, 28, 3, True),
            (2, 16, 32, 14, 3, True),
            (2, 20, 40, 9, 3, True),
        ):
            with told(f"layer {case}"):
                tell(**check_layer(*case[:5], pooled=case[5]))
        with told("nan"):
            tell(nan=check_nan())
        for members, steps in ((1, 50), (16, 30), (4, 50)):
            with told(f"step of {members}"):
                tell(**per_step(everything, members, steps))
        with told("whole"):
            tell(**whole(everything, test, 16, 2))
        with told("profile"):
            profiled(everything, 16, arguments.out)
        for changes, penalty, masked in (
            ({}, None, False),
            ({}, L1Penalty, False),
            ({"optimizer": {"name": "adamw"}, "random_shift": 2, "label_smoothing": 0.1}, ProximalL1, True),
            (
                {"optimizer": {"name": "sgd"}, "select": "best", "epochs": 2, "learning_rate_schedule": "cosine"},
                None,
                True,
            ),
        ):
            with told(f"equality {changes}"):
                tell(**equality(some, changes, penalty, masked=masked))
        if time.perf_counter() - started < arguments.seconds - 35:
            with told("step of 64"):
                tell(**per_step(everything, 64, 10))
        for found in tiles():
            tell(**found)
            if time.perf_counter() - started > arguments.seconds:
                break
    tell(ended=True)


if __name__ == "__main__":
    main()
