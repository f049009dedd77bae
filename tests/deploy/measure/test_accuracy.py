"""Every sample is scored once and in order, whatever the batch; against the metric on all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import pytest

from deploy.adapter.batching import fixed_batch, run_samples
from deploy.data.dataset import Dataset, FittedSource, open_dataset
from deploy.data.metrics import make_metric
from deploy.measure.accuracy import evaluate, evaluate_both
from deploy.progress import Silent
from deploy.spec.tensors import TensorSpec

CLASSES, SAMPLES = 5, 33
GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.standard_normal((SAMPLES, CLASSES)).astype(np.float32)
LABELS = np.where(GENERATOR.random(SAMPLES) < 0.7, LOGITS.argmax(1), 0).astype(np.int64)


class Echo:
    """Puts out its input. With a batch, it insists on it."""

    executed_by = "nothing"

    def __init__(self, batch: int | str) -> None:
        self.inputs = (TensorSpec(name="x", dtype="float32", shape=(batch, CLASSES)),)
        self.outputs = (TensorSpec(name="y", dtype="float32", shape=(batch, CLASSES)),)
        self.batch = batch
        self.sizes: list[int] = []

    def run(self, feeds: Mapping[str, np.ndarray], want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        self.sizes.append(len(feeds["x"]))
        assert isinstance(self.batch, str) or self.sizes[-1] == self.batch
        return {"y": feeds["x"], "mean": feeds["x"].mean(), **dict.fromkeys(want, feeds["x"])}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@pytest.fixture
def dataset() -> Dataset:
    return open_dataset({"x": LOGITS, "y": LABELS}, Echo("n").inputs)


@pytest.mark.parametrize("size", [1, 4, 32, 33, 100])
@pytest.mark.parametrize("fixed", [False, True])
def test_the_score_does_not_depend_on_the_batch(dataset: Dataset, size: int, fixed: bool) -> None:
    runner = Echo(size if fixed else "n")
    metric = evaluate(runner, dataset, make_metric("top1", output="y"), batch=7 if fixed else size)
    assert metric.result().value == pytest.approx((LOGITS.argmax(1) == LABELS).mean())
    assert metric.samples == SAMPLES
    assert max(runner.sizes) == (size if fixed else min(size, SAMPLES))


@pytest.mark.parametrize(("fixed", "batch", "reads"), [("n", None, 1), (17, None, 2), ("n", 1, 2)])
def test_two_are_scored_as_each_alone_and_data_are_read_once_for_both_where_they_can_be(
    dataset: Dataset, fixed: int | str, batch: int | None, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    batches = type(dataset).batches

    def counted(self: FittedSource, size: int, limit: int | None = None, *, feeds: bool = True) -> object:
        read.append(size)
        return batches(self, size, limit, feeds=feeds)

    monkeypatch.setattr(FittedSource, "batches", counted)
    before = make_metric("agreement", output="y")
    after, labelled = make_metric("agreement", output="y", reference=before), make_metric("top1", output="y")
    wrong = Reversed(fixed)
    evaluate_both((Echo("n"), before), (wrong, after), dataset, batch=batch)
    assert len(read) == reads
    evaluate(wrong, dataset, labelled)
    assert before.samples == after.samples == SAMPLES
    assert after.result().value == np.mean(LOGITS.argmax(1) == LOGITS[:, ::-1].argmax(1))
    assert labelled.result().value == np.mean(LOGITS[:, ::-1].argmax(1) == LABELS)


class Reversed(Echo):
    def run(self, feeds: Mapping[str, np.ndarray], want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        return super().run({"x": feeds["x"][:, ::-1]}, want)


class Told(Silent):
    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def advance(self, done: int, total: int) -> None:
        self.steps.append((done, total))


def test_progress_counts_samples(dataset: Dataset) -> None:
    told = Told()
    evaluate(Echo("n"), dataset, make_metric("top1", output="y"), batch=10, progress=told)
    assert told.steps == [(10, 33), (20, 33), (30, 33), (33, 33)]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_samples_come_out_as_they_went_in(count: int, batch: int | str) -> None:
    """Also when a fixed batch has to be filled up, and for inner values."""
    runner = Echo(batch)
    got = run_samples(runner, {"x": LOGITS[:count]}, 4, ["inner"])
    np.testing.assert_array_equal(got["y"], LOGITS[:count])
    np.testing.assert_array_equal(got["inner"], LOGITS[:count])
    assert got["mean"].ndim == 0


def test_the_batch_is_fixed_where_the_first_dimension_is_a_number() -> None:
    def spec(*shape: int | str) -> TensorSpec:
        return TensorSpec(name="x", dtype="float32", shape=shape)

    assert fixed_batch([spec("n", 3)]) is None
    assert fixed_batch([spec(4, 3)]) == 4
    assert fixed_batch([spec()]) is None
    assert fixed_batch([]) is None
    assert fixed_batch([spec(), spec(2, "t")]) == 2
