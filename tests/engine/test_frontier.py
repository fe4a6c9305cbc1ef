"""Members of a sweep side by side: the front, the table and the picture, with members missing and odd figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from app.contract.frontier import Frontier
from app.contract.report import Report
from app.contract.result import SweepResult
from app.contract.spec import SweepSpec, parse_spec
from tests.engine.conftest import Listener, Run
from tests.engine.drawn import watched
from tests.engine.test_drawing import LONG, UPLOADED, _size
from tests.specs import Document, sweep_spec, train_spec
from worker.engine import pipeline
from worker.engine.data import DatasetStore
from worker.engine.errors import InvalidInput, NoMemberSucceeded
from worker.engine.frontier import MemberJob
from worker.engine.frontier_drawing import draw_frontier


class Told(NamedTuple):
    """What a member's report is to say: non-zeros, and test images of 100 that are classified rightly."""

    nonzero: int
    correct: int


LOST = MemberJob("", "failed", "non_finite_loss")
Member = Told | MemberJob


class Bench:
    """Runs sweeps of members whose reports say what a test wants."""

    def __init__(self, report: Report, root: Path) -> None:
        self._report, self._root = report, root

    def run(self, grid: Document, told: Sequence[Member], **overrides: object) -> Run:
        spec = parse_spec(sweep_spec(grid=grid, **overrides))
        assert isinstance(spec, SweepSpec)
        jobs = [self._job(number, each) for number, each in enumerate(told)]
        inputs = {job.job_id: self._root / job.job_id for job in jobs if job.status == "succeeded"}
        out, heard = self._root / "out", Listener()
        out.mkdir()
        datasets = DatasetStore(None, download=False)
        return Run(
            pipeline.run(spec, datasets=datasets, inputs=inputs, out=out, members=jobs, observer=heard), out, heard
        )

    def _job(self, number: int, told: Member) -> MemberJob:
        job_id = f"job_{number:032x}"
        if isinstance(told, MemberJob):
            return told._replace(job_id=job_id)
        folder = self._root / job_id
        folder.mkdir()
        (folder / "report.json").write_text(self._saying(told).model_dump_json())
        return MemberJob(job_id, "succeeded")

    def _saying(self, told: Told) -> Report:
        accuracy = {"correct": told.correct, "total": 100, "accuracy": told.correct / 100}
        return self._report.model_copy(
            update={
                "accuracy_after": self._report.accuracy_after.model_copy(update=accuracy),
                "total": self._report.total.model_copy(update={"nonzero_after": told.nonzero}),
            }
        )


@pytest.fixture
def bench(plain: Run, tmp_path: Path) -> Bench:
    return Bench(plain.report, tmp_path)


def _frontier(run: Run) -> Frontier:
    return Frontier.model_validate_json((run.folder / "frontier.json").read_bytes())


def _rows(run: Run) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((run.folder / "frontier.csv").read_text())))


THRESHOLDS = {"thresholds": [0.1, 0.2, 0.3, 0.4, 0.5]}


def test_a_sweep_leaves_its_files_and_says_where_each_figure_is_from(bench: Bench) -> None:
    run = bench.run({"thresholds": [0.1, 0.2]}, [Told(900, 90), Told(500, 80)])
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"frontier.json", "frontier.csv", "frontier.png", "manifest.json"}
    assert [file.role for file in run.manifest.files] == ["frontier"] * 3
    assert run.manifest.receipt.inputs.keys() == {f"job_{number:032x}/report.json" for number in (0, 1)}
    assert run.heard.heard == ["reporting"]
    assert run.heard.steps == [(0, 2, "members"), (1, 2, "members")]


def test_an_uploaded_data_set_is_called_as_in_the_reports(plain: Run, tmp_path: Path) -> None:
    named = plain.report.model_copy(update={"dataset": UPLOADED, "dataset_name": "fruit"})
    own = train_spec(dataset={"id": UPLOADED})
    frontier = _frontier(Bench(named, tmp_path).run({"thresholds": [0.1, 0.2]}, [LOST, Told(500, 80)], base=own))
    with watched() as drawn:
        draw_frontier(frontier, None)
    assert drawn.headline.startswith("data set “fruit”: accuracy")


def test_the_front_are_those_to_which_none_is_superior(bench: Bench) -> None:
    told = [Told(900, 90), Told(500, 80), Told(600, 80), Told(400, 70), Told(300, 70)]
    frontier = _frontier(bench.run(THRESHOLDS, told))
    assert frontier.front == (4, 1, 0)
    assert [member.number for member in frontier.members if member.on_front] == [0, 1, 4]


def test_equals_are_on_the_front_together(bench: Bench) -> None:
    assert _frontier(bench.run({"thresholds": [0.1, 0.2, 0.3]}, [Told(5, 50), Told(5, 50), Told(5, 49)])).front == (
        0,
        1,
    )


def test_what_did_not_succeed_is_told_and_fails_nothing(bench: Bench) -> None:
    told: list[Member] = [
        Told(900, 90),
        LOST,
        MemberJob("", "cancelled"),
        MemberJob("", "deleted"),
        MemberJob("", "running"),
    ]
    run = bench.run(THRESHOLDS, told)
    found = _frontier(run).members
    assert [(member.status, member.error_code) for member in found] == [
        ("succeeded", None),
        ("failed", "non_finite_loss"),
        ("cancelled", None),
        ("deleted", None),
        ("running", None),
    ]
    assert [member.outcome is None for member in found] == [False, True, True, True, True]
    assert isinstance(run.result, SweepResult)
    assert run.result.model_dump() == {
        "kind": "sweep",
        "members": 5,
        "succeeded": 1,
        "failed": 1,
        "cancelled": 1,
        "unfinished": 2,
        "front": (found[0].job_id,),
    }


def test_where_none_succeeded_there_is_nothing_to_put_side_by_side(bench: Bench) -> None:
    with pytest.raises(NoMemberSucceeded, match=r"none of the 3 members succeeded \(2 non_finite_loss, 1 cancelled\)"):
        bench.run({"thresholds": [0.1, 0.2, 0.3]}, [LOST, MemberJob("", "cancelled"), LOST])


def test_the_table_has_a_row_a_member_with_its_settings_and_figures(bench: Bench, plain: Run) -> None:
    base = train_spec(regularization={"penalty": "l1"})
    run = bench.run({"strengths": [0, 0.5], "seeds": [7]}, [Told(900, 90), LOST], base=base)
    first, second = _rows(run)
    assert (first["number"], first["strength"], first["threshold"], first["seed"]) == ("0", "0.0", "0.01", "7")
    assert (first["channels"], first["hidden"], first["target_sparsity"]) == ("4×4×8", "16", "")
    assert (first["nonzero"], first["correct"], first["accuracy_after"], first["on_front"]) == (
        "900",
        "90",
        "0.9",
        "True",
    )
    assert float(first["sparsity"]) == plain.report.total.sparsity
    assert (second["status"], second["error_code"], second["nonzero"]) == ("failed", "non_finite_loss", "")


def test_no_word_of_a_client_is_in_the_table(bench: Bench) -> None:
    formula = '=HYPERLINK("https://evil.example")'
    run = bench.run({"thresholds": [0.1]}, [Told(9, 9)], display_name=formula, base=train_spec(display_name=formula))
    assert "evil" not in (run.folder / "frontier.csv").read_text()


def test_a_report_that_does_not_read_is_named(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / f"job_{0:032x}"
    folder.mkdir()
    (folder / "report.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"report\.json of job_0"):
        bench.run({"thresholds": [0.1]}, [MemberJob("", "succeeded")])


WIDE, NARROW = {"channels": [8, 8, 8], "hidden": 20}, {"channels": [2, 2, 2], "hidden": 4}
L1 = train_spec(regularization={"penalty": "l1"})
MANY = [number / 100 for number in range(16)]


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ({"thresholds": [0.1]}, [Told(900, 90)]),
        ({"thresholds": [0.1, 0.2]}, [Told(0, 0), Told(0, 100)]),
        ({"seeds": [1, 2, 3]}, [Told(900, 90), Told(901, 91), LOST]),
        ({"widths": [WIDE, NARROW]}, [Told(900, 90), Told(90, 80)]),
        ({"strengths": [0, 1e-4], "widths": [WIDE, NARROW], "seeds": [1, 2]}, [Told(n + 1, n) for n in range(8)]),
        ({"strengths": MANY, "thresholds": MANY}, [Told(10 * n + 1, n % 100) for n in range(256)]),
    ],
    ids=["one", "nothing left", "seeds alone", "widths alone", "widths and strengths", "as many as there may be"],
)
def test_any_grid_makes_a_picture(bench: Bench, grid: Document, told: Sequence[Member]) -> None:
    run = bench.run(grid, told, base=L1)
    picture = (run.folder / "frontier.png").read_bytes()
    assert _size(picture) > (900, 600)
    assert draw_frontier(_frontier(run), None) == picture


@pytest.mark.parametrize("title", ["x" * 128, "$\\frac{a}{b}$ and $", "_漢字 🙂 العربية Ünë θ"])
def test_a_title_is_taken_as_it_is(bench: Bench, title: str) -> None:
    run = bench.run({"thresholds": [0.1]}, [Told(900, 90)], display_name=title)
    assert _size((run.folder / "frontier.png").read_bytes())[0] < 2_000


def test_the_picture_is_legible_whatever_it_says(bench: Bench) -> None:
    grid = {"widths": [{"channels": [512, 512, width], "hidden": 4096} for width in range(500, 513)], "seeds": [1, 2]}
    frontier = _frontier(bench.run(grid, [*[Told(10 * n + 900, n + 50) for n in range(25)], LOST], base=L1))
    with watched() as drawn:
        draw_frontier(frontier.model_copy(update={"dataset": UPLOADED}), LONG)
    drawn.assert_is_legible()
    assert "data set …8d2c5b71: accuracy on 100 test images" in drawn.headline


@pytest.mark.parametrize(
    "told",
    [
        [Told(13_900, 94), Told(7_100, 89)],  # neither has a round number beside it
        [Told(900, 90)],
        [Told(0, 0)],
        [Told(0, 100), Told(1, 99)],
        [Told(1, 100), Told(540_123_456, 0)],
        [Told(2_999_530, 50), Told(10_490_857, 51)],
        [Told(131_000_000, 98), Told(74_000_000, 98)],
    ],
    ids=str,
)
def test_each_axis_has_three_numbers_at_least_which_are_legible(bench: Bench, told: Sequence[Member]) -> None:
    frontier = _frontier(bench.run({"thresholds": [0.1, 0.2][: len(told)]}, told))
    with watched() as drawn:
        draw_frontier(frontier, None)
    drawn.assert_is_legible()
    for axis in (drawn.figure.axes[0].xaxis, drawn.figure.axes[0].yaxis):
        numbers = {label.get_text() for label in axis.get_ticklabels() if label in drawn.texts}
        assert len(numbers) >= 3, numbers


PALE, BEST, ALONE = "pale: single seeds", "best of all members with so few", "to which no other is superior"


@pytest.mark.parametrize(
    ("grid", "told", "explained"),
    [
        ({"seeds": [1, 2]}, [Told(900, 90), Told(800, 80)], {PALE, BEST}),
        ({"seeds": [1, 2]}, [Told(900, 90), LOST], set()),
        ({"thresholds": [0.1, 0.2], "seeds": [1]}, [Told(900, 90), Told(800, 80)], {BEST}),
        ({"thresholds": [0.1, 0.2]}, [Told(900, 80), Told(800, 90)], {ALONE}),
        ({"thresholds": [0.1]}, [Told(900, 90)], set()),
    ],
    ids=["seeds", "one seed is left", "one seed", "one on the front", "one member"],
)
def test_what_is_explained_is_drawn(bench: Bench, grid: Document, told: Sequence[Member], explained: set[str]) -> None:
    frontier = _frontier(bench.run(grid, told))
    with watched() as drawn:
        draw_frontier(frontier, None)
    words = "; ".join(drawn.words)
    assert {each for each in (PALE, BEST, ALONE) if each in words} == explained


def test_amounts_at_points_that_lie_close_together_are_legible(bench: Bench) -> None:
    grid = {"thresholds": [0.1, 0.2, 0.3, 0.4], "strengths": [0, 1e-4, 2e-4], "seeds": [1, 2]}
    frontier = _frontier(bench.run(grid, [Told(900 + 3 * n, 90 - n % 2) for n in range(23)] + [Told(900, 0)], base=L1))
    with watched() as drawn:
        draw_frontier(frontier, None)
    drawn.assert_is_legible()
    assert set(drawn.words) >= {"0.1", "0.4"}
