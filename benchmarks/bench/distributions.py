"""Weight distributions against the source's double loop."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from app.contract.spec import HistogramSpec, ModelSpec
from benchmarks.bench import source
from benchmarks.bench.measuring import Setting, in_turn, seconds, threads
from benchmarks.bench.rows import Row
from worker.engine.histogram import histogram
from worker.engine.model import fresh

_TEXT = """All weights of layer2.0, fc1 and fc2 of a new network (476,904 with fc1's 470,400) at 256 centres. The double
loop is the plainest one, over Python's floats; with numpy for the inner loop it is the second row. What each counts is
compared first."""


def measure(setting: Setting) -> tuple[Sequence[Row], str]:
    wanted = HistogramSpec()
    state = fresh(ModelSpec(hidden=setting.work(300, 20)), seed=0).state_dict()
    tensors = [state[name] for name in wanted.tensors]
    thresholds = dict.fromkeys(wanted.tensors)
    found = histogram(wanted, state, None, thresholds)
    for tensor, told in zip(tensors, found.tensors, strict=True):
        assert _numpy(tensor, wanted.bins) == list(told.before.counts)
    rounds = setting.rounds(3)
    with threads(1):
        # Many in a row: one takes milliseconds.
        repeats = 20
        ours, plain, rows = in_turn(
            rounds,
            seconds(lambda: [histogram(wanted, state, None, thresholds) for _ in range(repeats)]),
            seconds(lambda: [source.distribution(tensor.flatten().tolist(), wanted.bins) for tensor in tensors]),
            seconds(lambda: [_numpy(tensor, wanted.bins) for tensor in tensors]),
        )
    each = tuple(value / repeats for value in ours)
    what = "weight distributions of three tensors"
    return [
        Row(what=what, against="the source's double loop", kind="speed-up", ours=each, plain=plain, must=300, aim=3000),
        Row(what=what, against="a loop over weights with numpy inside", kind="speed-up", ours=each, plain=rows),
    ], _TEXT


def _numpy(tensor: Tensor, bins: int) -> list[int]:
    counts: list[int] = source.distribution_by_rows(tensor.numpy().reshape(-1), bins)[1].tolist()
    return counts
