"""Metrics against scikit-learn and scipy, whatever the batches, and on resamples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score, top_k_accuracy_score

from deploy.data.agreement import Joined
from deploy.data.dataset import Batch, open_dataset
from deploy.data.metrics import METRICS, default_metric, make_metric
from deploy.data.scores import Metric, PerSample
from deploy.errors import DataError, UsageError, VerificationError
from deploy.spec.tensors import TensorSpec

RNG = np.random.default_rng(1)
N, C = 300, 7
LABELS = RNG.integers(0, C, N)
LOGITS = (RNG.normal(size=(N, C)) + 1.5 * np.eye(C)[LABELS]).astype(np.float32)
VALUES = np.round(RNG.normal(size=N), 1)
GUESSES = np.round(VALUES + RNG.normal(size=N), 1)
MASKS = RNG.integers(0, 4, (20, 6, 5))
MAPS = (RNG.normal(size=(20, 4, 6, 5)) + 1.5 * np.moveaxis(np.eye(4)[MASKS], 3, 1)).astype(np.float32)


def feed(metric: Metric, output: np.ndarray, target: np.ndarray | None, size: int = 64) -> Metric:
    for start in range(0, len(output), size):
        part = slice(start, start + size)
        targets = {} if target is None else {"": target[part]}
        batch = Batch({}, targets, None, np.arange(len(output))[part])
        metric.update({"out": output[part]}, batch)
    return metric


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def mean_iou(truth: np.ndarray, guess: np.ndarray) -> float:
    table = confusion_matrix(truth.ravel(), guess.ravel())
    hits = np.diag(table)
    return float(np.mean(hits / (table.sum(0) + table.sum(1) - hits)))


PSNR = 10 * np.log10(1 / np.mean((GUESSES.reshape(30, 10) - VALUES.reshape(30, 10)) ** 2, axis=1)).mean()
CASES: dict[str, tuple[np.ndarray, np.ndarray, float]] = {
    "top1": (LOGITS, LABELS, accuracy_score(LABELS, LOGITS.argmax(1))),
    "top5": (LOGITS, LABELS, top_k_accuracy_score(LABELS, LOGITS, k=5)),
    "macro_f1": (LOGITS, LABELS, f1_score(LABELS, LOGITS.argmax(1), average="macro")),
    "mse": (GUESSES.reshape(30, 10), VALUES.reshape(30, 10), np.mean((GUESSES - VALUES) ** 2)),
    "psnr": (GUESSES.reshape(30, 10), VALUES.reshape(30, 10), PSNR),
    "miou": (MAPS, MASKS, mean_iou(MASKS, MAPS.argmax(1))),
    "auc": (LOGITS, LABELS, roc_auc_score(LABELS, softmax(LOGITS.astype(float)), multi_class="ovr")),
    "spearman": (GUESSES, VALUES, spearmanr(GUESSES, VALUES).statistic),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1, 64, 1000])
def test_equals_the_reference_whatever_the_batches(name: str, size: int) -> None:
    output, target, want = CASES[name]
    metric = feed(make_metric(name), output, target, size)
    assert metric.samples == len(output)
    score = metric.result()
    assert score.value == pytest.approx(want, abs=1e-6)
    assert score.unit
    assert score.higher_is_better == (name != "mse") == metric.higher_is_better


@pytest.mark.parametrize("name", CASES)
def test_a_resample_is_the_metric_on_those_samples(name: str) -> None:
    output, target, _ = CASES[name]
    metric = feed(make_metric(name), output, target)
    for seed in range(5):
        index = np.random.default_rng(seed).integers(len(output), size=len(output))
        want = feed(make_metric(name), output[index], target[index]).result().value
        assert metric.resample(index) == pytest.approx(want, abs=1e-9)


def test_every_metric_is_covered() -> None:
    assert set(METRICS) == {*CASES, "agreement"}


def test_per_class() -> None:
    predicted = LOGITS.argmax(1)
    top1 = feed(make_metric("top1"), LOGITS, LABELS).result().per_class
    f1 = feed(make_metric("macro_f1"), LOGITS, LABELS).result().per_class
    wanted = f1_score(LABELS, predicted, average=None)
    for c in range(C):
        assert top1[str(c)] == pytest.approx(np.mean(predicted[c == LABELS] == c))
        assert f1[str(c)] == pytest.approx(wanted[c])


def test_ties_go_to_the_lower_class_as_argmax_does() -> None:
    flat = np.zeros((C, C), np.float32)
    assert feed(make_metric("top1"), flat, np.arange(C)).result().value == pytest.approx(1 / C)
    assert feed(make_metric("top5"), flat, np.arange(C)).result().value == pytest.approx(5 / C)


def test_axes_of_size_one_and_a_model_that_ends_in_argmax() -> None:
    want = CASES["top1"][2]
    for output in (LOGITS[:, :, None, None], LOGITS[:, None, :], LOGITS.argmax(1), LOGITS.argmax(1)[:, None]):
        assert feed(make_metric("top1"), output, LABELS[:, None]).result().value == pytest.approx(want)


@pytest.mark.parametrize("output", [LOGITS[:, 1], LOGITS[:, 1:2], np.stack([-LOGITS[:, 1], LOGITS[:, 1]], 1)])
def test_binary_auc(output: np.ndarray) -> None:
    labels = (LABELS == 1).astype(np.uint8)
    want = roc_auc_score(labels, LOGITS[:, 1])
    assert feed(make_metric("auc"), output, labels).result().value == pytest.approx(want)


def test_auc_of_probabilities_with_ties() -> None:
    coarse = np.round(softmax(LOGITS.astype(float)) * 16) / 16  # as a quantized softmax gives them
    each = [roc_auc_score(c == LABELS, coarse[:, c]) for c in range(C)]
    score = feed(make_metric("auc"), coarse.astype(np.float32), LABELS).result()
    assert score.value == pytest.approx(np.mean(each))
    assert list(score.per_class.values()) == pytest.approx(each)


def test_miou_layouts_absent_classes_and_ignored_pixels() -> None:
    want = CASES["miou"][2]
    for output in (
        np.moveaxis(MAPS, 1, 3),
        MAPS.argmax(1),
        np.pad(MAPS, ((0, 0), (0, 3), (0, 0), (0, 0)), constant_values=-99),
    ):
        assert feed(make_metric("miou"), output, MASKS).result().value == pytest.approx(want)
    assert feed(make_metric("miou"), MAPS, MASKS[:, None]).result().value == pytest.approx(want)
    labels = MASKS.astype(np.uint8)
    labels[:, 0] = 255
    got = feed(make_metric("miou", ignore_label=255), MAPS, labels).result().value
    assert got == pytest.approx(mean_iou(MASKS[:, 1:], MAPS.argmax(1)[:, 1:]))
    with pytest.raises(DataError, match="label 255 in sample 0 is not a class from 0 to 3"):
        feed(make_metric("miou"), MAPS, labels)
    with pytest.raises(DataError, match="every pixel is ignored"):
        feed(make_metric("miou", ignore_label=9), MAPS, np.full_like(MASKS, 9)).result()
    with pytest.raises(DataError, match="do not match"):
        feed(make_metric("miou"), MAPS, MASKS[:, :3])


def test_psnr_of_pixels_and_of_a_perfect_copy() -> None:
    target = RNG.integers(0, 256, (4, 8, 8), dtype=np.uint8)
    output = target.astype(np.float32)
    assert feed(make_metric("psnr"), output, target).result().value == pytest.approx(100)
    assert feed(make_metric("psnr"), output + 2, target).result().value == pytest.approx(
        10 * np.log10(255**2 / 4)
    )


def test_agreement_of_a_classifier_is_the_share_of_equal_classes() -> None:
    baseline = feed(make_metric("agreement"), LOGITS, None)
    assert baseline.result().value == 1
    other = LOGITS + RNG.normal(size=LOGITS.shape).astype(np.float32)
    artifact = feed(make_metric("agreement", reference=baseline), other, None, size=50)
    assert artifact.result().value == pytest.approx(np.mean(other.argmax(1) == LOGITS.argmax(1)))
    assert set(artifact.result().per_class) == {str(c) for c in range(C)}


def test_agreement_of_other_outputs_is_the_share_of_power_that_is_right() -> None:
    reference = np.ones((10, 3, 50, 50), np.float32)
    error = 0.1 * RNG.choice([-1, 1], reference.shape)  # 20 dB below
    for size in (1, 10):
        baseline = feed(make_metric("agreement"), reference, None, size)
        same = feed(make_metric("agreement", reference=baseline), reference, None)
        assert same.result().value == 1
        near = feed(
            make_metric("agreement", reference=baseline), (reference + error).astype(np.float32), None
        )
        assert near.result().value == pytest.approx(0.99)
        far = feed(make_metric("agreement", reference=baseline), -9 * reference, None)
        assert far.result().value == 0
    whole = feed(make_metric("agreement"), np.array([[1, 2], [3, 4]]), None)
    assert (
        feed(make_metric("agreement", reference=whole), np.array([[1, 2], [3, 5]]), None).result().value
        == 0.75
    )


def judged_together(
    size: int, *outputs: dict[str, np.ndarray], joined: Joined | None = None
) -> list[PerSample]:
    """The agreement metrics of a reference and of what is compared with it, all 6 samples in batches."""
    found: list[PerSample] = []
    for arrays in outputs:
        metric = make_metric("agreement", reference=found[0] if found else None, joined=joined)
        assert isinstance(metric, PerSample)
        for start in range(0, 6, size):
            ids = np.arange(start, min(start + size, 6))
            per_sample = {n: a[ids] if len(a) == 6 else a for n, a in arrays.items()}
            metric.update(per_sample, Batch({}, {}, None, ids))
        found.append(metric)
    return found


def test_agreement_counts_the_worst_of_several_outputs() -> None:
    boxes = np.ones((6, 4, 4), np.float32)
    scores = np.ones((6, 9, 2), np.float32)
    moved = boxes.copy()
    moved[2:] *= 0.9
    blurred = scores.copy()
    blurred[3] *= 0.5
    state = RNG.normal(size=(2, 5)).astype(np.float32)  # no samples in it, though a batch may be of two
    reference = {"boxes": boxes, "scores": scores, "state": state}
    other = {"boxes": moved, "scores": blurred, "state": -state}
    for size in (6, 4, 3):
        found = judged_together(size, reference, other)[1]
        assert found.values == pytest.approx([1, 1, 0.99, 0.75, 0.99, 0.99])
    alone = make_metric("agreement", output="boxes")
    alone.update(reference, Batch({}, {}, None, np.arange(6)))
    after = make_metric("agreement", output="boxes", reference=alone)
    after.update(other, Batch({}, {}, None, np.arange(6)))
    assert after.result().value == pytest.approx((2 + 4 * 0.99) / 6)


def test_several_rows_to_a_sample_are_no_single_class() -> None:
    steps = RNG.normal(size=(20, 1, 9)).astype(np.float32)  # scores of characters, one sample fed
    blurred = steps.copy()
    blurred[0] *= 0.9
    one = Batch({}, {}, None, np.arange(1))
    baseline = make_metric("agreement")
    baseline.update({"out": steps}, one)
    artifact = make_metric("agreement", reference=baseline)
    artifact.update({"out": blurred}, one)
    right = 1 - 0.01 * np.sum(steps[0] ** 2) / np.sum(steps**2)
    assert artifact.result().value == pytest.approx(right)


def test_an_output_that_joins_kinds_counts_its_worst_part() -> None:
    boxes = RNG.uniform(0, 320, (6, 4, 50)).astype(np.float32)
    scores = RNG.uniform(0, 1, (6, 3, 50)).astype(np.float32)
    scores[0] *= 1e-3  # nothing in this picture
    together = np.concatenate([boxes, scores], axis=1)
    wrong = np.concatenate([boxes, np.round(2 * scores) / 2], axis=1)
    whole = judged_together(4, {"out": together}, {"out": wrong})[1]
    assert whole.result().value > 0.999, "the boxes hide it"
    parts = judged_together(4, {"out": together}, {"out": wrong}, joined={"out": (1, (4, 3))})[1]
    power = np.mean(np.sum(scores**2, axis=(1, 2)))
    assert parts.values == pytest.approx(1 - np.sum((wrong - together) ** 2, axis=(1, 2)) / power, rel=1e-4)
    assert parts.values[0] > 0.999 > 0.95 > parts.values[1:].max()


def test_one_sample_of_answers_has_its_worth_and_of_degrees_none() -> None:
    answers = feed(make_metric("top1"), LOGITS, LABELS)
    degrees = feed(make_metric("agreement"), np.ones((10, 3, 5, 5), np.float32), None)
    assert isinstance(answers, PerSample) and answers.grain == 1 / N
    assert isinstance(degrees, PerSample) and degrees.grain == 0.0


def test_agreement_refuses_other_samples() -> None:
    baseline = feed(make_metric("agreement"), LOGITS[:10], None)
    with pytest.raises(ValueError, match="that the float model was judged on"):
        feed(make_metric("agreement", reference=baseline), LOGITS[:20], None)
    with pytest.raises(ValueError, match="agreement metric of the float model"):
        make_metric("agreement", reference=make_metric("top1"))


def test_which_output_meets_which_target() -> None:
    outputs = {"a": LOGITS, "b": -LOGITS}
    ids = np.arange(N)
    plain = Batch({}, {"": LABELS}, None, ids)
    named = Batch({}, {"b": LABELS}, None, ids)
    both = Batch({}, {"a": LABELS, "b": (-LOGITS).argmax(1)}, None, ids)
    good, bad = CASES["top1"][2], np.mean((-LOGITS).argmax(1) == LABELS)
    for output, batch, want in [
        (None, plain, good),
        ("b", plain, bad),
        (None, named, bad),
        ("a", named, good),
        (None, both, good),
        ("b", both, 1.0),
    ]:
        metric = make_metric("top1", output=output)
        metric.update(outputs, batch)
        assert metric.result().value == pytest.approx(want)
    with pytest.raises(UsageError, match="'c' is not an output of the model"):
        make_metric("top1", output="c").update(outputs, plain)
    with pytest.raises(DataError, match=r"no labels for output 'a', there are 'y\.b', 'y\.c'"):
        make_metric("top1", output="a").update(outputs, Batch({}, {"b": LABELS, "c": LABELS}, None, ids))


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="needs labels"):
        feed(make_metric("top1"), LOGITS, None)
    for name in ("top1", "top5", "macro_f1", "auc"):
        for bad in (C, -1):
            labels = LABELS.copy()
            labels[70] = bad
            with pytest.raises(DataError, match=f"label {bad} in sample 70 is not a class from 0 to 6"):
                feed(make_metric(name), LOGITS, labels)
    with pytest.raises(DataError, match="one class number per sample") as caught:
        feed(make_metric("top1"), LOGITS, np.eye(C)[LABELS])
    assert "one-hot" in caught.value.hint
    with pytest.raises(DataError, match=r"needs an output of shape \[samples, classes\]"):
        feed(make_metric("top1"), MAPS, LABELS[:20])
    with pytest.raises(DataError, match="the output has shape"):
        feed(make_metric("mse"), LOGITS, LABELS)
    with pytest.raises(DataError, match="one value per sample"):
        feed(make_metric("spearman"), LOGITS, LABELS)


def test_nan_in_an_output_names_the_sample() -> None:
    output = LOGITS.copy()
    output[71, 2] = np.nan
    for name in ("top1", "macro_f1", "auc", "agreement"):
        with pytest.raises(VerificationError, match="output 'out' is NaN for sample 71"):
            feed(make_metric(name), output, LABELS)


def test_values_that_are_not_defined() -> None:
    infinite = np.full((4, 2), np.inf, np.float32)
    with pytest.raises(DataError, match="mse is not a finite number for sample 0"):
        feed(make_metric("mse"), infinite, np.zeros((4, 2)))
    with pytest.raises(DataError, match="all samples are of one class"):
        feed(make_metric("auc"), LOGITS[:, 0], np.zeros(N, int)).result()
    with pytest.raises(DataError, match="are equal"):
        feed(make_metric("spearman"), GUESSES, np.zeros(N)).result()
    with pytest.raises(DataError, match="no samples"):
        make_metric("top1").result()


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="unknown metric 'top_1'") as caught:
        make_metric("top_1")
    assert "did you mean 'top1'?" in caught.value.hint
    with pytest.raises(UsageError, match="ignore_label means nothing"):
        make_metric("top1", ignore_label=3)


USER_CODE = """
import numpy as np
def absolute(outputs, targets):
    return np.abs(outputs["out"] - targets[""])
absolute.higher_is_better = False
absolute.unit = "metres"
def whole(outputs, targets):
    return float(np.mean(outputs["out"]))
def wrong(outputs, targets):
    return outputs["out"][:-1]
def broken(outputs, targets):
    return targets["nothing"]
"""


def test_the_users_own_function(tmp_path: Path) -> None:
    (tmp_path / "my_metric_code.py").write_text(USER_CODE)
    score = feed(make_metric("python:my_metric_code:absolute", root=tmp_path), GUESSES, VALUES).result()
    assert (score.value, score.unit) == (pytest.approx(np.abs(GUESSES - VALUES).mean()), "metres")
    assert not score.higher_is_better
    whole = feed(make_metric("python:my_metric_code:whole", root=tmp_path), GUESSES, VALUES)
    assert whole.result().value == pytest.approx(GUESSES.mean())
    with pytest.raises(DataError, match=r"returned float64 of shape \(63,\) for 64 samples"):
        feed(make_metric("python:my_metric_code:wrong", root=tmp_path), GUESSES, VALUES)
    with pytest.raises(DataError, match="failed on samples 0 to 63: KeyError: 'nothing'"):
        feed(make_metric("python:my_metric_code:broken", root=tmp_path), GUESSES, VALUES)
    with pytest.raises(UsageError, match="no function 'absolut'") as caught:
        make_metric("python:my_metric_code:absolut", root=tmp_path)
    assert "did you mean 'absolute'?" in caught.value.hint


@pytest.mark.parametrize(
    ("labels", "output", "want"),
    [
        (None, (1, C), "agreement"),
        (np.zeros(4, np.uint8), (1, C), "top1"),
        (np.zeros((4, 1), np.int64), ("n", C, 1, 1), "top1"),
        (np.zeros((4, 6, 5), np.int64), ("n", 3, "h", "w"), "miou"),
        (np.zeros((4, 6)), ("n", 6), "mse"),
        (np.zeros(4, np.float32), ("n", 1), "mse"),
        (np.zeros((4, 6)), ("n", 7), "agreement"),
        (np.zeros(4, np.int64), ("n", 1), "agreement"),
    ],
)
def test_default_metric(labels: np.ndarray | None, output: tuple[int | str, ...], want: str) -> None:
    arrays = {"x": np.zeros((4, 2), np.float32)} | ({} if labels is None else {"y": labels})
    dataset = open_dataset(arrays, [TensorSpec(name="x", dtype="float32", shape=("n", 2))])
    assert default_metric(dataset, [TensorSpec(name="out", dtype="float32", shape=output)]) == want
