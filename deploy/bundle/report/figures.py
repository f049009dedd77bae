"""Figures as people read them: three digits that matter, and a unit."""

from __future__ import annotations

from collections.abc import Sequence

_BYTES = (" B", " kB", " MB", " GB", " TB")
_THOUSANDS = ("", " k", " M", " G", " T")


def size(count: int) -> str:
    """Bytes: ``812 B``, ``44.7 MB`` (millions of bytes)."""
    return _scaled(count, _BYTES)


def count(number: int) -> str:
    """Things: ``812``, ``11.2 M``."""
    return _scaled(number, _THOUSANDS)


def milliseconds(value: float) -> str:
    """``0.42 ms``, three digits."""
    return f"{digits(value)} ms"


def joules(value: float) -> str:
    """``2.5 J``, ``41.2 mJ``, ``812 µJ``, three digits."""
    for unit, factor in (("J", 1.0), ("mJ", 1e3)):
        if value * factor >= 0.9995:
            return f"{digits(value * factor)} {unit}"
    return f"{digits(value * 1e6)} µJ"


def seconds(value: float) -> str:
    """``0.42 s``, ``3.1 s``, ``2 min 05 s``."""
    if value >= 60:
        whole = round(value)
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def digits(value: float) -> str:
    """Three significant digits without an exponent where that is short: ``0.0412``, ``4.12``, ``412``."""
    if value == 0 or 1e-4 <= abs(value) < 1000:
        return f"{value:#.3g}".rstrip(".")
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.2e}"


def score(value: float, unit: str) -> str:
    """A metric's value: ``97.32 %`` for a fraction, else the number with its unit."""
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    return f"{digits(value)} {unit}".rstrip()


def difference(value: float, unit: str) -> str:
    """Of two values of a metric: ``0.17 points`` for a fraction, else the number with its unit."""
    if unit == "fraction":
        return f"{100 * value:.2f} points"
    return f"{digits(value)} {unit}".rstrip()


def signed(value: float, unit: str) -> str:
    """A change of a metric with its sign: ``+0.17 points``, ``−1.20 points``, ``0``."""
    text = difference(abs(value), unit)
    if value == 0:
        return "0"
    return f"{'+' if value > 0 else '−'}{text}"


def times(ratio: float) -> str:
    """``2.73 ×``"""
    return f"{ratio:.2f} ×"


def plural(number: int, noun: str) -> str:
    """``1 block``, ``12 blocks``; ``2 entries``, ``2 hashes``."""
    if number == 1:
        return f"1 {noun}"
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("sh") else f"{noun}s"
    return f"{number:,} {many}"


def shape(sizes: Sequence[int | str]) -> str:
    """``[batch, 3, 32, 32]``"""
    return f"[{', '.join(map(str, sizes))}]"


def _scaled(value: int, units: Sequence[str]) -> str:
    if value < 1000:
        return f"{value}{units[0]}"
    number, steps = value / 1000, 1
    while number >= 999.5 and steps < len(units) - 1:
        number, steps = number / 1000, steps + 1
    return digits(number) + units[steps]
