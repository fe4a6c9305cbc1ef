from __future__ import annotations

import struct
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from app.contract.network import PARAMETER_NAMES
from app.contract.report import (
    ComparedJob,
    Comparison,
    Distribution,
    Histogram,
    Report,
    Sensitivity,
    SensitivityPoint,
    TensorHistogram,
    TensorSensitivity,
)
from tests.engine.conftest import Run
from tests.engine.drawn import watched
from worker.engine.comparison_drawing import draw_comparison
from worker.engine.drawing import COLORS, _headline, _highest, draw_histogram, draw_sensitivity


@pytest.fixture
def one(plain: Run) -> Histogram:
    """Of one tensor: each row takes half a second to draw."""
    return Histogram(bins=256, tensors=plain.histogram.tensors[:1])


def _size(picture: bytes) -> tuple[int, int]:
    """Width and height in pixels, of what must be a PNG."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    return int(width), int(height)


def _distribution(low: float, high: float, counts: list[int]) -> Distribution:
    steps = len(counts) - 1
    centres = tuple(low + (high - low) * index / steps for index in range(len(counts)))
    return Distribution(min=low, max=high, centres=centres, counts=tuple(counts))


ODD = {
    "constant": (_distribution(0.5, 0.5, [9, 0]), _distribution(0.5, 0.5, [9, 0])),
    "all zeros afterwards": (_distribution(-1e-9, 1e-9, [4, 5]), _distribution(0.0, 0.0, [9, 0])),
    "not pruned": (_distribution(-1, 1, [4, 5]), None),
    "one huge value": (_distribution(-1e-3, 1e6, [8, *[0] * 254, 1]), _distribution(0, 1e6, [8, *[0] * 254, 1])),
    "two centres": (_distribution(-1, 1, [4, 5]), _distribution(-1, 1, [3, 6])),
    "all zero": (_distribution(0, 0, [9, 0]), _distribution(0, 0, [9, 0])),
    "smallest numbers there are": (_distribution(-1e-45, 1e-45, [4, 0, 5]), _distribution(0, 0, [9, 0, 0])),
    "neighbouring numbers": (_distribution(1, 1 + 2**-52, [4, 0, 5]), _distribution(1, 1 + 2**-52, [4, 0, 5])),
    "small ones": (_distribution(-7.5e-5, 7.4e-5, [4, 5]), _distribution(-7.5e-5, 7.4e-5, [4, 5])),
    "one weight": (_distribution(0.1, 0.1, [1, 0]), _distribution(0.1, 0.1, [1, 0])),
}


def _odd() -> Histogram:
    """All of them: one picture costs a second, and a tensor in it little."""
    tensors = tuple(
        TensorHistogram(name=name, total=9, threshold=0.01, before=before, after=after)
        for name, (before, after) in zip(PARAMETER_NAMES, ODD.values(), strict=False)
    )
    return Histogram(bins=256, tensors=tensors)


@pytest.fixture(scope="module")
def of_all(plain: Run) -> tuple[int, int]:
    """The size of a picture of all tensors that a network has, odd ones first."""
    usual, odd = plain.histogram.tensors[0], _odd().tensors
    others = [usual.model_copy(update={"name": name}) for name in PARAMETER_NAMES[len(odd) :]]
    drawn = (*odd, *others)
    return _size(draw_histogram(Histogram(bins=256, tensors=drawn), plain.report, "odd"))


def test_odd_tensors_can_be_drawn(of_all: tuple[int, int]) -> None:
    width, height = of_all
    assert width > 800
    assert height > 300 * len(ODD) / 2


LONG = "a name as long as it may be, " + "W" * 99
UPLOADED = "job_01a21e05af527c1d9b0e4f6a8d2c5b71"


def _wordy(report: Report) -> Report:
    """Of a job of which the most is to be said."""
    changes = {"dataset": UPLOADED, "penalty": "elastic-net", "strength": 0.001, "method": "magnitude-bn-folded"}
    how = {"schedule": "iterative", "threshold": None, "accuracy_pruned": None}
    return report.model_copy(update={**changes, **how})


@pytest.mark.parametrize("title", [None, LONG])
def test_a_histogram_is_legible_whatever_it_says(plain: Run, title: str | None) -> None:
    with watched() as drawn:
        draw_histogram(_odd(), _wordy(plain.report), title)
    drawn.assert_is_legible()
    assert drawn.headline.replace("\n", " ").endswith(" of all parameters are zero")
    for axes in drawn.figure.axes[1::2]:
        assert len([label for label in axes.get_yticklabels() if label in drawn.texts]) >= 3


def test_each_threshold_is_told_with_its_tensor(plain: Run) -> None:
    thresholds = {"layer1.0.weight": None, "fc1.weight": 0.25, "fc2.weight": 0.0}
    weights = _distribution(-1, 1, [4, 5])
    tensors = tuple(
        TensorHistogram(name=name, total=9, threshold=threshold, before=weights, after=weights)
        for name, threshold in thresholds.items()
    )
    with watched() as drawn:
        draw_histogram(Histogram(bins=2, tensors=tensors), plain.report, None)
    rows = [next(words for words in drawn.words if words.startswith(f"{name}:")) for name in thresholds]
    assert [words.rpartition(" zero)")[2] for words in rows] == ["", ", θ = 0.25", ", θ = 0"]
    assert {"−θ to θ", "before pruning", "after pruning"} <= set(drawn.words)


@pytest.mark.parametrize("title", [None, LONG])
def test_the_sensitivity_is_legible_whatever_it_says(plain: Run, title: str | None) -> None:
    point = SensitivityPoint(sparsity=0.5, nonzero=50_000_000, accuracy=0.5)
    names = ("layer1.0", "layer2.0", "layer3.0", "fc1", "fc2")
    tensors = tuple(TensorSensitivity(name=f"{name}.weight", total=100_000_000, points=(point,)) for name in names)
    told = Sensitivity(images="validation", count=100_000, accuracy=0.9, tensors=tensors)
    with watched() as drawn:
        draw_sensitivity(told, _wordy(plain.report), title)
    drawn.assert_is_legible()
    what = "data set …8d2c5b71: accuracy on 100,000 validation images, one layer pruned alone"
    assert drawn.headline.replace("\n", " ").endswith(what)


@pytest.mark.parametrize("title", [None, "x" * 128, "$\\frac{a}{b}$ and $", "_漢字 🙂 العربية Ünë θ"])
def test_a_title_is_taken_as_it_is(plain: Run, one: Histogram, title: str | None) -> None:
    assert _size(draw_histogram(one, plain.report, title))[0] < 2_000


def test_the_same_input_gives_the_same_bytes(plain: Run, l1: Run, one: Histogram) -> None:
    published = (plain.folder / "histogram.png").read_bytes()
    assert draw_histogram(plain.histogram, plain.report, "plain") == published
    other = l1.histogram.tensors[:1]
    assert draw_histogram(one, plain.report, "a") != draw_histogram(
        one.model_copy(update={"tensors": other}), plain.report, "a"
    )


def test_every_tensor_gets_a_row(plain: Run, one: Histogram) -> None:
    _, low = _size(draw_histogram(one, plain.report, "plain"))
    _, high = _size((plain.folder / "histogram.png").read_bytes())

    assert len(plain.histogram.tensors) == 3
    assert 2.2 < high / low < 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"penalty": "l1-proximal", "strength": 0.5}, "digits, proximal L1 penalty β = 0.5, pruned at θ = 0.01: "),
        ({"method": "n:m", "threshold": None}, "digits, no penalty, pruned by n:m: "),
        ({"method": "channels", "threshold": None}, "pruned by whole channels: "),
        ({"method": "taylor", "threshold": None, "schedule": "iterative"}, "pruned by taylor in rounds: "),
        ({"method": "magnitude", "threshold": None, "schedule": "gradual"}, "pruned by magnitude gradually: "),
        ({"kind": "prune"}, "digits, pruned at θ = 0.01: "),
        ({"method": None}, "digits, no penalty, not pruned: "),
        ({"dataset": UPLOADED}, "data set …8d2c5b71, no penalty, pruned at θ = 0.01: "),
        ({"dataset": UPLOADED, "dataset_name": "fruit"}, "data set “fruit”, no penalty, pruned at θ = 0.01: "),
        ({"dataset": UPLOADED, "dataset_name": "漢字"}, "data set …8d2c5b71, no penalty, pruned at θ = 0.01: "),
    ],
    ids=str,
)
def test_the_headline_says_what_was_done(plain: Run, changes: dict[str, object], said: str) -> None:
    assert said in _headline(None, plain.report.model_copy(update=changes))


def _job(run: Run, number: int, **changes: object) -> ComparedJob:
    job = ComparedJob(
        job_id="job_" + f"{number}" * 32, display_name=f"job {number}", report=run.report, histogram=run.histogram
    )
    return job.model_copy(update=changes)


def test_two_to_eight_jobs_can_be_compared(plain: Run, l1: Run, compared: Run) -> None:
    assert _size((compared.folder / "comparison.png").read_bytes()) > (1_000, 1_000)
    jobs = tuple(_job((plain, l1)[number % 2], number) for number in range(8))
    assert _size(draw_comparison(Comparison(jobs=jobs))) > (1_000, 1_000)


def test_a_comparison_is_legible_whatever_it_says(plain: Run) -> None:
    wordy = _wordy(plain.report)
    large = {"parameters": 123_456_789, "nonzero_after": 123_456_789}
    totals = [wordy.total.model_copy(update={**large, "sparsity": number / 7}) for number in range(8)]
    reports = [wordy.model_copy(update={"total": total}) for total in totals]
    odd = Histogram(bins=256, tensors=_odd().tensors[::3])
    jobs = (_job(plain, 0, display_name=LONG, report=report, histogram=odd) for report in reports)
    with watched() as drawn:
        draw_comparison(Comparison(jobs=tuple(jobs)))
    drawn.assert_is_legible()
    label = next(text for text in drawn.texts if "data\xa0set\xa0…8d2c5b71," in text.get_text())
    assert drawn.texts[label].width < drawn.figure.bbox.width / 5
    assert not any("job_" in words for words in drawn.words)


@pytest.mark.parametrize(
    ("thresholds", "marked", "said"),
    [
        ([0.1, None, 0.2], [{-0.1, 0.1}, set(), {-0.2, 0.2}], " (dashed: −θ and θ)"),
        ([0.0, 0.1, 0.1], [{0.0}, {-0.1, 0.1}, {-0.1, 0.1}], " (dashed: −θ and θ)"),
        ([None, None, None], [set(), set(), set()], ""),
        ([9.0, None, None], [set(), set(), set()], ""),  # out of sight
    ],
    ids=["two", "zero and the same", "none", "wider than all weights"],
)
def test_a_threshold_is_marked_in_the_strip_of_its_job(
    plain: Run, thresholds: list[float | None], marked: list[set[float]], said: str
) -> None:
    weights = _distribution(-1, 1, [4, 5])
    tensors = [
        TensorHistogram(name="fc1.weight", total=9, threshold=each, before=weights, after=weights)
        for each in thresholds
    ]
    histograms = [Histogram(bins=256, tensors=(tensor,)) for tensor in tensors]
    jobs = (_job(plain, number, histogram=histogram) for number, histogram in enumerate(histograms))
    with watched() as drawn:
        draw_comparison(Comparison(jobs=tuple(jobs)))
    strips = drawn.figure.axes[-3:]
    assert [{float(np.ravel(line.get_xdata())[0]) for line in axes.lines} for axes in strips] == marked
    assert f"fc1.weight, after pruning{said}" in drawn.words


def test_each_job_has_a_strip_of_its_own_on_the_same_axes(plain: Run, l1: Run) -> None:
    undrawn = Histogram(bins=256, tensors=())
    one = [run.histogram.model_copy(update={"tensors": run.histogram.tensors[1:2]}) for run in (plain, l1)]
    histograms = (one[0], undrawn, one[1], one[0])
    with watched() as drawn:
        draw_comparison(
            Comparison(jobs=tuple(_job(plain, n, histogram=histogram) for n, histogram in enumerate(histograms)))
        )
    strips = drawn.figure.axes[2:]
    assert [to_hex(strip.patches[0].get_facecolor()).upper() for strip in strips] == 2 * [COLORS[n] for n in (0, 2, 3)]
    assert len({strip.get_xlim() for strip in strips}) == 1
    assert [len({strip.get_ylim() for strip in column}) for column in (strips[:3], strips[3:])] == [1, 1]
    frames = [strip.bbox for strip in strips]
    assert not any(one.overlaps(other) for one, other in combinations(frames, 2))
    assert [strip.texts[0].get_text() for strip in strips[:3]] == ["1. job 0", "3. job 2", "4. job 3"]


def test_odd_jobs_can_be_compared(plain: Run, l1: Run) -> None:
    undrawn = Histogram(bins=256, tensors=())
    one = Histogram(bins=256, tensors=plain.histogram.tensors[1:2])
    jobs = (
        _job(plain, 1, display_name=None, histogram=undrawn),
        _job(l1, 2, display_name="$very$ long 漢字 " * 8, histogram=one),
    )

    assert _size(draw_comparison(Comparison(jobs=jobs)))
    assert _size(draw_comparison(Comparison(jobs=(jobs[0], jobs[0]))))


UNWRITABLE = ["漢字", "night run 🙂", "\u200b", "a" + "\u0301" * 40, " "]


@pytest.mark.parametrize("name", UNWRITABLE, ids=ascii)
def test_a_name_that_cannot_be_written_is_as_none(plain: Run, one: Histogram, name: str) -> None:
    assert draw_histogram(one, plain.report, name) == draw_histogram(one, plain.report, None)


def test_a_job_whose_name_cannot_be_written_is_called_by_its_id(plain: Run) -> None:
    undrawn = Histogram(bins=256, tensors=())
    jobs = (_job(plain, 1, display_name=name, histogram=undrawn) for name in ["Ünë θ", *UNWRITABLE])
    with watched() as drawn:
        draw_comparison(Comparison(jobs=tuple(jobs)))
    drawn.assert_is_legible()
    named = [words.partition("\n")[0] for words in drawn.words if "θ = " in words.replace("\xa0", " ")]
    assert named == ["1. Ünë θ", *[f"{number}. job …11111111" for number in range(2, 7)]]


def test_odd_tensors_can_be_compared(plain: Run) -> None:
    assert _size(draw_comparison(Comparison(jobs=(_job(plain, 1, histogram=_odd()), _job(plain, 2)))))


@pytest.mark.parametrize(
    ("counts", "highest"),
    [
        ([4, 9, 5], 1.12 * 9),  # nothing stands out: all is shown
        ([50, 60, *[1_000] * 2, *[40] * 16], 4 * 1_000),  # ten bars a tenth: the second tallest is ordinary
        ([10, 90_000, 12, *[8] * 27], 4 * 10),  # one bar would flatten the rest
        ([9, 0], 1.12 * 9),  # nothing but that bar
    ],
)
def test_the_linear_scale_shows_the_ordinary_bars(counts: list[int], highest: float) -> None:
    assert _highest(counts) == pytest.approx(min(highest, 1.12 * max(counts)))


def test_all_tensors_of_a_network_fit_one_bounded_picture(plain: Run, of_all: tuple[int, int]) -> None:
    width, height = of_all

    assert len(plain.report.tensors) == 16
    assert width < 2_000
    assert height < 6_000
