"""The front in words and as a picture: what stands where, and bundles that anybody may have written."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.bundle.read import Bundle
from deploy.bundle.report.content import report
from deploy.bundle.report.front import HEIGHT, WIDTH, Picture, front, nice_step, rows
from deploy.bundle.report.markdown import markdown
from deploy.bundle.report.page import html
from deploy.bundle.report.summary import reasons
from deploy.spec.manifest import Evaluation, Measurements
from deploy.spec.measurement import Attempt, Latency, Point


def point(number: int, ms: float | None, drop: float | None, size: int, **more: object) -> Point:
    given_ = {"form": f"form {number}", "runtime": "ort", "precision": "auto", "float_blocks": ()}
    return Point.model_validate(
        {"number": number, "latency_ms": ms, "drop": drop, "bytes": size, **given_, **more}
    )


def attempt(ms: float, drop: float, size: int) -> Attempt:
    latency = Latency(p50=ms, p95=ms, p99=ms, samples=1, spread=0)
    return Attempt(name="tried", runtime="ort", bytes=size, drop=drop, latency_ms=latency)


def scores() -> Evaluation:
    return Evaluation(
        metric="top1", unit="fraction", higher_is_better=True, baseline=0.9, artifact=0.89, drop=0.01,
        interval=(0, 0), role="eval", samples=1, looks=1,
    )  # fmt: skip


def drawn(*points: Point, attempts: tuple[Attempt, ...] = ()) -> Picture:
    found = front(Measurements(comparison=None, front=points, attempts=attempts), scores()).picture
    assert found is not None
    return found


THREE = (
    point(1, 1.0, 0.02, 1000),
    point(2, 2.0, 0.01, 4000, chosen=True),
    point(3, 4.0, 0.0, 4000, predicted=True),
)


def test_the_table_has_every_figure() -> None:
    one, two, three = rows(THREE, "fraction")
    assert (one.number, one.name, one.runtime, one.drop) == ("1", "form 1", "ort", "−2.00 points")
    assert (two.size, two.latency, two.chosen) == ("4.00 kB", "2.00 ms", True)
    assert (three.drop, three.latency) == ("0", "4.00 ms expected")
    (climbed,) = rows([point(1, 1.0, 0.0, 10, rungs=("ranges", "round"))], "")
    assert climbed.name == "form 1 (ranges, round)"


def test_what_takes_longer_stands_further_right_and_what_loses_more_higher() -> None:
    spots = {spot.number: spot for spot in drawn(*THREE).spots}
    assert spots["1"].x < spots["2"].x < spots["3"].x
    assert spots["1"].y < spots["2"].y < spots["3"].y
    assert spots["3"].x - spots["2"].x == pytest.approx(2 * (spots["2"].x - spots["1"].x), abs=0.2)
    assert spots["2"].chosen and spots["3"].predicted and not spots["1"].chosen


def test_areas_are_as_sizes() -> None:
    spots = {spot.number: spot for spot in drawn(*THREE).spots}
    assert spots["2"].radius == spots["3"].radius == 2 * spots["1"].radius


def test_what_others_beat_is_there_without_a_number_and_once() -> None:
    beaten, same = attempt(3.0, 0.03, 2000), attempt(1.0, 0.02, 1000)
    picture = drawn(*THREE, attempts=(same, beaten))
    assert sorted(spot.number for spot in picture.spots) == ["", "1", "2", "3"]
    assert picture.spots[0].number == "", "behind the others"


def test_numbers_do_not_lie_on_other_forms() -> None:
    crowd = [point(i, 1.0 + 0.02 * i, 0.0, 4000 if i == 1 else 1000) for i in range(1, 4)]
    picture = drawn(*crowd, point(4, 9.0, 0.0, 4000))
    places = [spot.at for spot in picture.spots]
    assert len(set(places)) == 4


def test_axes_have_round_numbers_that_hold_everything() -> None:
    picture = drawn(*THREE)
    assert [tick.label for tick in picture.up] == ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]
    assert picture.unit == "points lost"
    assert [tick.label for tick in picture.across] == ["0.0", "0.5", *(f"{i / 2:.1f}" for i in range(2, 10))]
    below = drawn(point(1, 1.0, -0.01, 10), point(2, 2.0, 0.01, 5)).up
    assert below[0].label == "−1.0" and "0.0" in [tick.label for tick in below]


@pytest.mark.parametrize(
    "points",
    [
        (),
        THREE[:1],
        (point(1, None, 0.0, 1), point(2, 1.0, 0.1, 2)),
        (point(1, 2.0, None, 1), point(2, 1.0, 0.1, 2)),
        (point(1, 1e300, 0.0, 1), point(2, 1.0, 0.1, 2)),
        (point(1, 1.0, -1e300, 1), point(2, 1.0, 1e300, 2)),
    ],
)
def test_no_picture_where_there_is_nothing_to_draw(points: tuple[Point, ...]) -> None:
    assert front(Measurements(comparison=None, front=points), scores()).picture is None


anything = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(anything.map(abs).filter(bool), anything, st.integers(1, 2**70)), max_size=6))
def test_whatever_a_bundle_says_the_picture_stays_in_its_frame(found: list[tuple[float, float, int]]) -> None:
    points = [point(i + 1, *figures) for i, figures in enumerate(found)]
    picture = front(Measurements(comparison=None, front=tuple(points)), scores()).picture
    for spot in () if picture is None else picture.spots:
        assert 0 <= spot.x <= WIDTH and 0 <= spot.y <= HEIGHT and 0 <= spot.radius <= 30
    for tick in () if picture is None else (*picture.across, *picture.up):
        assert len(tick.label) < 20


@given(st.floats(1e-9, 1e9))
def test_steps_are_round_and_neither_few_nor_many(span: float) -> None:
    step = nice_step(span)
    assert 3.9 < span / step < 10.1
    assert re.fullmatch(r"[125]\.0+e[+-]\d+", f"{step:.6e}")


def test_page_and_markdown_have_it(full: Bundle) -> None:
    page, text = html(report(full)), markdown(report(full))
    assert page.count('<svg class="scatter"') == 1
    assert '<circle class="spot taken"' in page and '<circle class="spot guess"' in page
    assert "## What could be had" in text and "3.90 ms expected" in text


def test_a_bundle_without_points_has_no_such_section(built: Bundle) -> None:
    page = html(report(built))
    assert "What could be had" not in page or len(built.measurements.front) > 1


def test_a_name_that_means_harm_stays_text(hostile: Bundle) -> None:
    page = html(report(hostile))
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page


def test_reasons_hold_the_figures_of_the_measurements(full: Bundle) -> None:
    assert reasons(full) == ("told",)
