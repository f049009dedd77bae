"""Integer programs against every choice there is."""

from __future__ import annotations

import ctypes
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import BackendError
from deploy.milp import Rows, least_cost


def solved(costs: list[float], rows: Rows, whole: int | None = None) -> np.ndarray:
    count = len(costs) if whole is None else whole
    return least_cost(
        np.array(costs), rows, whole=count, seconds=10.0, finding="a choice", hint="ask for less"
    )


def knapsack(weights: list[int], low: float, high: float) -> Rows:
    rows = Rows()
    rows.add({i: float(w) for i, w in enumerate(weights) if w}, low, high)
    return rows


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_choice_is_cheaper(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 7))
    numbers = st.lists(st.integers(-9, 9), min_size=count, max_size=count)
    costs, weights, others = (data.draw(numbers) for _ in range(3))
    low = data.draw(st.integers(-9, 9))
    rows = knapsack(weights, low, np.inf).with_row({i: float(w) for i, w in enumerate(others)}, 5.0)
    able = [
        np.dot(costs, taken)
        for taken in product((0, 1), repeat=count)
        if np.dot(weights, taken) >= low and np.dot(others, taken) <= 5
    ]
    if not able:
        with pytest.raises(BackendError):
            solved([float(c) for c in costs], rows)
        return
    found = solved([float(c) for c in costs], rows)
    np.testing.assert_allclose(found, found.round(), atol=1e-6)
    assert np.dot(weights, found) >= low - 1e-6
    assert np.dot(others, found) <= 5 + 1e-6
    assert np.dot(costs, found) == pytest.approx(min(able), abs=1e-6)


def test_those_that_need_not_be_whole_are_not() -> None:
    rows = knapsack([2, 2], 3.0, np.inf)
    np.testing.assert_allclose(solved([1.0, 1.1], rows, whole=1), [1.0, 0.5])
    np.testing.assert_allclose(solved([1.0, 1.1], rows), [1.0, 1.0])


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(BackendError, match="a choice failed: the solver says") as caught:
        solved([1.0], knapsack([1], 2.0, np.inf))
    assert caught.value.hint == "ask for less"


def test_what_the_solver_prints_stays_out_of_the_output(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HiGHS prints when it repairs a solution. Of a process of its own libc keeps it until the end."""
    import highspy

    run = highspy.Highs.run

    def chatty(solver: highspy.Highs) -> object:
        ctypes.CDLL(None).printf(b"tmpSolver.run();\n")
        return run(solver)

    monkeypatch.setattr(highspy.Highs, "run", chatty)
    assert solved([-1.0], knapsack([1], 0.0, 1.0)) == [1.0]
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == ""
