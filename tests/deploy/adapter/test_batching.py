"""Samples through runners with a free or a fixed batch: the same as feeding all of them at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.adapter.batching import fixed_batch, run_samples, sample_count
from deploy.spec.tensors import TensorSpec


class Doubler:
    """Accepts exactly ``batch`` samples where that is a number; remembers what it was fed."""

    def __init__(self, batch: int | str) -> None:
        self.inputs = tuple(TensorSpec(name=n, dtype="float32", shape=(batch, 2)) for n in ("x", "z"))
        self.outputs = ()
        self.fed: list[int] = []

    def run(self, feeds, want=()):
        x, z = feeds["x"], feeds["z"]
        batch = self.inputs[0].shape[0]
        assert isinstance(batch, str) or len(x) == len(z) == batch
        self.fed.append(len(x))
        results = {"y": x + z, "last": np.float32(x[-1, 0]), "table": np.float32([7, 8, 9, 10, 11])}
        results |= {"rows": x.reshape(-1), "across": x.T}
        return results | dict.fromkeys(want, 2 * x)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def samples(count: int) -> dict[str, np.ndarray]:
    x = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    return {"x": x, "z": -3 * x}


@given(st.integers(1, 23), st.integers(1, 9), st.sampled_from(["N", 1, 2, 4]))
def test_cutting_changes_nothing(count, size, batch):
    runner = Doubler(batch)
    feeds = samples(count)
    got = run_samples(runner, feeds, size, ["inner"])
    np.testing.assert_array_equal(got["y"], -2 * feeds["x"])
    np.testing.assert_array_equal(got["inner"], 2 * feeds["x"])
    np.testing.assert_array_equal(got["rows"], feeds["x"].reshape(-1))
    assert got["last"].ndim == 0
    assert got["last"] == feeds["x"][-1, 0]
    if isinstance(batch, int):
        assert runner.fed == [batch] * -(-count // batch)
    else:
        assert runner.fed == [min(size, count - at) for at in range(0, count, size)]


@pytest.mark.parametrize("batch", ["N", 4])
def test_what_has_no_samples_is_returned_once(batch):
    np.testing.assert_array_equal(run_samples(Doubler(batch), samples(7), 4)["table"], [7, 8, 9, 10, 11])


def spec(*shape: int | str) -> TensorSpec:
    return TensorSpec(name="x", dtype="float32", shape=shape)


@pytest.mark.parametrize(
    ("inputs", "batch"),
    [
        ([spec("N", 3)], None),
        ([spec(4, 3)], 4),
        ([spec(), spec(4, 3)], 4),
        ([spec("N", 3), spec("N")], None),
        ([], None),
        ([spec()], None),
    ],
)
def test_the_batch_is_what_the_inputs_prescribe(inputs, batch):
    assert fixed_batch(inputs) == batch


class Recurrent(Doubler):
    """A state and a rate beside the frame: nothing that could be cut into samples."""

    def __init__(self) -> None:
        super().__init__(1)
        shapes = {"frame": (1, 4), "state": (2, 1, 3), "rate": ()}
        self.inputs = tuple(TensorSpec(name=n, dtype="float32", shape=s) for n, s in shapes.items())

    def run(self, feeds, want=()):
        assert {n: a.shape for n, a in feeds.items()} == {s.name: s.shape for s in self.inputs}
        return {"next": feeds["state"] + feeds["rate"]}


@pytest.mark.parametrize("first", ["frame", "state", "rate"])
def test_feeds_without_samples_in_common_are_one_inference(first):
    runner = Recurrent()
    feeds = {s.name: np.ones(s.shape, np.float32) for s in runner.inputs}
    feeds = {first: feeds.pop(first), **feeds}
    assert sample_count(feeds) == 1
    for size in (1, 2, 8):
        np.testing.assert_array_equal(run_samples(runner, feeds, size)["next"], np.full((2, 1, 3), 2))


def test_samples_are_counted():
    assert sample_count(samples(5)) == 5
    assert sample_count({"rate": np.float32(1)}) == 1
