import re

import numpy as np
import onnx_ir as ir
import pytest

from deploy.graph import affine, edit, shapes

RNG = np.random.default_rng(0)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def norm(channels: int) -> dict[str, np.ndarray]:
    """Statistics of a batch norm that changes much: scales of both signs, small variances."""
    return {
        "s": RNG.uniform(-2, 2, channels).astype(np.float32),
        "b": RNG.standard_normal(channels).astype(np.float32),
        "m": RNG.standard_normal(channels).astype(np.float32),
        "v": RNG.uniform(0.05, 2, channels).astype(np.float32),
    }


def weights(**shapes_: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {n: RNG.standard_normal(s).astype(np.float32) for n, s in shapes_.items()}


def applied(model: ir.Model, *steps) -> ir.Model:
    after = shapes.infer(model.clone())
    for step in steps:
        step(after)
    return after


BN = "BatchNormalization<epsilon = 0.001>(h, s, b, m, v)"


@pytest.mark.parametrize(
    ("compute", "parameters", "channels", "shape"),
    [
        ("Conv<pads = [1, 1, 1, 1]>(x, w)", {"w": (6, 4, 3, 3)}, 6, "n,4,5,5"),
        ("Conv<strides = [2, 2]>(x, w, c)", {"w": (6, 4, 3, 3), "c": (6,)}, 6, "n,4,5,5"),
        ("Conv<group = 2>(x, w, c)", {"w": (6, 2, 3, 3), "c": (6,)}, 6, "n,4,5,5"),
        ("Conv<group = 4>(x, w)", {"w": (8, 1, 3)}, 8, "n,4,5"),
        ("ConvTranspose<strides = [2, 2]>(x, w, c)", {"w": (4, 6, 3, 3), "c": (6,)}, 6, "n,4,5,5"),
        ("ConvTranspose<group = 2, pads = [1, 1, 1, 1]>(x, w)", {"w": (4, 3, 3, 3)}, 6, "n,4,5,5"),
        ("Gemm(x, w, c)", {"w": (4, 6), "c": (6,)}, 6, "n,4"),
        ("Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, c)", {"w": (6, 4), "c": (1, 6)}, 6, "n,4"),
        ("Gemm<transB = 1>(x, w)", {"w": (6, 4)}, 6, "n,4"),
    ],
)
def test_batch_norm_behind(parse, prove, compute: str, parameters, channels: int, shape: str):
    out = ",".join("abcd"[: shape.count(",") + 1])
    model = parse(
        f"g (float[{shape}] x) => (float[{out}] y) {{ [work] h = {compute} [norm] i = {BN} y = Relu(i) }}",
        weights(**parameters) | norm(channels),
    )
    after = applied(model, affine.fold_into_producer)
    assert len(after.graph) == 2 and prove(model, after) is None
    node = after.graph.node(0)
    assert (node.name, node.outputs[0].name) == ("work", "i")  # the name of the work, the last value's name


def test_error_is_that_of_one_rounding(parse, run):
    """Against float64: folding weights in float32 step by step would lose more."""
    arrays = weights(w=(8, 4, 3, 3)) | norm(8)
    model = parse(f"g (float[n,4,8,8] x) => (float[n,8,6,6] y) {{ h = Conv(x, w) y = {BN} }}", arrays)
    folded = edit.constant(applied(model, affine.fold_into_producer).graph.initializers["w"])
    a = {k: v.astype(np.float64) for k, v in arrays.items()}
    exact = a["w"] * (a["s"] / np.sqrt(a["v"] + np.float64(np.float32(0.001))))[:, None, None, None]
    np.testing.assert_array_equal(folded, exact.astype(np.float32))


@pytest.mark.parametrize(
    "tail",
    [
        "i = Mul(h, p) y = Add(i, q)",
        "i = Add(q, h) y = Mul(p, i)",
        "i = Div(h, p) y = Sub(i, q)",
        "i = Sub(q, h) y = Mul(i, one)",
    ],
)
def test_scales_and_shifts_behind_a_convolution(parse, prove, tail: str):
    arrays = weights(w=(6, 4, 3, 3), c=(6,), q=(1, 6, 1, 1), one=(1,))
    arrays["p"] = RNG.uniform(0.5, 2, (6, 1, 1)).astype(np.float32)
    used = {k: v for k, v in arrays.items() if k in ["w", "c", *re.findall(r"\w+", tail)]}
    model = parse(f"g (float[n,4,5,5] x) => (float[n,6,3,3] y) {{ h = Conv(x, w, c) {tail} }}", used)
    after = applied(model, affine.fold_into_producer)
    assert ops(after) == ["Conv"] and prove(model, after) is None
    assert after.graph.outputs[0].name == "y"


def test_a_separate_bias_becomes_the_convolutions(parse, prove):
    model = parse(
        "g (float[n,4,5,5] x) => (float[n,6,3,3] y) { [c] h = Conv(x, w) y = Add(h, q) }",
        weights(w=(6, 4, 3, 3), q=(6, 1, 1)),
    )
    after = applied(model, affine.fold_into_producer)
    assert ops(after) == ["Conv"] and "c_bias" in after.graph.initializers and prove(model, after) is None


@pytest.mark.parametrize(
    ("body", "arrays", "header"),
    [
        # not per channel
        ("h = Conv(x, w) y = Mul(h, p)", weights(w=(6, 4, 3, 3), p=(1, 3)), "float[n,4,5,5] x"),
        # per sample: the constant has a larger shape than the channel
        ("h = Conv(x, w) y = Add(h, p)", weights(w=(6, 4, 3, 3), p=(6, 3, 3)), "float[n,4,5,5] x"),
        # two readers
        ("h = Conv(x, w) i = Mul(h, p) y = Add(i, h)", weights(w=(6, 4, 3, 3), p=(6, 1, 1)),
         "float[n,4,5,5] x"),
        # a reciprocal
        ("h = Conv(x, w) y = Div(p, h)", weights(w=(6, 4, 3, 3), p=(6, 1, 1)), "float[n,4,5,5] x"),
        # division by zero is left to happen where it happens
        ("h = Conv(x, w) y = Div(h, p)", weights(w=(6, 4, 3, 3)) | {"p": np.zeros((6, 1, 1), np.float32)},
         "float[n,4,5,5] x"),
        # weights that another convolution shares
        ("h = Conv(x, w) i = Mul(h, p) j = Conv(z, w) y = Add(i, j)", weights(w=(6, 4, 3, 3), p=(6, 1, 1)),
         "float[n,4,5,5] x, float[n,4,5,5] z"),
        # a convolution with computed weights
        ("h = Conv(x, z) y = Mul(h, p)", weights(p=(6, 1, 1)), "float[n,4,5,5] x, float[6,4,3,3] z"),
        # the last axis of a Conv is not its channels
        ("h = Conv(x, w) y = Mul(h, p)", weights(w=(6, 4, 3, 3), p=(3,)), "float[n,4,5,5] x"),
        # a batch norm that trains
        (f"h = Conv(x, w) y, m2, v2 = {BN.replace('<', '<training_mode = 1, ')}",
         weights(w=(6, 4, 3, 3)) | norm(6), "float[n,4,5,5] x"),
    ],
)  # fmt: skip
def test_not_folded(parse, body: str, arrays, header: str):
    model = shapes.infer(parse(f"g ({header}) => (float[a,b,c,d] y) {{ {body} }}", arrays))
    before = ir.to_onnx_text(model)
    assert affine.fold_into_producer(model) == 0 and affine.fold_into_consumer(model) == 0
    assert ir.to_onnx_text(model) == before


@pytest.mark.parametrize(
    ("compute", "parameters", "shape"),
    [
        ("Conv(h, w, c)", {"w": (6, 4, 3, 3), "c": (6,)}, "n,4,5,5"),
        ("Conv<auto_pad = \"VALID\">(h, w)", {"w": (6, 4, 3, 3)}, "n,4,5,5"),
        ("Conv<group = 2>(h, w)", {"w": (6, 2, 3, 3)}, "n,4,5,5"),
        ("Conv<group = 4>(h, w, c)", {"w": (8, 1, 3, 3), "c": (8,)}, "n,4,5,5"),
        ("Gemm(h, w)", {"w": (4, 6)}, "n,4"),
        ("Gemm<transB = 1, alpha = 0.5, beta = 3.0>(h, w, c)", {"w": (6, 4), "c": (6,)}, "n,4"),
    ],
)  # fmt: skip
def test_batch_norm_before(parse, prove, compute: str, parameters, shape: str):
    out = ",".join("abcd"[: shape.count(",") + 1])
    model = parse(
        f"g (float[{shape}] x) => (float[{out}] y) {{ h = {BN.replace('(h', '(x')} y = {compute} }}",
        weights(**parameters) | norm(4),
    )
    after = applied(model, affine.fold_into_consumer)
    assert len(after.graph) == 1 and prove(model, after) is None


def test_a_shift_stays_before_padding_and_a_factor_does_not(parse, prove):
    arrays = weights(w=(6, 4, 3, 3), p=(4, 1, 1))
    graph = (
        "g (float[n,4,5,5] x) => (float[n,6,5,5] y) {{ h = {}(x, p) y = Conv<pads = [1, 1, 1, 1]>(h, w) }}"
    )
    added, scaled = (parse(graph.format(op), arrays) for op in ("Add", "Mul"))
    assert ops(applied(added, affine.fold_into_consumer)) == ["Add", "Conv"]
    after = applied(scaled, affine.fold_into_consumer)
    assert ops(after) == ["Conv"] and prove(scaled, after) is None


def test_a_lone_batch_norm_stays(parse):
    model = parse(
        f"g (float[n,4,5,5] x) => (float[n,4,5,5] y) {{ h = Relu(x) i = {BN} y = Relu(i) }}", norm(4)
    )
    after = applied(model, affine.fold_into_producer, affine.fold_into_consumer)
    assert ops(after) == ["Relu", "BatchNormalization", "Relu"]


def test_matmul_becomes_gemm_only_with_rank_2(parse, prove):
    arrays = weights(w=(4, 6), q=(6,))
    graph = "g (float[{}] x) => (float[{}] y) {{ [one] h = MatMul(x, w) y = Add(q, h) }}"
    flat, deep = parse(graph.format("n,4", "n,6"), arrays), parse(graph.format("n,3,4", "n,3,6"), arrays)
    after = applied(flat, affine.matmul_to_gemm)
    assert ops(after) == ["Gemm"] and after.graph.node(0).name == "one" and prove(flat, after) is None
    assert ops(applied(deep, affine.matmul_to_gemm)) == ["MatMul", "Add"]


def test_matmul_then_batch_norm(parse, prove):
    model = parse(
        f"g (float[n,4] x) => (float[n,6] y) {{ h = MatMul(x, w) y = {BN} }}", weights(w=(4, 6)) | norm(6)
    )
    after = applied(model, affine.matmul_to_gemm, affine.fold_into_producer)
    assert ops(after) == ["Gemm"] and prove(model, after) is None


def test_a_factor_behind_a_matmul_of_any_rank(parse, prove):
    model = parse(
        "g (float[n,3,4] x) => (float[n,3,6] y) { h = MatMul(x, w) y = Mul(h, p) }", weights(w=(4, 6), p=(6,))
    )
    after = applied(model, affine.fold_into_producer)
    assert ops(after) == ["MatMul"] and prove(model, after) is None
