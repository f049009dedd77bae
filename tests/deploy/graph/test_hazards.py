"""Each hazard on the smallest graph that has it, and silence on one that has none."""

import re

import numpy as np
import onnx_ir as ir
import pytest

from deploy.graph.hazards import Hazard, hazards
from deploy.graph.shapes import infer

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
RANDOM = np.random.default_rng(0)


def find(
    body: str, io: str = "float[1,4,8,8] x", result: str = "float[a,b,c,d] y", **weights: np.ndarray
) -> list[Hazard]:
    """The hazards of a graph y = body(x) with those of the given constants that it reads."""
    tensors = [
        ir.tensor(array, name=name) for name, array in weights.items() if re.search(rf"\b{name}\b", body)
    ]
    return hazards(
        infer(ir.from_onnx_text(f"{HEAD}g ({io}) => ({result}) {{ {body} }}", initializers=tensors))
    )


def kinds(found: list[Hazard]) -> list[tuple[str, str]]:
    return [(h.node, h.kind) for h in found]


def normal(*shape: int) -> np.ndarray:
    return RANDOM.uniform(0.5, 1.0, shape).astype(np.float32) * RANDOM.choice([-1, 1], shape).astype(
        np.float32
    )


def scaled(weight: np.ndarray, channel: int, factor: float) -> np.ndarray:
    weight[channel] *= np.float32(factor)
    return weight


CONV = "[conv] y = Conv(x, w)"


def test_an_ordinary_network_has_none():
    found = find("[a] t = Conv(x, w, b) [r] t1 = Relu(t) [p] y = MaxPool<kernel_shape = [2, 2]>(t1)",
                 w=normal(8, 4, 3, 3), b=normal(8))  # fmt: skip
    assert found == []


def test_dead_channels_are_listed():
    weight = normal(8, 4, 3, 3)
    weight[[1, 5]] = 0
    (found,) = find(CONV, w=weight)
    assert (found.node, found.kind, found.severity) == ("conv", "dead-channel", "note")
    assert "2 (channels 1, 5) of 8" in found.text


def test_a_depthwise_range_matters_more_than_an_ordinary_one():
    depthwise = "[conv] y = Conv<group = 4>(x, w)"
    assert kinds(find(depthwise, w=normal(4, 1, 3, 3))) == []
    (some,) = find(depthwise, w=scaled(normal(4, 1, 3, 3), 2, 40))
    (most,) = find(depthwise, w=scaled(normal(4, 1, 3, 3), 2, 1000))
    assert (some.kind, some.severity, most.kind, most.severity) == (
        "depthwise-range",
        "note",
        "depthwise-range",
        "warning",
    )
    (ordinary,) = find(CONV, w=scaled(normal(8, 4, 3, 3), 2, 40))
    assert ordinary.kind == "outlier-channel" and "channel 2 reaches" in ordinary.text


@pytest.mark.parametrize(
    ("body", "io", "shape", "axis"),
    [
        ("[n] y = MatMul(x, w)", "float[2,4] x", (4, 8), 1),
        ("[n] y = Gemm(x, w)", "float[2,4] x", (4, 8), 1),
        ("[n] y = Gemm<transB = 1>(x, w)", "float[2,4] x", (8, 4), 0),
        ("[n] y = ConvTranspose(x, w)", "float[1,4,8,8] x", (4, 8, 3, 3), 1),
    ],
)
def test_output_channels_are_found_on_their_axis(body, io, shape, axis):
    weight = np.moveaxis(scaled(np.moveaxis(normal(*shape), axis, 0), 3, 20), 0, axis).copy()
    (found,) = find(body, io, w=weight, result="float[a,b] y" if "[2,4]" in io else "float[a,b,c,d] y")
    assert found.kind == "outlier-channel" and "channel 3 " in found.text


def test_grouped_transposed_convolution_counts_channels_group_by_group():
    weight = normal(4, 3, 2, 2)  # two groups of two inputs and three outputs each
    weight[2:, 1] *= 20  # group 1, its output 1: channel 4
    (found,) = find("[n] y = ConvTranspose<group = 2>(x, w)", w=weight)
    assert found.kind == "outlier-channel" and "channel 4 " in found.text


def test_one_outlying_weight():
    weight = normal(8, 200, 3, 3) / 100
    weight[6, 3, 1, 1] = 2
    found = find(CONV, "float[1,200,8,8] x", w=weight)
    assert kinds(found) == [("conv", "outlier-channel"), ("conv", "outlier-weight")]


def test_a_bias_that_dwarfs_its_weights_overflows():
    bias = normal(8)
    (found,) = find("[conv] y = Conv(x, w, b)", w=scaled(normal(8, 4, 3, 3), 7, 1e-6), b=bias * 1000)
    assert found.kind == "bias-overflow" and found.severity == "warning" and "channel 7 " in found.text
    # The limit it names is where bias / (input scale * weight scale) leaves int32.
    limit = float(found.text.split("below ")[1].split(",")[0])
    peak = float(found.text.split("reach only ")[1].split(":")[0])
    assert abs(bias[7] * 1000) / (limit * peak / 127) == pytest.approx(2**31, rel=0.1)


def test_weights_are_judged_with_the_batch_norm_folded():
    gains = np.ones(8, np.float32)
    gains[4] = 40
    one, zero = np.ones(8, np.float32), np.zeros(8, np.float32)
    body = "[conv] t = Conv(x, w) [bn] y = BatchNormalization(t, g, z, z, v)"
    (found,) = find(body, w=normal(8, 4, 3, 3), g=gains, z=zero, v=one)
    assert (found.node, found.kind) == ("conv", "outlier-channel") and "channel 4 " in found.text


def test_a_batch_norm_with_tiny_variance():
    one, zero = np.ones(8, np.float32), np.zeros(8, np.float32)
    variance = one.copy()
    variance[2] = 1e-9
    weight = scaled(normal(8, 4, 3, 3), 2, 1e-2)
    found = find(
        "[conv] t = Conv(x, w) [bn] y = BatchNormalization(t, o, z, z, v)",
        w=weight,
        o=one,
        z=zero,
        v=variance,
    )
    assert kinds(found) == [("bn", "small-variance")]
    assert "up to 316" in found[0].text  # 1 / sqrt(1e-5 + 1e-9)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("[n] y = Softmax(x)", ("n", "softmax", "note")),
        ("[n] y = LayerNormalization(x, ones)", ("n", "normalization", "note")),
        ("[n] y = HardSwish(x)", ("n", "swish", "note")),
        ("[n] y = Gelu(x)", ("n", "swish", "note")),
        ("[n] t = Exp(x) [m] y = Log(t)", ("n", "wide-range", "note")),
        ("[n] t = Relu(x) [s] t1 = Sigmoid(t) [m] y = Mul(t, t1)", ("n", "swish", "note")),
        ("[n] y = Sigmoid(x)", ("n", "sigmoid-output", "note")),
        ("[n] v, i = TopK(x, k) [e] y = Relu(v)", ("n", "selection", "warning")),
    ],
)
def test_operations_that_do_not_like_8_bits(body, expected):
    (found,) = find(body, ones=np.ones(8, np.float32), k=np.array([2]))
    assert (found.node, found.kind, found.severity) == expected


def test_the_powers_inside_a_gelu_are_no_chain_of_their_own():
    body = """[r] t = Relu(x) [p] t1 = Pow(t, three) [q] t2 = Mul(t1, k) [a] t3 = Add(t, t2) [h] t4 = Tanh(t3)
      [b] t5 = Add(t4, k) [m] y = Mul(t, t5)"""
    assert kinds(find(body, three=np.float32(3), k=np.float32(0.5))) == [("r", "swish")]


def test_recurrent_layers_and_embeddings():
    body = "[e] t = Gather(table, x) [gru] y, h = GRU<hidden_size = 2>(t, w, r)"
    found = find(body, "int64[5,1] x", table=normal(10, 3), w=normal(1, 6, 3), r=normal(1, 6, 2))
    assert kinds(found) == [("e", "embedding"), ("gru", "recurrent")]


def test_scores_beside_boxes_at_the_output_are_a_detection_head():
    body = "[s] t = Sigmoid(x) [b] t1 = Relu(x) [cat] t2 = Concat<axis = 1>(t1, t) {}"
    (head,) = find(body.format("[move] y = Transpose(t2)"))
    assert (head.node, head.kind) == ("cat", "detection-head")
    (inner,) = find(body.format("[move] y = MaxPool<kernel_shape = [1, 1]>(t2)"))
    assert (inner.node, inner.kind) == ("cat", "concat-ranges")


def test_concat_of_like_ranges_is_none():
    body = "[s] t = {} [h] t1 = Tanh(x) [cat] t2 = Concat<axis = 1>(t1, t) [r] y = Neg(t2)"
    assert find(body.format("Sigmoid(x)")) == []
    assert find(body.format("Clip(x, zero, six)"), zero=np.float32(0), six=np.float32(6)) == []
    assert kinds(find(body.format("Clip(x, zero, six)"), zero=np.float32(0), six=np.float32(60))) == [
        ("cat", "concat-ranges")
    ]


def test_free_sizes_are_named_with_what_pins_them():
    found = find("y = Relu(x)", "float[n,3,height,width] x")
    assert kinds(found) == [("x", "dynamic-batch"), ("x", "dynamic-shape"), ("x", "dynamic-shape")]
    assert "dimension 2 " in found[1].text and found[1].text.endswith("--shape x=1,3,<height>,<width>")


def test_rows_that_depend_on_the_data():
    (found,) = find("[nz] y = NonZero(x)", "float[4] x", result="int64[1,n] y")
    assert (found.node, found.kind, found.severity) == ("nz", "data-dependent", "warning")


def test_what_float16_cannot_hold():
    (mask,) = find("[m] y = Add(x, k)", k=np.float32(-1e9))
    assert (mask.node, mask.kind) == ("m", "float16-overflow")
    assert find("[m] y = Add(x, k)", k=np.float32(-np.inf)) == []
    (tiny,) = find("[m] y = Mul(x, k)", k=np.full(8, 1e-9, np.float32))
    assert tiny.kind == "float16-underflow"
    found = find("[n] y = LayerNormalization<epsilon = 0.000000000001>(x, s)", s=np.ones(8, np.float32))
    assert kinds(found) == [("n", "normalization"), ("n", "float16-underflow")]


def test_bodies_are_looked_into():
    model = ir.from_onnx_text(HEAD + """g (bool c, float[2] x) => (float[2] y) {
      [if] t = If(c) <
        then_branch = yes () => (float[2] u) { [inner] u = Softmax(x) },
        else_branch = no () => (float[2] v) { [other] v = Neg(x) }>
      [r] y = Relu(t)
    }""")  # fmt: skip
    assert kinds(hazards(model)) == [("inner", "softmax")]
