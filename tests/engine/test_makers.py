"""Files of finished networks that other processes make: they are what they would be, and nobody's end is lost."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import psutil
import pytest
import torch

from app.contract.spec import parse_spec
from benchmarks.bench.whole import making_of
from tests.engine.few import FEW
from tests.making import at_hand
from tests.specs import train_spec
from tests.waiting import wait_until
from worker.engine import pipeline
from worker.engine.errors import OutOfMemory
from worker.engine.execute import Steps
from worker.engine.lockstep import Together, Whole, carry_out
from worker.engine.makers import SENT, Made, Makers, Making, NotMade, makers_for
from worker.engine.observer import Observer

TWO, FOUR = Together(processes=2), 4
"""Processes, and the runs that they are worth their start for."""


@pytest.fixture(scope="module")
def making(tmp_path_factory: pytest.TempPathFactory) -> Making:
    spec = parse_spec(train_spec(histogram={}, training={"epochs": 1}))
    out = tmp_path_factory.mktemp("run")
    return making_of(pipeline.steps(spec, datasets=FEW, inputs={}, out=out, latency_seconds=0))


def _files(making: Making, observer: Observer | None = None, here: list[None] | None = None) -> Steps[Made]:
    """A run that has come to its files; `here` tells of each that was to make them itself."""
    made: Made | None = yield making._replace(observer=observer or Observer())
    if made is None:
        assert here is not None, "another process was to make them"
        here.append(None)
    return made or making.made()


def _without_latency(made: Made) -> dict[str, object]:
    """Which is all that another run does not repeat."""
    _, files = made
    report = json.loads(files["report.json"])
    assert report.pop("latency")["measured"]
    return {**files, "report.json": report}


def test_files_have_the_bits_that_they_have_when_they_are_made_here(making: Making) -> None:
    runs = [Whole(_files(making)) for _ in range(FOUR)]

    carry_out(runs, TWO)

    here = _without_latency(making.made())
    assert {"model.safetensors", "compact.onnx", "packed.npz", "histogram.png"} < here.keys()
    assert all(_without_latency(run.result()) == here for run in runs)
    assert at_hand() == []


class _Doing(Observer):
    """Does this whenever it is asked."""

    def __init__(self, what: Callable[[], object]) -> None:
        self._what = what

    def check(self) -> None:
        self._what()


def _leave() -> None:
    raise OutOfMemory("enough")


def test_one_that_fails_or_leaves_does_so_alone(making: Making) -> None:
    without_bias = {name: tensor for name, tensor in making.outcome.after.items() if name != "fc2.bias"}
    broken = making._replace(outcome=replace(making.outcome, after=without_bias))
    here: list[None] = []
    left = _files(making, _Doing(_leave))
    runs = [Whole(steps) for steps in (_files(broken, here=here), left, _files(making), _files(making))]

    carry_out(runs, TWO)

    assert [type(run.failure) for run in runs] == [KeyError, OutOfMemory, type(None), type(None)]
    assert len(here) == 1  # tried once more, where it can be told


def test_what_cannot_be_sent_is_made_here(making: Making) -> None:
    here: list[None] = []
    unheard_of = making._replace(history=[lambda: None])  # type: ignore[list-item]
    runs = [Whole(_files(unheard_of, here=here)), *(Whole(_files(making)) for _ in range(FOUR - 1))]

    carry_out(runs, TWO)

    assert len(here) == 1
    assert [run.failure is None for run in runs] == [False, True, True, True]


def _kill() -> None:
    for process in at_hand():
        process.kill()


def test_when_their_processes_are_killed_they_are_made_here(making: Making, caplog: pytest.LogCaptureFixture) -> None:
    here: list[None] = []
    runs = [Whole(_files(making, _Doing(_kill), here)) for _ in range(FOUR)]

    carry_out(runs, TWO)

    assert len(here) == FOUR
    assert [run.failure for run in runs] == [None] * FOUR
    assert caplog.messages == ["files are made here after all"] * FOUR


def test_what_ends_the_process_meanwhile_goes_through_each(making: Making) -> None:
    asked: list[int] = []
    ended: list[int] = []

    def end() -> None:
        if len(asked) == FOUR:
            sys.exit()

    def steps(number: int) -> Steps[None]:
        asked.append(number)
        try:
            yield making._replace(observer=_Doing(end))
        except SystemExit:
            ended.append(number)
            raise

    with pytest.raises(SystemExit):
        carry_out([Whole(steps(number)) for number in range(FOUR)], TWO)
    assert ended == list(range(FOUR))
    assert at_hand() == []


def test_what_a_process_fails_at_does_not_end_it(making: Making) -> None:
    without_bias = {name: tensor for name, tensor in making.outcome.after.items() if name != "fc2.bias"}
    with closing(Makers(1)) as processes:
        before = at_hand()
        asked = processes.send(making._replace(outcome=replace(making.outcome, after=without_bias)))
        assert asked is not None
        with pytest.raises(NotMade, match=r"KeyError: 'fc2\.bias'"):
            asked.result(timeout=60)
        asked = processes.send(making)
        assert asked is not None
        assert asked.result(timeout=60)
        assert at_hand() == before


def test_one_that_takes_too_long_is_ended_and_another_takes_its_place(making: Making) -> None:
    with closing(Makers(1, patience_seconds=0.1)) as processes:  # not even libraries are imported by then
        [first] = at_hand()
        asked = processes.send(making)
        assert asked is not None
        with pytest.raises(NotMade, match="its process is gone"):
            asked.result(timeout=60)
        wait_until(at_hand, timeout=10, what="another process")
        assert first not in at_hand()
    assert at_hand() == []


PARENT = """
import os, pickle, signal, sys
from worker.engine.makers import Makers

makers = Makers(2)
asked = [makers.send(pickle.load(sys.stdin.buffer)) for _ in range(2)]
assert all(each.result() for each in asked)
print(os.getpid(), flush=True)
signal.pause()
"""


def test_they_end_with_a_process_that_is_killed(making: Making) -> None:
    """And would not by themselves: they are stopped."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        try:
            parent.stdin.write(2 * pickle.dumps(making._replace(observer=Observer())))
            parent.stdin.flush()
            children = psutil.Process(int(parent.stdout.readline())).children()
            for child in children:
                child.suspend()
        finally:
            parent.kill()
    ended, left = psutil.wait_procs(children, timeout=30)
    for child in left:
        child.kill()
    assert (len(ended), left) == (2, [])


def test_a_network_so_large_that_its_copies_might_not_fit_is_not_sent(making: Making) -> None:
    large = torch.zeros(SENT // 4 + 1)
    with closing(Makers(1)) as process:
        assert process.send(making._replace(outcome=replace(making.outcome, probes=large))) is None


@pytest.mark.parametrize(("runs", "most"), [(3, 8), (8, 1)])
def test_one_process_is_no_use(runs: int, most: int) -> None:
    assert makers_for(runs, most) is None
