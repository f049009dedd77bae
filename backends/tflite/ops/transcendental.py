"""Functions that TFLite lacks, by those that it has, to within 1e-5 of their value.

XNNPACK's sine, cosine and logarithm are off by 2e-7 at most, which is much where they are close to zero: the
forms here do not go there. ATAN2 comes from LiteRT's own kernels.
"""

from __future__ import annotations

import math

from backends.tflite.ops.elementwise import formula
from backends.tflite.optable import OpTable
from backends.tflite.terms import Term

ops = OpTable()

_LN2 = math.log(2)
_QUARTER = (1.5703125, 4.837512969970703e-4, 7.549789948768648e-8)
"""pi / 2 in parts (Cephes, sinf.c): whole multiples of the first two are exact in float32."""
_LARGE = 1e8
"""From here on 1 + x is x, and x * x + 1 is x * x."""


def _tan(x: Term) -> Term:
    """sin / cos within pi / 4 of the nearest multiple of pi / 2; around odd ones it is -cos / sin."""
    count = (x * (2 / math.pi)).apply("ROUND")
    near = x
    for part in _QUARTER:
        near = near - count * part
    odd = count - (count * 0.5).apply("FLOOR") * 2.0
    even = 1.0 - odd
    sine, cosine = near.apply("SIN"), near.apply("COS")
    return (sine * even - cosine * odd) / (cosine * even + sine * odd)


def _atan(x: Term) -> Term:
    return x.apply("ATAN2", _one(x))


def _one(x: Term) -> Term:
    """1 for every number: ATAN2 broadcasts nothing."""
    return x.apply("EQUAL", x, dtype="bool").cast("float32")


def _leg(x: Term) -> Term:
    """The other leg of a triangle with hypotenuse 1; a difference of squares would lose digits near 1."""
    return ((1.0 - x) * (x + 1.0)).sqrt()


def _asin(x: Term) -> Term:
    return x.apply("ATAN2", _leg(x))


def _acos(x: Term) -> Term:
    return _leg(x).apply("ATAN2", x)


def _cosh(x: Term) -> Term:
    """By exp(x / 2), which does not overflow before the result does."""
    half = (x * 0.5).exp()
    return half * (half * 0.5) + (0.5 / half) / half


def _sinh(x: Term) -> Term:
    """tanh keeps its precision around 0, where a difference of exponentials loses it."""
    return x.apply("TANH") * _cosh(x)


def _log1p(y: Term) -> Term:
    """``log(1 + y)`` for y from 0 on: up to 1 as 2 atanh(y / (y + 2)), by its series."""
    ratio = y / (y + 2.0)
    square = ratio.square()
    series = square * (1 / 13) + 1 / 11
    for number in (9, 7, 5, 3, 1):
        series = series * square + 1 / number
    return (ratio * series * 2.0).where(y.apply("LESS", 1.0, dtype="bool"), (y + 1.0).log())


def _asinh(x: Term) -> Term:
    """log(a + sqrt(a^2 + 1)) for a = |x|, around 0 by log1p."""
    a = x.abs()
    small = a.at_most(_LARGE)
    near = _log1p(small + small.square() / ((small.square() + 1.0).sqrt() + 1.0))
    return near.where(a.apply("LESS", _LARGE, dtype="bool"), a.log() + _LN2) * x.sign()


def _acosh(x: Term) -> Term:
    """log(x + sqrt(x^2 - 1)); around 1 by log1p of t = x - 1."""
    t = x.at_most(_LARGE) - 1.0
    near = _log1p(t + (t * (t + 2.0)).sqrt())
    return near.where(x.apply("LESS", _LARGE, dtype="bool"), x.log() + _LN2)


def _atanh(x: Term) -> Term:
    """log((1 + a) / (1 - a)) / 2 for a = |x|, around 0 by log1p."""
    a = x.abs()
    inside = a.at_most(1 - 2.0**-24)
    near = _log1p((inside + inside) / (1.0 - inside)) * 0.5
    edge = ((a + 1.0) / (1.0 - a)).log()
    return near.where(a.apply("LESS", 1.0, dtype="bool"), edge) * x.sign()


def _erf(x: Term) -> Term:
    """By GELU, whose kernel has it inside: gelu(z) = z / 2 (1 + erf(z / sqrt 2))."""
    z = (x.abs() * math.sqrt(2)).at_least(1e-6).at_most(8)
    return (z.apply("GELU") / z * 2.0 - 1.0) * x.sign()


for _name, _function in {
    "Tan": _tan, "Atan": _atan, "Asin": _asin, "Acos": _acos, "Sinh": _sinh, "Cosh": _cosh,
    "Asinh": _asinh, "Acosh": _acosh, "Atanh": _atanh, "Erf": _erf,
}.items():  # fmt: skip
    ops.lower(_name)(formula(_function))
