"""Datasets against numpy's own reading of the same files, and each way in which data can be bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.data.dataset import Dataset, at_once, enough, open_dataset, split
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
    middle = dataset.select(np.arange(2, 8))
    assert gather(middle)["ids"].tolist() == [2, 3, 4, 5, 6, 7]
    assert gather(middle.select(np.arange(1, 6)), size=2)["ids"].tolist() == [3, 4, 5, 6, 7]
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
        ("bool", "float32"),
        ("bool", "int64"),
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
    dataset = open_dataset({"x": bad}, [X]).select(np.arange(5, 10))
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


def test_no_such_file(tmp_path: Path) -> None:
    assert "nothing.npz: no such file" in problem(tmp_path / "nothing.npz").message
    assert str(tmp_path) in problem("nothing.npz", root=tmp_path).message
    problem(tmp_path / f"{'n' * 300}.npz")  # the file system itself refuses such a name


def test_a_single_sample_cannot_be_split() -> None:
    dataset = open_dataset({"x": SAMPLES}, [X])
    with pytest.raises(DataError, match="cannot be split"):
        split(dataset.select(np.arange(1)), 0.5, seed=0)


def test_a_scalar_input_cannot_be_given_by_sample() -> None:
    rate = TensorSpec(name="rate", dtype="float32", shape=())
    said = problem({"x": SAMPLES, "rate": np.ones(10, np.float32)}, [X, rate])
    assert "'rate' is one number" in said.message


# ------------------------------------------------------------------------------------- ids, several inputs

IDS = TensorSpec(name="ids", dtype="int64", shape=("n", 4), table_rows=10)
MASK = TensorSpec(name="mask", dtype="int32", shape=("n", 4))
TOKENS = np.arange(12).reshape(3, 4) % 10


def test_token_ids_and_mask_are_fed_as_the_types_that_the_model_takes() -> None:
    data: dict[str, np.ndarray] = {"ids": TOKENS.astype(np.int32), "mask": np.ones((3, 4), np.int64)}
    (batch,) = open_dataset(data, [IDS, MASK]).batches(8)
    assert {name: array.dtype.name for name, array in batch.feeds.items()} == {
        "ids": "int64",
        "mask": "int32",
    }
    np.testing.assert_array_equal(batch.feeds["ids"], TOKENS)


def test_floats_are_taken_for_integers_only_where_all_are_whole() -> None:
    mask = {"mask": np.ones((3, 4), np.int32)}
    (batch,) = open_dataset({"ids": TOKENS.astype(np.float64), **mask}, [IDS, MASK]).batches(8)
    np.testing.assert_array_equal(batch.feeds["ids"], TOKENS)
    half = TOKENS.astype(np.float32)
    half[2, 1] = 0.5
    e = problem({"ids": half, **mask}, [IDS, MASK])
    assert "array 'ids' holds 0.5 in sample 2, but the model's input takes int64, whole numbers" in e.message
    half[2, 1] = np.inf
    assert "infinity" in problem({"ids": half, **mask}, [IDS, MASK]).message
    assert (
        "does not fit the input's type int32"
        in problem({"ids": TOKENS, "mask": np.full((3, 4), 3e10)}, [IDS, MASK]).message
    )


@pytest.mark.parametrize("wrong", [10, 30522, -11])
def test_ids_beyond_the_table_are_named(wrong: int) -> None:
    ids = TOKENS.copy()
    ids[1, 3] = wrong
    e = problem({"ids": ids}, [IDS])
    assert f"input 'ids' holds the id {wrong}, but its table in the model has 10 rows" in e.message
    assert "sample 1" in e.message
    assert "0 to 9" in e.hint


def test_ids_counted_from_the_end_are_onnx() -> None:
    (batch,) = open_dataset({"ids": TOKENS - 10}, [IDS]).batches(8)
    assert batch.feeds["ids"].min() == -10


def test_an_input_that_nothing_feeds_and_an_array_that_nobody_wants() -> None:
    e = problem({"ids": TOKENS}, [IDS, MASK])
    assert "no array for the model's input 'mask'; found 'ids'" in e.message
    e = problem({"ids": TOKENS, "mask": TOKENS, "token_type_ids": TOKENS}, [IDS, MASK])
    assert "array 'token_type_ids' is neither an input of the model (ids, mask) nor a label" in e.message


# ---------------------------------------------------------------------------------------------- raw pixels


def raw(dtype: str, layout: str = "NHWC", size: tuple[int, ...] = (4, 5, 3)) -> TensorSpec:
    return TensorSpec.model_validate(
        {
            "name": "x",
            "dtype": dtype,
            "shape": ("n", *size),
            "layout": layout,
            "normalisation": {"scale": 1 / 255, "folded": True},
        }
    )


PIXELS = np.random.default_rng(3).integers(0, 256, (6, 4, 5, 3))


@pytest.mark.parametrize("found", ["uint8", "int16", "int64", "float16", "float64"])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("first", [True, False])
def test_pixels_become_what_the_artifact_takes(found: str, dtype: str, first: bool) -> None:
    given = PIXELS.transpose(0, 3, 1, 2) if first else PIXELS
    got = gather(open_dataset({"x": given.astype(found)}, [raw(dtype)]))["x"]
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got.astype(np.int64), PIXELS - (128 if dtype == "int8" else 0))


def test_channels_last_become_channels_first() -> None:
    got = gather(open_dataset({"x": PIXELS.astype("u1")}, [raw("uint8", "NCHW", (3, 4, 5))]))["x"]
    np.testing.assert_array_equal(got, PIXELS.transpose(0, 3, 1, 2))


def test_where_both_orders_fit_nothing_is_moved() -> None:
    cube = PIXELS[:, :3, :3]
    got = gather(open_dataset({"x": cube.astype("u1")}, [raw("uint8", "NHWC", (3, 3, 3))]))["x"]
    np.testing.assert_array_equal(got, cube)


def test_codes_that_are_int8_already_stay() -> None:
    codes = (PIXELS - 128).astype(np.int8)
    np.testing.assert_array_equal(gather(open_dataset({"x": codes}, [raw("int8")]))["x"], codes)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (PIXELS / 255, "the artifact takes pixels, whole numbers"),
        (PIXELS + 1, "holds 256 in sample"),
        (PIXELS - 1.0, "holds -1 in sample"),
        ((PIXELS - 128).astype(np.int8), "which does not fit the input's type uint8"),
        (PIXELS > 4, "takes pixels as uint8"),
        (np.where(PIXELS > 250, np.nan, PIXELS), "NaN"),
        (PIXELS[:, :, :4], "expected [samples, 4, 5, 3]"),
    ],
)
def test_what_is_no_pixel_is_refused(array: np.ndarray, text: str) -> None:
    assert text in problem({"x": array}, [raw("uint8")]).message


def test_a_model_that_normalises_nothing_itself_gets_no_samples_turned() -> None:
    spec = raw("uint8").model_copy(update={"normalisation": None})
    e = problem({"x": PIXELS.transpose(0, 3, 1, 2).astype("u1")}, [spec])
    assert "the data are NCHW" in e.hint


@pytest.mark.parametrize(("name", "said"), [("a.wav", "python:module:function"), ("a.PNG", "--image")])
def test_sound_and_single_images_are_told_their_way(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"RIFF")
    assert said in problem(tmp_path / name).hint


def test_large_samples_are_run_in_smaller_company_and_fewer_of_them_tell_a_mean() -> None:
    for side, size, few in ((8, 32, 64), (128, 32, 64), (256, 8, 32), (2048, 1, 8)):
        images = {"x": np.zeros((40 if side < 2048 else 2, 1, side, side), np.float32)}
        dataset = open_dataset(images, [TensorSpec(name="x", dtype="float32", shape=("n", 1, side, side))])
        assert at_once(dataset, 32) == size
        assert enough(dataset, 64) == few
        assert enough(dataset, 4) == 4
