"""The frame of the benchmark: its arithmetic, what it keeps, what it writes. How fast anything is, is not tested."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.bench import source
from benchmarks.bench.__main__ import keep, measured
from benchmarks.bench.apart import timed, workers
from benchmarks.bench.drawing import draw
from benchmarks.bench.growth import exponent
from benchmarks.bench.measuring import Setting, in_turn
from benchmarks.bench.parts import PARTS, Measured
from benchmarks.bench.rows import Machine, Part, Results, Row
from benchmarks.bench.writing import figure, number, table, verdict, write
from worker.engine.histogram import distribution
from worker.engine.model import Cnn

_MACHINE = Machine(
    date="2026-01-02 03:04 UTC", processor="P", cores=2, memory_gb=8, gpu=None, system="S", versions={"torch": "2.11"}
)
_FASTER = Row(
    what="faster", against="a loop", kind="speed-up", ours=(1.0, 2.0, 4.0), plain=(4.0, 6.0, 6.0), must=2.0, aim=4
)
_DEARER = Row(what="dearer", against="less", kind="cost", ours=(3.0,), plain=(2.0,), must=1.2)
_SKIPPED = Row(what="elsewhere", kind="speed-up", must=15, skipped="there is no GPU here")


def _part(name: str, *rows: Row, machine: Machine = _MACHINE) -> Part:
    return Part(name=name, title=name.title(), rows=rows, seconds=1.0, machine=machine, details=f"About {name}.")


def test_a_figure_is_of_medians_and_its_spread_of_rounds() -> None:
    assert _FASTER.figure == 3.0
    assert _FASTER.spread == (1.5, 4.0)
    assert _FASTER.reaches(2.0)
    assert not _FASTER.reaches(4.0)
    assert _FASTER.margin == 1.5


def test_of_a_cost_less_is_better() -> None:
    assert _DEARER.figure == 1.5
    assert not _DEARER.reaches(1.2)
    assert _DEARER.margin == pytest.approx(0.8)
    rate = Row(what="r", kind="rate", unit="1/s", ours=(30.0,), plain=(40.0,), must=0.5)
    assert (rate.figure, rate.reaches(0.5), rate.margin) == (0.75, True, 1.5)
    alone = Row(what="v", kind="value", ours=(0.1, 0.3, 0.2), must=0.4)
    assert (alone.figure, alone.spread, alone.margin) == (0.2, (0.1, 0.3), 2.0)


def test_what_was_skipped_has_neither_figure_nor_verdict() -> None:
    assert _SKIPPED.figure is None
    assert _SKIPPED.margin is None
    assert verdict(_SKIPPED) == ""
    assert figure(_SKIPPED) == "skipped: there is no GPU here"


def test_verdicts() -> None:
    assert verdict(_FASTER) == "yes"
    assert verdict(_FASTER.model_copy(update={"aim": 3.0})) == "aim"
    assert verdict(_DEARER) == "**no**"


def test_an_exponent_is_the_slope_of_logarithms() -> None:
    assert exponent([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert exponent([1, 2, 4], [5.0, 20.0, 80.0]) == pytest.approx(2)
    assert exponent([6_000, 60_000], [7.0, 7.0]) == pytest.approx(0)


def test_measures_take_turns() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    assert in_turn(2, lambda: measure("a"), lambda: measure("b")) == ((1.0, 3.0), (2.0, 4.0))
    assert order == ["a", "b", "a", "b"]


def test_parts_that_are_not_measured_again_are_kept() -> None:
    order = ["one", "two"]
    first = Results().renewed(_part("two", _FASTER), order).renewed(_part("one", _DEARER), order)
    assert [part.name for part in first.parts] == order
    again = first.renewed(_part("two", _SKIPPED), order)
    assert [part.rows for part in again.parts] == [(_DEARER,), (_SKIPPED,)]
    assert [part.name for part in again.renewed(_part("two"), ["two"]).parts] == ["two"]


def test_results_come_back_as_they_were_kept(tmp_path: Path) -> None:
    name = next(iter(PARTS))
    assert Results.read(tmp_path / "new" / "results.json") == Results()
    keep(_part(name, _FASTER, _SKIPPED), tmp_path / "new")
    assert Results.read(tmp_path / "new" / "results.json").parts == (_part(name, _FASTER, _SKIPPED),)
    assert (tmp_path / "new" / "results.md").read_text() == write(Results.read(tmp_path / "new" / "results.json"))
    assert (tmp_path / "new" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_the_text_says_of_each_row_on_which_machine_it_was_measured() -> None:
    other = _MACHINE.model_copy(update={"gpu": "G", "date": "2026-02-03 04:05 UTC"})
    same = _MACHINE.model_copy(update={"date": "2026-03-04 05:06 UTC"})
    parts = _part("one", _FASTER), _part("two", _DEARER, _SKIPPED, machine=other), _part("three", machine=same)
    text = write(Results(parts=parts))
    assert "| faster | a loop | **3.00×** (1.50 – 4.00) | ≥ 2× | ≥ 4× | yes | 2026-01-02, machine 1 |" in text
    assert "| dearer | less | **1.50×** (1.50 – 1.50) | ≤ 1.2× |  | **no** | 2026-02-03, machine 2 |" in text
    assert "elsewhere: skipped. there is no GPU here" in text
    assert "`--only three`, 2026-03-04 05:06 UTC, machine 1, 1 s." in text
    assert "About two." in text


def test_the_picture_takes_what_there_is() -> None:
    for rows in ((), (_FASTER, _DEARER, _SKIPPED)):
        assert draw(Results(parts=(_part("one", *rows),))).startswith(b"\x89PNG")


@pytest.mark.parametrize(("value", "text"), [(0.01234, "0.0123"), (1.0, "1.00"), (12.34, "12.3"), (1234.5, "1,234")])
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_a_table_is_markdown() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def faster(setting: Setting) -> tuple[list[Row], str]:
    return [_FASTER], setting.dataset


def test_a_part_is_measured_and_told_of() -> None:
    part = measured("x", Measured("X", __name__, "faster"), Setting(quick=True))
    assert (part.rows, part.details, part.quick) == ((_FASTER,), "digits", True)
    assert part.machine.cores >= 1


def test_the_source_s_network_is_the_engine_s() -> None:
    """Other orders of pooling and rectifying, the same function."""
    plain, ours = source.Network(), Cnn((16, 16, 32), 300)
    weights = list(plain.state_dict().values())
    ours.load_state_dict(dict(zip(ours.state_dict(), weights, strict=True)))
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plain(images), ours(images))


def test_the_source_s_loop_trains() -> None:
    with source.files(Setting()) as folder:
        losses, accuracies = source.train(source.Network(), source.pictures(folder, 200), epochs=2, l1=0.001)
    assert len(losses) == len(accuracies) == 4
    assert losses[-1] < losses[0]


def test_the_double_loops_count_as_the_engine_does() -> None:
    weights = torch.randn(500, generator=torch.Generator().manual_seed(1))
    counts = list(distribution(weights, 16).counts)
    assert source.distribution(weights.tolist(), 16)[1] == counts
    assert source.distribution_by_rows(weights.numpy(), 16)[1].tolist() == counts


def test_work_is_done_in_processes_of_its_own() -> None:
    with workers(2) as (one, other):
        assert len({one(os.getpid), other(os.getpid), os.getpid()}) == 3
        assert one(os.getpid) == one(os.getpid)
        assert timed(one, os.getpid)() >= 0
        with pytest.raises(RuntimeError, match="ValueError: invalid literal"):
            one(partial(int, "no number"))
