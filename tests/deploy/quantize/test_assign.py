"""Numbers of the plan against closed forms, and the integer arithmetic that they must leave room for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.graph.qdq import data_digest, dequantize_array
from deploy.quantize.assign import activation_params, assign
from deploy.quantize.place import Placement
from deploy.quantize.ranges import Histogram
from deploy.spec.tensors import RANGES

IMAGE, PAD = "float[N,4,6,6]", "<pads=[1,1,1,1]>"
W = (4, 4, 3, 3)
CONV = f"g ({IMAGE} x) => ({IMAGE} y) {{ [c] y = Conv{PAD}(x, w, b) }}"


def with_rules(runtime, **rules):
    return runtime.model_copy(update={"quant": runtime.quant.model_copy(update=rules)})


def weight(*shape: int, gain: float = 1.0) -> np.ndarray:
    return (gain * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


# --- activations


@settings(max_examples=150, deadline=None)
@given(
    st.floats(-1e6, 0), st.floats(0, 1e6), st.sampled_from(["uint8", "int8"]), st.booleans(),
    st.sampled_from(["float32", "float16"]),
)  # fmt: skip
def test_codes_cover_the_range_and_zero_is_exact(unsigned, low, high, kind, symmetric, scale_type):
    low, high = max(low, -6e4), min(high, 6e4)
    if symmetric:
        kind = "int8"
    rules = with_rules(unsigned, activation=kind, symmetric_activation=symmetric, scale=scale_type).quant
    params = activation_params(low, high, rules)
    bottom, top = RANGES[kind]
    (scale,), (zero,) = params.scale, params.zero_point
    assert bottom <= zero <= top
    assert scale > 0
    assert scale == float(np.dtype(scale_type).type(scale)), "as the artifact stores it"
    assert (params.type, params.axis) == (kind, None)
    if symmetric:
        assert zero == 0
        assert scale * top >= max(-low, high) * (1 - 1e-6)
    else:  # rounding the zero point moves the ends by half a step at most
        assert (bottom - zero) * scale <= low + 0.501 * scale
        assert (top - zero) * scale >= high - 0.501 * scale - 1e-6 * high
        step = 2.0**-24 if scale_type == "float16" else 1e-12
        slack = 2.0**-10 if scale_type == "float16" else 1e-6
        assert scale <= ((high - low) or 1.0) / 255 * (1 + slack) + step, "0 alone tells no range"


def test_what_was_always_zero_gets_a_scale_by_which_kernels_can_compute(unsigned):
    assert activation_params(0.0, 0.0, with_rules(unsigned).quant).scale == (float(np.float32(1 / 255)),)


@pytest.mark.parametrize(
    ("low", "high", "kind", "zero"),
    [
        (0, 1, "uint8", 0),
        (0, 1, "int8", -128),
        (-1, 0, "uint8", 255),
        (-1, 0, "int8", 127),
        (0, 0, "uint8", 0),
    ],
)
def test_one_sided_ranges_use_all_codes(low, high, kind, zero, unsigned):
    assert activation_params(low, high, with_rules(unsigned, activation=kind).quant).zero_point == (zero,)


def test_half_scales_are_rounded_up_and_never_to_nothing(symmetric):
    exact = 1.0 / 127
    params = activation_params(-1.0, 1.0, symmetric.quant)
    half = np.float16(params.scale[0])
    assert float(half) == params.scale[0] >= exact
    assert float(np.nextafter(half, np.float16(0))) < exact
    assert activation_params(0, 1e-9, symmetric.quant).scale[0] >= 2.0**-24


def test_groups_take_what_all_their_members_need(graph, unsigned):
    model = graph(f"g ({IMAGE} x) => ({IMAGE} y) {{ a = Neg(x)  y = Add(a, x) }}")
    placement = Placement(groups={"x": "x", "a": "x", "y": "y"}, readers={"x": ("n",)})
    histograms = {}
    for name, values in {"x": [-1, 1], "a": [-3, 0.5], "y": [0, 2]}.items():
        histograms[name] = Histogram()
        histograms[name].add(np.float32(values), values[0], values[1])
    tensors = assign(model, placement, histograms, unsigned.quant, "minmax").tensors
    assert tensors["x"].scale == tensors["a"].scale == (float(np.float32(4 / 255)),)
    assert (tensors["a"].shared_with, tensors["a"].origin) == ("x", "shared")
    assert (tensors["x"].shared_with, tensors["x"].origin) == (None, "calibration")
    assert tensors["x"].readers == ("n",)
    assert tensors["y"].scale == (float(np.float32(2 / 255)),)
    with pytest.raises(KeyError, match="y"):
        assign(model, placement, {k: v for k, v in histograms.items() if k != "y"}, unsigned.quant, "minmax")


@pytest.mark.parametrize(
    ("op", "scale", "zero"), [("Sigmoid", 1 / 256, -128), ("Softmax", 1 / 256, -128), ("Tanh", 1 / 128, 0)]
)
def test_prescribed_outputs(op, scale, zero, quantize, graph, affine):
    model = graph(
        f"g ({IMAGE} x) => ({IMAGE} y) {{ a = Conv{PAD}(x, w)  s = {op}(a)  t = Transpose<perm=[0,1,3,2]>(s)"
        f"  y = Conv{PAD}(t, w) }}",
        {"w": W},
    )
    tensors = quantize(model, affine).assignment.tensors
    for name in ("s", "t"):
        assert (tensors[name].scale, tensors[name].zero_point) == ((scale,), (zero,))
        assert tensors[name].origin == "fixed"
    assert tensors["a"].origin == "calibration"


def test_groups_that_must_be_centred_have_no_zero_point(graph, quantize, affine):
    text = """g (float[N,5,8] x) => (float[N,5,5] y) {
        q = MatMul(x, w)  k = MatMul(x, w)  t = Transpose<perm=[0,2,1]>(k)  y = MatMul(q, t) }"""
    rules = with_rules(affine, centred={"MatMul": (1,)})
    tensors = quantize(graph(text, {"w": (8, 8)}), rules).assignment.tensors
    assert tensors["k"].zero_point == tensors["t"].zero_point == (0,)
    assert tensors["k"].scale[0] * 127.5 > tensors["q"].scale[0] * 127, "as wide, k being what q is"
    assert tensors["q"].zero_point != (0,)


# --- weights


def test_weights_are_symmetric_per_output_channel(graph, quantize, unsigned):
    array = weight(*W)
    result = quantize(graph(CONV, {"w": array, "b": (4,)}), with_rules(unsigned, weight_bits=8))
    plan, codes = result.assignment.tensors["w"], result.assignment.codes["w"]
    np.testing.assert_allclose(plan.scale, np.abs(array).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
    assert (plan.axis, set(plan.zero_point), plan.type, plan.origin) == (0, {0}, "int8", "weight")
    assert np.abs(codes.astype(int)).max() == 127
    assert codes.min() >= -127
    assert plan.digest == data_digest(codes)
    half_step = np.reshape(plan.scale, (4, 1, 1, 1)) / 2
    assert (np.abs(dequantize_array(codes, plan) - array) <= half_step * 1.0001).all()


@pytest.mark.parametrize(
    ("nodes", "shape", "axis"),
    [
        ("y = MatMul(x, w)", (8, 6), 1),
        ("y = MatMul(x, w)", (2, 8, 6), None),
        ("z = MatMul(x, w)  y = Abs(z)", (8,), None),
        ("f = Flatten(x)  y = Gemm(f, w)", (40, 6), 1),
        ("f = Flatten(x)  y = Gemm<transB=1>(f, w)", (6, 40), 0),
        ("y = Conv(x, w)", (6, 5, 1), 0),
        ("y = ConvTranspose(x, w)", (5, 6, 1), 1),
        ("y = ConvTranspose<group=5>(x, w)", (5, 2, 1), None),
    ],
)
def test_the_axis_is_that_of_the_output_channels(nodes, shape, axis, graph, quantize, affine):
    model = graph(f"g (float[2,5,8] x) => (float y) {{ {nodes} }}", {"w": shape})
    plan = quantize(model, affine).assignment.tensors["w"]
    assert plan.axis == axis
    assert len(plan.scale) == (1 if axis is None else shape[axis])


def test_one_scale_where_the_rules_or_the_readers_say_so(graph, quantize, unsigned):
    model = graph(CONV, {"w": W, "b": (4,)})
    assert quantize(model, with_rules(unsigned, per_channel=False)).assignment.tensors["w"].axis is None
    assert quantize(model, with_rules(unsigned, per_tensor=("Conv",))).assignment.tensors["w"].axis is None
    assert quantize(model, with_rules(unsigned, per_tensor=("Gemm",))).assignment.tensors["w"].axis == 0
    shared = graph(
        """g (float[N,8] x) => (float[N,8] y) {
        a = MatMul(x, w)  r = Relu(a)  y = Gemm<transB=1>(r, w, b) }""",
        {"w": (8, 5), "b": (8,)},
    )
    tensors = quantize(shared).assignment.tensors
    assert tensors["w"].axis is None
    assert len(tensors["b"].scale) == 1


def test_seven_bits_never_saturate_the_sum_of_two_products(graph, quantize, unsigned):
    codes = quantize(graph(CONV, {"w": weight(*W), "b": (4,)}), unsigned).assignment.codes["w"]
    assert np.abs(codes.astype(int)).max() == 64
    assert 2 * 255 * int(np.abs(codes.astype(int)).max()) <= np.iinfo(np.int16).max


def test_dead_channels_stay_zero_and_finite(graph, quantize):
    array = weight(*W)
    array[2] = 0
    result = quantize(graph(CONV, {"w": array, "b": np.float32([0, 0, 5, 0])}))
    plan = result.assignment.tensors
    assert not result.assignment.codes["w"][2].any()
    assert all(np.isfinite(s) and s > 0 for name in ("w", "b") for s in plan[name].scale)
    np.testing.assert_allclose(
        dequantize_array(result.assignment.codes["b"], plan["b"]), [0, 0, 5, 0], rtol=1e-6
    )


# --- biases


def test_the_bias_scale_is_the_product_of_the_others(graph, quantize):
    result = quantize(graph(CONV, {"w": W, "b": (4,)}))
    tensors = result.assignment.tensors
    product = np.float32(tensors["x"].scale[0]) * np.float32(tensors["w"].scale)
    np.testing.assert_array_equal(np.float32(tensors["b"].scale), product)
    assert tensors["b"].bias_of == ("x", "w")
    assert (tensors["b"].type, tensors["b"].axis, tensors["b"].origin) == ("int32", 0, "bias")
    bias = result.model.graph.initializers["b"].const_value.numpy()
    assert (np.abs(dequantize_array(result.assignment.codes["b"], tensors["b"]) - bias) <= product).all()


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_huge_bias_widens_its_channel_so_that_int32_holds(per_channel, graph, quantize, unsigned):
    bias = np.float32([1e7, 0.1, -3e8, 0])
    result = quantize(
        graph(CONV, {"w": weight(*W), "b": bias}), with_rules(unsigned, per_channel=per_channel)
    )
    tensors, codes = result.assignment.tensors, result.assignment.codes
    largest = np.abs(codes["b"].astype(np.int64)).max()
    accumulated = 255 * 127 * 4 * 9
    assert largest + accumulated <= np.iinfo(np.int32).max
    np.testing.assert_allclose(dequantize_array(codes["b"], tensors["b"])[[0, 2]], bias[[0, 2]], rtol=1e-5)
    if per_channel:
        assert tensors["w"].scale[1] == pytest.approx(np.abs(weight(*W)[1]).max() / 64), (
            "others are untouched"
        )


def test_all_biases_of_a_shared_weight_find_room(graph, quantize):
    text = f"g ({IMAGE} x) => ({IMAGE} y) {{ a = Conv{PAD}(x, w, b1)  r = Relu(a)  y = Conv{PAD}(r, w, b2) }}"
    for big, small in (("b1", "b2"), ("b2", "b1")):
        weights = {"w": weight(*W), big: np.float32([1e8, 0, 0, 0]), small: np.float32([1, 1, 1, 1])}
        result = quantize(graph(text, weights))
        code = result.assignment.codes[big][0]
        assert 0 < code < 2**30 + 1
        np.testing.assert_allclose(code * result.assignment.tensors[big].scale[0], 1e8, rtol=1e-5)


def test_biases_stay_float_where_the_rules_say_so(graph, quantize, symmetric):
    tensors = quantize(graph(CONV, {"w": W, "b": (4,)}), symmetric).assignment.tensors
    assert set(tensors) == {"x", "w"}  # a convolution may leave as float there
    assert all(s == float(np.float16(s)) for s in tensors["w"].scale)
    assert tensors["x"].zero_point == (0,)
