"""Datasets against numpy's own reading of the same files, and each way in which data can be bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.data.dataset import Dataset, check_labels, open_dataset, split, take
from deploy.errors import DataError, UsageError
from deploy.spec.tensors import Normalisation, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(1, 3, 4, 4), layout="NCHW")
RNG = np.random.default_rng(0)
SAMPLES = RNG.normal(size=(10, 3, 4, 4)).astype(np.float32)
LABELS = np.arange(10) % 4


def gather(dataset: Dataset, size: int = 3, limit: int | None = None) -> dict[str, np.ndarray]:
    batches = list(dataset.batches(size, limit))
    assert all(len(batch) == size for batch in batches[:-1])
    feeds = {k: np.concatenate([b.feeds[k] for b in batches]) for k in batches[0].feeds}
    targets = {f"y.{k}": np.concatenate([b.targets[k] for b in batches]) for k in batches[0].targets}
    return {**feeds, **targets, "ids": np.concatenate([b.ids for b in batches])}


def problem(source: object, inputs: list[TensorSpec] | None = None, **settings: object) -> DataError:
    """The error of opening and reading ``source``: one line, with a hint."""
    with pytest.raises(DataError) as caught:
        for _ in open_dataset(source, inputs or [X], **settings).batches(4):  # type: ignore[arg-type]
            ...
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def test_arrays_in_memory_come_out_in_order_as_often_as_asked() -> None:
    dataset = open_dataset({"x": SAMPLES, "y": LABELS, "y.side": LABELS + 0.5}, [X])
    for _ in range(2):
        got = gather(dataset)
        np.testing.assert_array_equal(got["x"], SAMPLES)
        np.testing.assert_array_equal(got["y."], LABELS)
        np.testing.assert_array_equal(got["y.side"], LABELS + 0.5)
        np.testing.assert_array_equal(got["ids"], np.arange(10))
    assert len(dataset) == 10
    assert dataset.labelled
    assert len(gather(dataset, 3, 7)["ids"]) == 7


def test_without_labels() -> None:
    dataset = open_dataset({"x": SAMPLES}, [X])
    assert not dataset.labelled
    assert gather(dataset).keys() == {"x", "ids"}
    assert [len(b) for b in dataset.batches(4, feeds=False)] == [4, 4, 2]


def test_another_label_prefix_and_groups() -> None:
    arrays = {"x": SAMPLES, "truth.a": LABELS, "patient": np.array(list("aabbccddee"))}
    batch = next(open_dataset(arrays, [X], labels="truth", groups="patient").batches(4))
    assert list(batch.targets) == ["a"]
    assert batch.groups is not None
    assert batch.groups.tolist() == ["a", "a", "b", "b"]


def test_an_input_called_like_the_labels_is_an_input() -> None:
    inputs = [TensorSpec(name=n, dtype="float32", shape=("n", 2)) for n in "xy"]
    dataset = open_dataset({"x": np.ones((3, 2), "f4"), "y": np.ones((3, 2), "f4")}, inputs)
    assert not dataset.labelled


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "any"])
def test_normalisation_is_applied_once_per_channel(layout: str) -> None:
    pixels = RNG.integers(0, 256, (6, 3, 4, 4), dtype=np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    want = (pixels / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    spec = X.model_copy(update={"layout": layout})
    if layout == "NHWC":
        pixels, want = pixels.transpose(0, 2, 3, 1), want.transpose(0, 2, 3, 1)
        spec = spec.model_copy(update={"shape": (1, 4, 4, 3)})
    before = pixels.copy()
    how = Normalisation(scale=1 / 255, mean=mean, std=std)
    got = gather(open_dataset({"x": pixels}, [spec], normalisation={"x": how}))["x"]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(pixels, before)


def test_a_folded_normalisation_is_left_to_the_graph() -> None:
    pixels = RNG.integers(0, 256, (6, 3, 4, 4), dtype=np.uint8)
    how = Normalisation(scale=1 / 255, folded=True)
    got = gather(open_dataset({"x": pixels}, [X.model_copy(update={"normalisation": how})]))["x"]
    np.testing.assert_array_equal(got, pixels.astype(np.float32))


def test_normalisation_never_changes_the_callers_arrays() -> None:
    mine = SAMPLES.copy()
    gather(open_dataset({"x": mine}, [X], normalisation={"x": Normalisation(mean=(1.0,))}))
    np.testing.assert_array_equal(mine, SAMPLES)


@pytest.mark.parametrize(
    ("found", "want"),
    [
        ("float64", "float32"),
        ("float16", "float32"),
        (">f4", "float32"),
        ("int32", "int64"),
        ("int64", "uint8"),
    ],
)
def test_numbers_that_fit_are_cast(found: str, want: str) -> None:
    spec = TensorSpec(name="x", dtype=want, shape=("n", 2))
    values = np.array([[0, 1], [100, 255]])
    got = gather(open_dataset({"x": values.astype(found)}, [spec]))["x"]
    assert got.dtype == np.dtype(want)
    np.testing.assert_array_equal(got, values)


def test_views_keep_positions_and_order() -> None:
    dataset = open_dataset({"x": SAMPLES, "y": LABELS}, [X])
    middle = take(dataset, 2, 8)
    assert gather(middle)["ids"].tolist() == [2, 3, 4, 5, 6, 7]
    assert gather(take(middle, 1, 99), size=2)["ids"].tolist() == [3, 4, 5, 6, 7]
    first, second = split(dataset, 0.3, seed=1)
    ids = [gather(view)["ids"] for view in (first, second)]
    assert len(first) == 3
    assert sorted(np.concatenate(ids)) == list(range(10))
    np.testing.assert_array_equal(gather(second)["x"], SAMPLES[ids[1]])
    assert len({d.digest for d in (dataset, middle, first, second)}) == 4
    assert split(dataset, 0.3, seed=1)[0].digest == first.digest
    assert split(dataset, 0.3, seed=2)[0].digest != first.digest


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.floats(0.05, 0.95), st.integers(0, 99))
def test_a_split_never_divides_a_group(groups: list[int], fraction: float, seed: int) -> None:
    arrays = {"x": np.zeros((len(groups), 2), "f4"), "group": np.array(groups)}
    dataset = open_dataset(arrays, [TensorSpec(name="x", dtype="float32", shape=("n", 2))])
    try:
        parts = split(dataset, fraction, seed)
    except DataError:
        assert len(set(groups)) == 1 or fraction > 0.5
        return
    first, second = ({groups[i] for i in gather(p)["ids"]} for p in parts)
    assert not first & second
    assert len(parts[0]) + len(parts[1]) == len(groups)


def test_the_digest_follows_what_matters() -> None:
    base = open_dataset({"x": SAMPLES, "y": LABELS}, [X]).digest
    assert open_dataset({"y": LABELS, "x": SAMPLES.copy()}, [X]).digest == base
    changed = SAMPLES.copy()
    changed[9, 0, 0, 0] += 1
    how = Normalisation(mean=(0.5,))
    others = [
        open_dataset({"x": changed, "y": LABELS}, [X]),
        open_dataset({"x": SAMPLES, "y": LABELS[::-1]}, [X]),
        open_dataset({"x": SAMPLES}, [X]),
        open_dataset({"x": SAMPLES, "y": LABELS}, [X], normalisation={"x": how}),
    ]
    assert base not in {d.digest for d in others}
    assert len({d.digest for d in others}) == 4


def test_missing_input_names_what_there_is() -> None:
    e = problem({"xs": SAMPLES})
    assert "no array for the model's input 'x'; found 'xs'" in e.message
    assert "did you mean 'xs'?" in e.hint


def test_an_array_without_a_role() -> None:
    e = problem({"x": SAMPLES, "label": LABELS})
    assert "array 'label' is neither an input of the model (x) nor a label" in e.message


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((10, 3, 4, 5), "ready for the model"),
        ((3, 4, 4), "first axis must be samples"),
        ((10, 4, 4, 3), "transpose(0, 3, 1, 2)"),
    ],
)
def test_wrong_shape(shape: tuple[int, ...], hint: str) -> None:
    e = problem({"x": np.zeros(shape, np.float32)})
    assert "expected [samples, 3, 4, 4]" in e.message
    assert hint in e.hint


def test_channels_first_for_a_channels_last_model() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 4, 4, 3), layout="NHWC")
    assert "transpose(0, 2, 3, 1)" in problem({"x": SAMPLES}, [spec]).hint


def test_free_dimensions_take_any_size() -> None:
    inputs = [TensorSpec(name=n, dtype="float32", shape=("n", "d1", 2)) for n in "ab"]
    a, b = np.zeros((3, 5, 2), "f4"), np.zeros((3, 6, 2), "f4")
    assert len(open_dataset({"a": a, "b": b}, inputs)) == 3
    assert "expected [samples, d1, 2]" in problem({"a": a, "b": b[..., :1]}, inputs).message


@pytest.mark.parametrize(
    ("found", "want"),
    [
        ("uint8", "float32"),
        ("float32", "int64"),
        ("bool", "float32"),
        ("complex64", "float32"),
        ("U3", "int32"),
    ],
)
def test_wrong_type(found: str, want: str) -> None:
    spec = TensorSpec(name="x", dtype=want, shape=("n", 2))
    e = problem({"x": np.zeros((3, 2), found)}, [spec])
    assert "array 'x'" in e.message
    assert np.dtype(found).name in e.message or np.dtype(found).str in e.message


def test_pixels_without_a_normalisation_say_what_to_write() -> None:
    assert "[input.x] normalisation" in problem({"x": np.zeros((3, 3, 4, 4), np.uint8)}).hint


def test_an_integer_that_does_not_fit() -> None:
    spec = TensorSpec(name="x", dtype="int32", shape=("n", 2))
    values = np.zeros((9, 2), np.int64)
    values[6, 1] = 2**40
    e = problem({"x": values}, [spec])
    assert f"holds {2**40} in sample 6" in e.message


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_values_that_are_not_finite(value: float, word: str) -> None:
    bad = SAMPLES.copy()
    bad[7, 1, 2, 2] = value
    assert f"array 'x' holds {word} in sample 7 (1 of 48 values)" in problem({"x": bad}).message
    dataset = take(open_dataset({"x": bad}, [X]), 5, 10)
    with pytest.raises(DataError, match="sample 7"):
        list(dataset.batches(2))
    targets = np.zeros(10)
    targets[3] = value
    assert f"array 'y' holds {word} in sample 3" in problem({"x": SAMPLES, "y": targets}).message


def test_values_too_large_for_the_models_type() -> None:
    bad = SAMPLES.astype(np.float64)
    bad[7, 1, 2, 2] = 1e300
    e = problem({"x": bad})
    assert "as float32 holds infinity in sample 7" in e.message
    assert "too large" in e.hint


def test_counts_differ() -> None:
    e = problem({"x": SAMPLES, "y": LABELS[:9]})
    assert "array 'x' has 10 samples, but 'y' has 9" in e.message


@pytest.mark.parametrize("arrays", [{}, {"x": SAMPLES[:0]}])
def test_empty(arrays: dict[str, np.ndarray]) -> None:
    problem(arrays)


def test_a_single_value_and_objects_and_text_labels() -> None:
    assert "single value" in problem({"x": np.float32(3)}).message
    assert "pickle" in problem({"x": np.array([{}, {}], dtype=object)}).message
    assert "label array 'y' has type <U3" in problem({"x": SAMPLES, "y": np.array(["cat"] * 10)}).message


def test_groups_of_more_than_one_entry() -> None:
    e = problem({"x": SAMPLES, "group": np.zeros((10, 2))})
    assert "group array 'group' has shape (10, 2)" in e.message


def test_normalisation_that_fits_nothing() -> None:
    with pytest.raises(UsageError, match="'xx', which is not an input"):
        open_dataset({"x": SAMPLES}, [X], normalisation={"xx": Normalisation()})
    e = problem(
        {"x": SAMPLES}, normalisation={"x": Normalisation(mean=(0.0,) * 5, std=(1.0, 2.0, 3.0, 4.0, 5.0))}
    )
    assert "5 channels" in e.message
    spec = TensorSpec(name="x", dtype="uint8", shape=("n", 2))
    e = problem({"x": np.ones((2, 2), "u1")}, [spec], normalisation={"x": Normalisation(scale=0.5)})
    assert "cannot hold normalised values" in e.message


def test_labels_out_of_range() -> None:
    labels = LABELS.copy()
    check_labels(open_dataset({"x": SAMPLES, "y": labels}, [X]), 4)
    labels[6] = 4
    dataset = open_dataset({"x": SAMPLES, "y": labels}, [X])
    check_labels(dataset, 4, ignore_label=4)
    with pytest.raises(DataError, match="label 4 in sample 6 is too large, the model has classes 0 to 3"):
        check_labels(dataset, 4)
    labels[5] = -1
    with pytest.raises(DataError, match="label -1 in sample 5 is negative"):
        check_labels(open_dataset({"x": SAMPLES, "y": labels}, [X]), 4)
    with pytest.raises(DataError, match="not whole numbers"):
        check_labels(open_dataset({"x": SAMPLES, "y": labels + 0.5}, [X]), 4)
    with pytest.raises(DataError, match="no labels"):
        check_labels(open_dataset({"x": SAMPLES}, [X]), 4)


def test_no_such_file(tmp_path: Path) -> None:
    assert "nothing.npz: no such file" in problem(tmp_path / "nothing.npz").message
    assert str(tmp_path) in problem("nothing.npz", root=tmp_path).message
    problem(tmp_path / f"{'n' * 300}.npz")  # the file system itself refuses such a name


def test_views_without_samples() -> None:
    dataset = open_dataset({"x": SAMPLES}, [X])
    with pytest.raises(DataError, match="no samples from 10 to 12"):
        take(dataset, 10, 12)
    with pytest.raises(DataError, match="cannot be split"):
        split(take(dataset, 0, 1), 0.5, seed=0)


def test_a_scalar_input_cannot_be_given_by_sample() -> None:
    rate = TensorSpec(name="rate", dtype="float32", shape=())
    said = problem({"x": SAMPLES, "rate": np.ones(10, np.float32)}, [X, rate])
    assert "'rate' is one number" in said.message
