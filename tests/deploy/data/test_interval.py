"""The paired bootstrap against scipy's, the normal approximation, and its own coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from deploy.data.dataset import Batch
from deploy.data.interval import Drop, paired_drop
from deploy.data.metrics import make_metric
from deploy.data.scores import Judged, MeanMetric, Metric

RNG = np.random.default_rng(2)


def judged(name: str, output: np.ndarray, target: np.ndarray, size: int = 10_000) -> Metric:
    metric = make_metric(name)
    for start in range(0, len(output), size):
        part = slice(start, start + size)
        batch = Batch({}, {"": target[part]}, None, np.arange(len(output))[part])
        metric.update({"out": output[part]}, batch)
    return metric


def classifier(samples: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = RNG.integers(0, 5, samples)
    good = (RNG.normal(size=(samples, 5)) + 2 * np.eye(5)[labels]).astype(np.float32)
    return good, (good + RNG.normal(scale=noise, size=good.shape)).astype(np.float32), labels


def test_against_scipy() -> None:
    target = RNG.normal(size=(400, 3))
    a, b = target + RNG.normal(size=target.shape), target + RNG.normal(scale=1.3, size=target.shape)
    got = paired_drop(judged("mse", a, target), judged("mse", b, target), resamples=10_000)
    errors = [np.mean((x - target) ** 2, axis=1) for x in (a, b)]
    want = bootstrap(
        errors,
        lambda x, y, axis: y.mean(axis=axis) - x.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        random_state=np.random.default_rng(3),
    ).confidence_interval
    assert got.drop == pytest.approx(errors[1].mean() - errors[0].mean())
    width = want.high - want.low
    assert abs(got.low - want.low) < 0.05 * width
    assert abs(got.high - want.high) < 0.05 * width


def test_hits_and_misses_against_the_normal_approximation() -> None:
    good, worse, labels = classifier(2000, 1.0)
    got = paired_drop(judged("top1", good, labels), judged("top1", worse, labels), resamples=10_000)
    d = (good.argmax(1) == labels).astype(float) - (worse.argmax(1) == labels)
    half = norm.ppf(0.975) * d.std() / np.sqrt(len(d))
    assert got.drop == pytest.approx(d.mean())
    assert got.drop > 0
    assert got.low == pytest.approx(d.mean() - half, abs=0.06 * half)
    assert got.high == pytest.approx(d.mean() + half, abs=0.06 * half)


def test_metrics_that_are_no_mean_against_scipy() -> None:
    good, worse, labels = classifier(200, 1.5)
    got = paired_drop(judged("macro_f1", good, labels), judged("macro_f1", worse, labels), resamples=2000)
    a, b = judged("macro_f1", good, labels), judged("macro_f1", worse, labels)
    want = bootstrap(
        (np.arange(200),),
        lambda index: a.resample(index) - b.resample(index),
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        random_state=np.random.default_rng(4),
    ).confidence_interval
    width = want.high - want.low
    assert abs(got.low - want.low) < 0.1 * width
    assert abs(got.high - want.high) < 0.1 * width
    assert got.low < got.drop < got.high


def test_worse_is_positive_whichever_direction_is_better() -> None:
    target = RNG.normal(size=(300, 4)) / 10
    near, far = target + 0.01, target + 0.1 * RNG.normal(size=target.shape)
    for name in ("mse", "psnr"):
        worse = paired_drop(judged(name, near, target), judged(name, far, target))
        better = paired_drop(judged(name, far, target), judged(name, near, target))
        assert 0 < worse.low < worse.drop < worse.high
        assert better.low < better.drop < better.high < 0


@pytest.mark.parametrize("name", ["top1", "macro_f1", "auc"])
def test_no_difference_is_exactly_nothing(name: str) -> None:
    good, _, labels = classifier(100, 0)
    got = paired_drop(judged(name, good, labels), judged(name, good, labels), resamples=50)
    assert (got.drop, got.low, got.high) == (0, 0, 0)


@pytest.mark.parametrize("name", ["mse", "spearman"])
def test_samples_of_one_group_are_redrawn_together(name: str) -> None:
    """Twenty copies of every sample say no more than one: only by groups does the interval stay."""
    target, a = RNG.normal(size=60), RNG.normal(size=60)
    a, b = target + 0.5 * a, target + RNG.normal(size=60)
    once = paired_drop(judged(name, a, target), judged(name, b, target))
    copies = [np.repeat(v, 20) for v in (a, b, target)]
    pair = judged(name, copies[0], copies[2]), judged(name, copies[1], copies[2])
    grouped = paired_drop(*pair, groups=np.repeat(np.arange(60), 20).astype(str))
    naive = paired_drop(*pair, resamples=300)
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.15)
    assert naive.high - naive.low < 0.4 * (once.high - once.low)


def test_batches_judged_as_a_whole_are_redrawn_as_a_whole() -> None:
    noise = {1.0: RNG.normal(size=40), 0.0: np.zeros(40)}

    def metric(level: float) -> MeanMetric:
        made = MeanMetric(
            "whole", lambda o, b: Judged(np.full(len(b), noise[level][b.ids[0] // 50]), as_whole=True)
        )
        for start in range(0, 2000, 50):
            made.update({}, Batch({}, {}, None, np.arange(start, start + 50)))
        return made

    got = paired_drop(metric(1.0), metric(0.0), resamples=4000)
    half = norm.ppf(0.975) * noise[1.0].std() / np.sqrt(40)
    assert got.high - got.low == pytest.approx(2 * half, rel=0.1)


def test_resamples_without_both_classes_are_left_out() -> None:
    labels = np.array([1, 0, 0, 0])
    got = paired_drop(
        judged("auc", np.array([0.9, 0.1, 0.2, 0.3]), labels),
        judged("auc", np.array([0.25, 0.1, 0.2, 0.3]), labels),
        resamples=200,
    )
    assert np.isfinite([got.drop, got.low, got.high]).all()


def test_the_same_seed_gives_the_same_interval() -> None:
    good, worse, labels = classifier(200, 1.0)
    pair = judged("macro_f1", good, labels), judged("macro_f1", worse, labels)
    assert paired_drop(*pair, resamples=100, seed=5) == paired_drop(*pair, resamples=100, seed=5)
    assert paired_drop(*pair, resamples=100, seed=5) != paired_drop(*pair, resamples=100, seed=6)


def test_different_data_are_refused() -> None:
    good, _, labels = classifier(20, 0)
    with pytest.raises(ValueError, match="20 samples against 10"):
        paired_drop(judged("top1", good, labels), judged("top1", good[:10], labels[:10]))


def test_a_drop_of_exactly_the_budget_is_within_it() -> None:
    assert 0.89 - 0.88 > 0.01, "which is why it is not compared as it is"
    assert Drop(0.89 - 0.88, 0.0, 0.0).within(0.01)
    assert not Drop(0.0101, 0.0, 0.0).within(0.01)
    assert not Drop(float("nan"), 0.0, 0.0).within(float("inf"))
