"""Raw pixels in, the outputs that normalised numbers gave before."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.errors import UsageError
from deploy.graph.interface import Form, adapt_inputs, fold_normalisation
from deploy.spec.tensors import Normalisation

RGB = Normalisation(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CONV = "g (float[N,3,5,5] x) => (float[N,2,3,3] y) { y = Conv(x, w) }"


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.float32)


def test_the_folded_graph_takes_what_the_reader_would_have_normalised(parse, run):
    model = parse(CONV, {"w": weight(2, 3, 3, 3)})
    raw = pixels(4, 3, 5, 5)
    mean, std = np.reshape(RGB.mean, (3, 1, 1)), np.reshape(RGB.std, (3, 1, 1))
    want = run(model, {"x": ((raw / 255 - mean) / std).astype(np.float32)})
    folded = fold_normalisation(model, {"x": RGB})
    np.testing.assert_allclose(run(folded, {"x": raw})[0], want[0], atol=1e-4)
    assert [v.name for v in folded.graph.inputs] == ["x"]
    assert [n.op_type for n in model.graph] == ["Conv"], "the graph given is left alone"


@pytest.mark.parametrize("numbers", [Normalisation(scale=2.0), Normalisation(mean=(3.0,), std=(0.5,))])
def test_one_number_fits_any_rank(numbers, parse, run):
    model = parse("g (float[N] x) => (float[N] y) { y = Neg(x) }")
    (got,) = run(fold_normalisation(model, {"x": numbers}), {"x": np.float32([1, 2])})
    np.testing.assert_allclose(
        got, -(np.float32([1, 2]) * numbers.scale - numbers.mean[0]) / numbers.std[0], rtol=1e-6
    )


def test_one_mean_with_several_deviations(parse, run):
    model = parse("g (float[N,2] x) => (float[N,2] y) { y = Neg(x) }")
    folded = fold_normalisation(model, {"x": Normalisation(mean=(1.0,), std=(2.0, 4.0))})
    np.testing.assert_allclose(run(folded, {"x": np.float32([[3, 5]])})[0], [[-1, -1]])


def test_every_reader_moves_over_bodies_too_and_the_first_may_be_one(parse, run):
    model = parse(
        """g (float[N,3] x) => (float[N,3] y, float[N,3] z) <bool c = {1}> {
        y = If(c) <then_branch = t () => (float[N,3] tt) { tt = Neg(x) },
                   else_branch = e () => (float[N,3] ee) { ee = Abs(x) }>
        z = Add(x, x) }"""
    )
    x = np.float32([[1, 2, 3]])
    folded = fold_normalisation(model, {"x": Normalisation(scale=3.0)})
    y, z = run(folded, {"x": x})
    np.testing.assert_allclose(y, -3 * x)
    np.testing.assert_allclose(z, 6 * x)


def test_two_inputs_and_one_that_nobody_reads(parse, run):
    model = parse("g (float[N] a, float[N] b, float[N] c) => (float[N] y) { y = Sub(a, b) }")
    twice = {name: Normalisation(scale=2.0) for name in "abc"}
    feeds = {name: np.float32([v]) for name, v in zip("abc", (5, 2, 9), strict=True)}
    np.testing.assert_allclose(run(fold_normalisation(model, twice), feeds)[0], [6])


def test_half_inputs_stay_half(parse, run):
    model = parse("g (float16[N,3,2,2] x) => (float16[N,3,2,2] y) { y = Neg(x) }")
    raw = pixels(1, 3, 2, 2)
    mean, std = np.reshape(RGB.mean, (3, 1, 1)), np.reshape(RGB.std, (3, 1, 1))
    (got,) = run(fold_normalisation(model, {"x": RGB}), {"x": raw.astype(np.float16)})
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, -(raw / 255 - mean) / std, atol=1e-2)


def test_names_already_taken_are_not_taken_again(parse, run):
    model = parse(
        """g (float[N] x) => (float[N] y) {
        ["x/scaled"] a = Neg(x)  ["x/normalised"] b = Neg(a)  y = Mul(b, factor) }""",
        {"factor": np.float32([2])},
    )
    folded = fold_normalisation(model, {"x": Normalisation(scale=3.0)})
    np.testing.assert_allclose(run(folded, {"x": np.float32([1])})[0], [6])
    assert len({n.name for n in folded.graph}) == len(list(folded.graph))


def test_a_free_channel_dimension_is_trusted(parse, run):
    model = parse("g (float[N,C,5,5] x) => (float[N,C,5,5] y) { y = Neg(x) }")
    assert run(fold_normalisation(model, {"x": RGB}), {"x": pixels(1, 3, 5, 5)})[0].shape == (1, 3, 5, 5)


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (CONV, "z", "no input 'z'"),
        ("g (float[N,4,5,5] x) => (float[N,4,5,5] y) { y = Neg(x) }", "x", "3 channels"),
        ("g (float[N] x) => (float[N] y) { y = Neg(x) }", "x", "3 channels"),
        ("g (uint8[N,3,5,5] x) => (float[N,3,5,5] y) { y = Cast<to=1>(x) }", "x", "UINT8"),
    ],
)
def test_what_cannot_be_folded_is_said(text, name, said, parse):
    with pytest.raises(UsageError, match=said) as caught:
        fold_normalisation(parse(text, {"w": weight(2, 3, 3, 3)} if "w)" in text else None), {name: RGB})
    assert caught.value.hint


def by_hand(raw: np.ndarray, numbers: Normalisation) -> np.ndarray:
    """float32, channels last as given, in float64 arithmetic."""
    return ((raw * numbers.scale - np.float64(numbers.mean)) / np.float64(numbers.std)).astype(np.float32)


@pytest.mark.parametrize("numbers", [Normalisation(), Normalisation(scale=1 / 127.5, mean=(1.0,)), RGB])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", None])
@pytest.mark.parametrize("dtype", ["uint8", "int8", None])
def test_every_form_computes_what_normalised_samples_gave(dtype, layout, numbers, parse, run):
    model = parse(CONV, {"w": weight(2, 3, 3, 3)})
    raw = np.random.default_rng(2).integers(0, 256, (4, 5, 5, 3))
    want = run(model, {"x": by_hand(raw, numbers).transpose(0, 3, 1, 2)})[0]
    adapted = adapt_inputs(model, {"x": Form(numbers, dtype, layout, "NCHW")})
    fed = (raw - 128 if dtype == "int8" else raw).astype(dtype or "float32")
    fed = fed if layout == "NHWC" else fed.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(run(adapted, {"x": np.ascontiguousarray(fed)})[0], want, rtol=1e-4, atol=1e-3)
    (value,) = adapted.graph.inputs
    assert (value.name, value.dtype.numpy()) == ("x", np.dtype(dtype or "float32"))
    assert list(value.shape)[1:] == ([5, 5, 3] if layout == "NHWC" else [3, 5, 5])


def test_casts_come_before_transpositions_and_nothing_comes_that_does_nothing(parse):
    model = parse(CONV, {"w": weight(2, 3, 3, 3)})

    def operations(form: Form) -> list[str]:
        return [node.op_type for node in adapt_inputs(model, {"x": form}).graph]

    assert operations(Form(RGB, "uint8", "NHWC", "NCHW")) == ["Cast", "Transpose", "Mul", "Add", "Conv"]
    assert operations(Form(Normalisation(scale=2), "uint8", None, "NCHW")) == ["Cast", "Mul", "Conv"]
    assert operations(Form(Normalisation(), "int8", "NCHW", "NCHW")) == ["Cast", "Add", "Conv"]
    assert operations(Form(Normalisation(), None, "NCHW", "NCHW")) == ["Conv"]


def test_a_model_with_channels_last_is_fed_channels_first(parse, run):
    model = parse("g (float[N,4,5,3] x) => (float[N,4,5,3] y) { y = Neg(x) }")
    raw = np.random.default_rng(2).integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    adapted = adapt_inputs(model, {"x": Form(RGB, "uint8", "NCHW", "NHWC")})
    (got,) = run(adapted, {"x": np.ascontiguousarray(raw.transpose(0, 3, 1, 2))})
    np.testing.assert_allclose(got, -by_hand(raw, RGB), atol=1e-5)


def test_a_layout_needs_to_know_where_the_channels_are(parse):
    for text in (CONV, "g (float[N,3] x) => (float[N,3] y) { y = Neg(x) }"):
        model = parse(text, {"w": weight(2, 3, 3, 3)} if "w)" in text else None)
        with pytest.raises(UsageError, match="not known where input 'x'") as caught:
            adapt_inputs(model, {"x": Form(RGB, "uint8", "NHWC")})
        assert "[input.x] layout" in caught.value.hint
