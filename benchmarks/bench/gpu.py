"""Training on a GPU against the source's own loop on that GPU."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from app.contract.spec import ModelSpec
from app.contract.training import Precision, TrainingSpec
from benchmarks.bench import source
from benchmarks.bench.measuring import Setting, in_turn, seconds
from benchmarks.bench.rows import Row
from benchmarks.bench.training import examples, load, trained
from benchmarks.bench.writing import number, table
from worker.engine.model import fresh
from worker.engine.observer import Observer
from worker.engine.plan import Course
from worker.engine.progress import Progress
from worker.engine.seeding import reproducible
from worker.engine.train import Examples, train

EPOCHS = 5
WHAT = "the same network on a GPU"
AGAINST = "the source's loop on that GPU"
_PRECISIONS: tuple[Precision, Precision] = ("float32", "bf16")


def measure(setting: Setting) -> tuple[Sequence[Row], str]:
    if not torch.cuda.is_available():
        skipped = "there is no CUDA device here"
        return [Row(what=WHAT, against=AGAINST, kind="speed-up", must=15, aim=60, skipped=skipped)], ""
    on = torch.device("cuda")
    here = examples(load(setting), setting.work(60_000, 6_000), on)
    with source.files(setting) as folder:
        pictures = source.pictures(folder, len(here.labels))
        source.train(source.Network().cuda(), pictures, device="cuda")  # warm
        plain, float32, bf16 = in_turn(
            setting.rounds(3),
            seconds(lambda: source.train(source.Network().cuda(), pictures, device="cuda")),
            seconds(lambda: trained(here, _settings("float32"))),
            seconds(lambda: trained(here, _settings("bf16"))),
        )
    of_epoch = [tuple(value / EPOCHS for value in values) for values in (float32, bf16)]
    rows = [
        Row(what=WHAT, against=AGAINST, kind="speed-up", ours=of_epoch[0], plain=plain, must=15, aim=60),
        Row(what=f"{WHAT}, bf16", against=AGAINST, kind="speed-up", ours=of_epoch[1], plain=plain),
    ]
    return rows, "\n\n".join((_text(len(here.labels)), _steps(here), _kernels(here)))


def _settings(precision: Precision) -> TrainingSpec:
    return TrainingSpec(epochs=EPOCHS, precision=precision)


def _text(images: int) -> str:
    return (
        f"Seconds an epoch of {images:,} images: the source's of one, ours of a training of {EPOCHS} with all that "
        "comes before it, recording included."
    )


def _steps(here: Examples) -> str:
    """Milliseconds a step, captured and not."""
    part = Examples(here.images[:20_000], here.labels[:20_000], here.images[:0], here.labels[:0])
    lines = []
    for precision, capture in itertools.product(_PRECISIONS, (True, False)):
        settings = TrainingSpec(epochs=1, precision=precision)
        longer = settings.model_copy(update={"epochs": 3})

        def work(of: TrainingSpec, capture: bool = capture) -> None:
            network = fresh(ModelSpec(), 0).cuda()
            with reproducible(torch.device("cuda")):
                train(network, part, Course(of), Progress(), Observer(), capture=capture)

        work(settings)
        once, thrice = (seconds(lambda of=of: work(of))() for of in (settings, longer))  # type: ignore[misc]
        steps = len(part.labels) / settings.batch_size
        each = (thrice - once) / (longer.epochs - settings.epochs) / steps * 1000
        how = "captured" if capture else "one operation after another"
        lines.append((precision, how, number(each), number(once - each * steps / 1000)))
    return table(("precision", "steps", "ms a step", "s to begin"), lines)


def _kernels(here: Examples) -> str:
    part = Examples(here.images[:6_000], here.labels[:6_000], here.images[:0], here.labels[:0])
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        trained(part, TrainingSpec(epochs=1))
    steps = 60
    found = sorted(profiled.key_averages(), key=lambda each: -each.self_device_time_total)
    lines = [
        (each.key[:90].replace("|", "/"), number(each.count / steps), number(each.self_device_time_total / steps))
        for each in found[:25]
    ]
    return table(("kernel, float32", "times a step", "µs a step"), lines)
