"""The forms among which one may choose, as a table and as a picture: drop against latency, area by bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from deploy.bundle.report import figures
from deploy.spec.manifest import Evaluation, Measurements
from deploy.spec.measurement import Point

WIDTH, HEIGHT = 520, 300
"""Of the picture; the frame leaves room for numbers and titles of the axes."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 500.0, 14.0, 250.0
_LARGEST = 22.0
"""Radius of the largest form."""
_ROOMY, _NUMBER = 9.0, 7.0
"""Radius from which on a number stands inside, and the room that it takes to all sides."""
_ABSURD, _FINE = 1e9, 1e-9
"""Numbers beyond these are no measurements, but what somebody wrote into a bundle."""


@dataclass(frozen=True)
class PointRow:
    """One form. ``latency`` says so where it is a prediction."""

    number: str
    name: str
    runtime: str
    score: str
    drop: str
    size: str
    latency: str
    chosen: bool


@dataclass(frozen=True)
class Tick:
    """A number at an axis, and where it stands."""

    at: float
    label: str


@dataclass(frozen=True)
class Spot:
    """A form in the picture. ``number``, at ``at``, is empty for what others beat."""

    x: float
    y: float
    radius: float
    number: str
    at: tuple[float, float]
    title: str
    chosen: bool
    predicted: bool


@dataclass(frozen=True)
class Picture:
    """Drop upwards against milliseconds to the right, in a frame of ``WIDTH`` by ``HEIGHT``."""

    spots: tuple[Spot, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    unit: str
    left: float = _LEFT
    right: float = _RIGHT
    top: float = _TOP
    bottom: float = _BOTTOM


@dataclass(frozen=True)
class Front:
    """What may be picked, the fastest first. ``picture`` is None where too little is known for one."""

    points: tuple[PointRow, ...]
    picture: Picture | None = None


def front(measured: Measurements, scores: Evaluation | None) -> Front:
    """The forms of a bundle among which one may choose; empty where there is but one."""
    unit = "" if scores is None else scores.unit
    points = measured.front
    return Front(rows(points, unit), _picture(measured, unit)) if len(points) > 1 else Front(())


def rows(points: Iterable[Point], unit: str) -> tuple[PointRow, ...]:
    """Each form in words; ``unit`` is the metric's."""
    return tuple(
        PointRow(
            number=str(point.number),
            name=f"{point.form} ({', '.join(point.rungs)})" if point.rungs else point.form,
            runtime=point.runtime,
            score="" if point.score is None else figures.score(point.score, unit),
            drop="" if point.drop is None else figures.signed(-point.drop, unit),
            size=figures.size(point.bytes),
            latency=_latency(point),
            chosen=point.chosen,
        )
        for point in points
    )


def _latency(point: Point) -> str:
    if point.latency_ms is None:
        return ""
    return f"{figures.milliseconds(point.latency_ms)}{' expected' if point.predicted else ''}"


def _picture(measured: Measurements, unit: str) -> Picture | None:
    """None unless two forms at least have a drop and a latency, of a size that can be drawn."""
    drawn = [p for p in measured.front if p.drop is not None and p.latency_ms is not None]
    beaten = [
        (a.latency_ms.p50, a.drop, a.bytes, f"{a.name} on {a.runtime}")
        for a in measured.attempts
        if a.latency_ms is not None and a.drop is not None and a.bytes > 0
    ]
    kept = [(p.latency_ms or 0.0, p.drop or 0.0, p.bytes, f"{p.form} on {p.runtime}") for p in drawn]
    everything = kept + beaten
    if len(kept) < 2 or any(max(ms, abs(drop)) > _ABSURD for ms, drop, *_ in everything):
        return None
    factor, word = (100.0, "points lost") if unit == "fraction" else (1.0, f"{unit} lost".strip())
    across = _Axis.over([ms for ms, *_ in everything], _LEFT, _RIGHT)
    up = _Axis.over([factor * drop for _, drop, *_ in everything], _BOTTOM, _TOP)
    largest = max(size for *_, size, _ in everything)

    def spot(form: tuple[float, float, int, str], point: Point | None) -> Spot:
        ms, drop, size, name = form
        x, y, radius = across.at(ms), up.at(factor * drop), _LARGEST * math.sqrt(size / largest)
        lost = figures.signed(-drop, unit)
        return Spot(
            x=x,
            y=y,
            radius=round(radius, 1),
            number="" if point is None else str(point.number),
            at=(x, y),
            title=f"{name}: {figures.milliseconds(ms)}, {lost}, {figures.size(size)}",
            chosen=point is not None and point.chosen,
            predicted=point is not None and point.predicted,
        )

    known = {(ms, drop, size) for ms, drop, size, _ in kept}
    spots = [spot(form, None) for form in beaten if form[:3] not in known]
    spots += [spot(form, point) for form, point in zip(kept, drawn, strict=True)]
    spots.sort(key=lambda s: (s.number != "", -s.radius))  # the small in front of the large
    return Picture(tuple(_numbered(spots)), across.ticks, up.ticks, word)


def _numbered(spots: Sequence[Spot]) -> Iterator[Spot]:
    """With each number where no other form lies over it: inside, or beside at the first side that is free."""
    named = [spot for spot in spots if spot.number]
    taken: list[tuple[float, float]] = []
    for spot in spots:
        beside = spot.radius + _NUMBER
        sides = [(-beside, 0.0), (0.0, -beside), (beside, 0.0), (0.0, beside)]
        places = [(spot.x + right, spot.y + down) for right, down in sides]
        if spot.radius >= _ROOMY:
            places.insert(0, spot.at)
        others = [(o.x, o.y, o.radius) for o in named if o is not spot]
        circles = [*others, *((x, y, _NUMBER) for x, y in taken)]
        free = [p for p in places if all(math.dist(p, (x, y)) >= r + _NUMBER for x, y, r in circles)]
        x, y = (free or places)[0]
        if spot.number:
            taken.append((x, y))
        yield replace(spot, at=(round(x, 1), round(y, 1)))


@dataclass(frozen=True)
class _Axis:
    """Numbers from ``low`` to ``high`` between two places."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[Tick, ...]

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        """From zero, or the least below it, to beyond the greatest, with round numbers on the way."""
        least, most = min(0.0, *values), max(0.0, *values)
        step = nice_step(max(most - least, _FINE) if most > least else 1.0)
        low, high = math.floor(least / step) * step, (math.floor(most / step) + 1) * step
        marks = [low + i * step for i in range(round((high - low) / step) + 1)]
        bare = cls(low, high, start, end, ())
        return cls(low, high, start, end, tuple(Tick(bare.at(mark), _label(mark, step)) for mark in marks))

    def at(self, value: float) -> float:
        """The place of a number."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def nice_step(span: float) -> float:
    """A step of 1, 2 or 5 times a power of ten, of which four to nine fill ``span``.

    >>> nice_step(1.0), nice_step(0.37), nice_step(42.0)
    (0.2, 0.05, 5.0)
    """
    tenth = 10.0 ** math.floor(math.log10(span))
    share = span / tenth
    return tenth * (0.2 if share < 2 else 0.5 if share < 5 else 1.0)


def _label(mark: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step)))
    return f"{mark:.{decimals}f}".replace("-", "−")
