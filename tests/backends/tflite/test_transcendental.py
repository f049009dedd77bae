"""Functions that TFLite lacks keep 1e-5 of their value over their whole domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special

INF = np.inf
SMALL = np.concatenate([10.0 ** np.arange(-12, 0, 0.25), np.linspace(0.1, 1, 400)])
WIDE = np.concatenate([SMALL, 10.0 ** np.arange(0, 38, 0.25)])


def both(x: np.ndarray) -> np.ndarray:
    return np.concatenate([-x[::-1], [0.0], x])


DOMAINS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]] = {
    "Tan": (np.tan, both(np.concatenate([SMALL, np.linspace(1, 20, 500)]))),
    "Atan": (np.arctan, np.append(both(WIDE), [INF, -INF])),
    "Asin": (np.arcsin, both(SMALL)),
    "Acos": (np.arccos, both(SMALL)),
    "Sinh": (np.sinh, np.append(both(np.concatenate([SMALL, np.linspace(1, 89, 300)])), [INF, -INF])),
    "Cosh": (np.cosh, np.append(both(np.concatenate([SMALL, np.linspace(1, 89, 300)])), [INF, -INF])),
    "Asinh": (np.arcsinh, np.append(both(WIDE), [INF, -INF])),
    "Acosh": (np.arccosh, np.append(1 + np.concatenate([SMALL, 10.0 ** np.arange(0, 38, 0.25)]), [1, INF])),
    "Atanh": (np.arctanh, np.append(both(SMALL), [1 - 2.0**-24, 2.0**-24 - 1])),
    "Exp": (np.exp, np.append(both(np.concatenate([SMALL, np.linspace(1, 86, 300)])), [INF, -INF])),
    "Tanh": (np.tanh, np.append(both(WIDE), [INF, -INF])),
    "Sigmoid": (scipy.special.expit, both(np.concatenate([SMALL, np.linspace(1, 80, 300)]))),
    "Mish": (
        lambda x: x * np.tanh(np.logaddexp(x, 0)),
        both(np.concatenate([SMALL, np.linspace(1, 80, 300)])),
    ),
}


@pytest.mark.parametrize("op", DOMAINS)
def test_relative_error(op: str, ran: Callable[..., Any]) -> None:
    function, points = DOMAINS[op]
    x = points.astype(np.float32)
    with np.errstate(all="ignore"):
        want = function(x.astype(np.float64))
    found = ran(f"(float[{len(x)}] x) => (float[{len(x)}] y) {{ y = {op}(x) }}", {"x": x}).got["y"]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize(
    ("op", "function", "points"),
    [
        ("Log", np.log, np.append(WIDE, [INF])),
        ("Softplus", lambda x: np.logaddexp(x, 0), both(np.concatenate([SMALL, np.linspace(1, 80, 300)]))),
        ("Sin", np.sin, both(np.linspace(0, 20, 3000))),
        ("Cos", np.cos, both(np.linspace(0, 20, 3000))),
    ],
)
def test_error(op: str, function: Callable[..., Any], points: np.ndarray, ran: Callable[..., Any]) -> None:
    x = points.astype(np.float32)
    found = ran(f"(float[{len(x)}] x) => (float[{len(x)}] y) {{ y = {op}(x) }}", {"x": x}).got["y"]
    np.testing.assert_allclose(found, function(x.astype(np.float64)), rtol=1e-6, atol=3e-7)


def test_erf_is_off_by_a_millionth_at_most(ran: Callable[..., Any]) -> None:
    x = np.concatenate([np.linspace(-6, 6, 20001), [INF, -INF, 0.0], both(WIDE)]).astype(np.float32)
    found = ran(f"(float[{len(x)}] x) => (float[{len(x)}] y) {{ y = Erf(x) }}", {"x": x}).got["y"]
    assert np.abs(found - scipy.special.erf(x.astype(np.float64))).max() <= 1e-6


def test_no_number_stays_none_where_there_is_none(ran: Callable[..., Any]) -> None:
    x = np.array([2, -2, np.nan], np.float32)
    for op in ("Asin", "Acos", "Atanh"):
        assert np.isnan(ran(f"(float[3] x) => (float[3] y) {{ y = {op}(x) }}", {"x": x}).got["y"]).all()


def test_spelled_out_functions_leave_the_delegated_graph_whole(ran: Callable[..., Any]) -> None:
    text = "(float[1,8] x) => (float[1,8] y) { a = Erf(x) b = Softplus(a) c = Mish(b) y = Cosh(c) }"
    found = ran(text, {"x": np.linspace(-2, 2, 8, dtype=np.float32).reshape(1, 8)})
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-5)
    outside = {"SIGN", "SELECT_V2", "CAST", "POW", "LESS", "EQUAL"}
    assert outside.isdisjoint(found.operators)
