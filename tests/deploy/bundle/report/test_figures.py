"""Figures are short, carry their unit and round at the right place."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.bundle.report import figures


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_499, "999 kB"), (999_500, "1.00 MB"),
     (44_700_000, "44.7 MB"), (3_200_000_000, "3.20 GB"), (5 * 10**16, "50000 TB")],
)  # fmt: skip
def test_sizes(value: int, text: str) -> None:
    assert figures.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.34, "12.3 J"), (1.0, "1.00 J"), (0.99949, "999 mJ"), (0.99951, "1.00 J"), (0.0412, "41.2 mJ"),
     (812e-6, "812 µJ"), (5e-7, "0.500 µJ")],
)  # fmt: skip
def test_joules(value: float, text: str) -> None:
    assert figures.joules(value) == text


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (308_074, "308 k"), (11_173_962, "11.2 M")])
def test_counts(value: int, text: str) -> None:
    assert figures.count(value) == text


@given(st.integers(0, 999 * 10**12))
def test_a_size_is_within_half_a_percent(value: int) -> None:
    number, unit = figures.size(value).split()
    factor = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert abs(float(number) * factor - value) <= 0.0051 * value
    assert len(re.sub(r"\D", "", number)) <= 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0412, "0.0412"), (4.123, "4.12"), (412.3, "412"), (0.0, "0.00"), (4123, "4123"), (3e-6, "3.00e-06")],
)
def test_digits(value: float, text: str) -> None:
    assert figures.digits(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.424, "0.42 s"), (12.34, "12.3 s"), (125.0, "2 min 05 s")])
def test_seconds(value: float, text: str) -> None:
    assert figures.seconds(value) == text


def test_a_fraction_is_shown_in_percent_and_its_difference_in_points() -> None:
    assert figures.score(0.97321, "fraction") == "97.32 %"
    assert figures.difference(0.0017, "fraction") == "0.17 points"
    assert figures.score(31.4159, "dB") == "31.4 dB"
    assert figures.difference(0.5, "") == "0.500"
