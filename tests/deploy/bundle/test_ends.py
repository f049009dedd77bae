"""Sequences through what keeps states, and feeds of other sizes; against runners with planted faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import pytest

from deploy.adapter.protocol import Arrays, Remembers
from deploy.bundle.ends import at_other_sizes, kept, stored, strays
from deploy.spec.ends import Sizes
from deploy.spec.tensors import TensorSpec

X, S = (TensorSpec(name=name, dtype="float32", shape=(1, 2)) for name in ("x", "s"))
NEXT, Y = (TensorSpec(name=name, dtype="float32", shape=(1, 2)) for name in ("next", "y"))


class Average:
    """A running average, ``keep`` of which stays; as a runner that remembers, maybe wrongly."""

    inputs: tuple[TensorSpec, ...] = (X, S)
    outputs: tuple[TensorSpec, ...] = (NEXT, Y)
    executed_by = "NumPy"

    def __init__(self, *, forgets: bool = False, exact: bool = True) -> None:
        self.states: Mapping[str, str] = {"s": "next"}
        self._forgets, self._exact = forgets, exact
        self._now: np.ndarray = np.zeros((1, 2), np.float32)

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        new = np.asarray(0.9 * feeds["s"] + 0.1 * feeds["x"], np.float32)
        return {"next": new, "y": np.tanh(new)}

    def step(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        found = self.run({**feeds, "s": self._now})
        if not self._forgets:
            self._now = found["next"] if self._exact else found["next"].astype(np.float16).astype(np.float32)
        return found

    def reset(self) -> None:
        self._now = np.zeros((1, 2), np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


SAMPLES = {"x": np.random.default_rng(3).normal(1, 1, (5, 2)).astype(np.float32), "s": np.ones((5, 2), "f4")}


def test_what_float16_does_not_hold_is_infinite() -> None:
    large = np.array([[1e6, -1e6]], np.float32)
    assert np.isposinf(stored({"s": large}, {"s": "next"})["s"]).tolist() == [[True, False]]
    assert np.isneginf(kept({"next": large}, {"s": "next"})["next"]).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("runner", "right"),
    [(Average(), True), (Average(exact=False), True), (Average(forgets=True), False)],
    ids=["exact", "float16", "forgets"],
)
def test_a_sequence_shows_a_state_that_is_lost(runner: Average, right: bool) -> None:
    assert isinstance(runner, Remembers)
    found = list(strays(Average(), runner, SAMPLES, floor=1e-7, factor=4.0, exact=1e-5))
    assert len(found) == 8 and found[0].error == 0, "the first inference begins with zeros on both sides"
    assert all(one.error <= one.allowed for one in found) == right
    assert np.array_equal(runner._now, np.zeros((1, 2))), "nothing is left behind"


def test_states_are_rounded_where_they_are_kept_alone() -> None:
    numbers = np.array([[1.0001, 2.0]], np.float32)
    half = numbers.astype(np.float16).astype(np.float32)
    rounded = stored({"x": numbers, "s": numbers}, {"s": "next"})
    assert np.array_equal(rounded["x"], numbers) and np.array_equal(rounded["s"], half)
    given = kept({"y": numbers, "next": numbers}, {"s": "next"})
    assert np.array_equal(given["y"], numbers) and np.array_equal(given["next"], half)


def fed(
    sizes: dict[str, Sizes], inputs: tuple[TensorSpec, ...], samples: dict[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    found = dict(at_other_sizes(sizes, inputs, samples))
    return {words: feeds for words, feeds in found.items() if feeds is not None}


def test_the_least_go_with_the_least() -> None:
    """However many shapes each of the inputs has."""
    inputs = tuple(TensorSpec(name=name, dtype="float32", shape=(1, f"{name}.1")) for name in "xyz")
    samples = {name: np.ones((1, 1), np.float32) for name in "xyz"}
    found = fed({"x": (1, "2..4..8"), "y": (1, "3..9"), "z": (1, 5)}, inputs, samples)
    assert [[feeds[name].shape[1] for name in "xyz"] for feeds in found.values()] == [
        [4, 3, 5],
        [2, 3, 5],
        [8, 9, 5],
    ]


def test_other_sizes_are_made_of_a_sample() -> None:
    inputs = (
        TensorSpec(name="x", dtype="float32", shape=("n", 2, "w")),
        TensorSpec(name="mask", dtype="int64", shape=("n", "w")),
    )
    samples = {
        "x": np.arange(12, dtype=np.float32).reshape(2, 2, 3),
        "mask": np.array([[1, 0, 1], [0, 0, 0]]),
    }
    found = fed({"x": (1, 2, "2..3..5")}, inputs, samples)
    assert list(found) == [f"x [1, 2, {w}], mask [1, {w}]" for w in (3, 2, 5)]
    last = found["x [1, 2, 5], mask [1, 5]"]
    assert last["x"][0].tolist() == [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4]]
    assert last["mask"].tolist() == [[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
    (three,) = fed({"x": (3, 2, 3)}, inputs, samples).values()
    assert three["x"].shape == (3, 2, 3) and np.array_equal(three["x"][2], samples["x"][0])
    assert list(at_other_sizes({"x": (1, 2, 2**26)}, inputs, samples)) == [
        (f"x [1, 2, {2**26}], mask [1, {2**26}]", None)
    ], "too large to be run for a check, and said"
    assert not list(at_other_sizes({}, inputs, samples))
