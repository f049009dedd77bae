import numpy as np
import onnx_ir as ir
import pytest

from deploy.graph import fuse, shapes

RNG = np.random.default_rng(0)
W = {"w": RNG.standard_normal((6, 4, 3, 3)).astype(np.float32)}


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def after(model: ir.Model, step) -> ir.Model:
    result = shapes.infer(model.clone())
    step(result)
    return result


PAD = "<int64[8] p = {0, 0, 1, 0, 0, 0, 2, 1}, float zero = {0}>"


@pytest.mark.parametrize(
    ("body", "arrays"),
    [
        ("{ h = Pad(x, p, zero) y = Conv(h, w) }", W),
        ("{ h = Pad(x, p) y = Conv<pads = [1, 0, 0, 1]>(h, w) }", W),
        ("{ h = Pad(x, p, zero) y = AveragePool<kernel_shape = [3, 3]>(h) }", {}),
        ("{ r = Relu(x) h = Pad(r, p) y = MaxPool<kernel_shape = [3, 3], strides = [2, 2]>(h) }", {}),
    ],
)
def test_padding_folded(parse, prove, body: str, arrays):
    head = PAD if "zero" in body else PAD.replace(", float zero = {0}", "")
    model = parse(f"g (float[n,4,6,6] x) => (float[a,b,c,d] y) {head} {body}", arrays)
    result = after(model, fuse.fold_padding)
    assert "Pad" not in ops(result) and prove(model, result) is None


@pytest.mark.parametrize(
    ("body", "arrays"),
    [
        ("<int64[8] p = {0, 0, 1, 0, 0, 0, 2, 1}, float one = {1}> { h = Pad(x, p, one) y = Conv(h, w) }", W),
        ("<int64[8] p = {0, 0, 1, 0, 0, 0, 2, 1}> { h = Pad<mode = \"reflect\">(x, p) y = Conv(h, w) }", W),
        ("<int64[8] p = {0, 1, 0, 0, 0, 0, 0, 0}> { h = Pad(z, p) y = Conv(h, w) }", W),  # channels
        ("<int64[8] p = {0, 0, -1, 0, 0, 0, 0, 0}> { h = Pad(x, p) y = Conv(h, w) }", W),  # crops
        ("<int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}>"
         "{ h = Pad(x, p) y = MaxPool<kernel_shape = [3, 3]>(h) }", {}),
        ("<int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}>"
         "{ h = Pad(x, p) y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(h) }", {}),
        ("<int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}> { h = Pad(x, p) i = Conv(h, w)"
         "  j = ReduceMax(h) y = Add(i, j) }", W),
    ],
)  # fmt: skip
def test_padding_kept(parse, body: str, arrays):
    model = shapes.infer(
        parse(f"g (float[n,4,6,6] x, float[n,3,6,6] z) => (float[a,b,c,d] y) {body}", arrays)
    )
    assert fuse.fold_padding(model) == 0


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("a = Relu(x) y = Clip(a, minus, six)", "Clip"),
        ("a = Clip(x, minus, six) y = Relu(a)", "Clip"),
        ("a = Clip(x, minus, six) y = Clip(a, , two)", "Clip"),
        ("a = Clip(x, two, six) y = Clip(a, minus)", "Clip"),
        ("a = Clip(x, six) y = Clip(a, , two)", "Clip"),  # nothing passes: always two
        ("a = Clip(x, minus) y = Relu(a)", "Relu"),
    ],
)
def test_clips(parse, prove, body: str, wanted: str):
    used = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    numbers = {
        n: np.asarray(np.float32(v)) for n, v in {"minus": -1, "two": 0.5, "six": 1.5}.items() if n in used
    }
    model = parse(f"g (float[n,64] x) => (float[n,64] y) {{ {body} }}", numbers)
    result = after(model, fuse.merge_clips)
    assert ops(result) == [wanted] and prove(model, result) is None


def test_the_whole_list_on_a_mobile_block(parse, prove):
    """Pad, depthwise convolution, bias, batch norm, hard-swish, squeeze-and-excite, residual."""
    arrays = {
        "w": RNG.standard_normal((4, 1, 3, 3)).astype(np.float32),
        "q": RNG.standard_normal((1, 4, 1, 1)).astype(np.float32),
        "se": RNG.standard_normal((4, 4, 1, 1)).astype(np.float32),
        **{n: RNG.uniform(0.5, 1, 4).astype(np.float32) for n in ("s", "b", "m", "v")},
    }
    model = parse(
        "g (float[n,4,6,6] x) => (float[n,4,6,6] y)"
        "<int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}, float three = {3}, float six = {6}, float zero = {0}>"
        "{ pad = Pad(x, p) [dw] c = Conv<group = 4>(pad, w) cb = Add(c, q) "
        "  norm = BatchNormalization(cb, s, b, m, v)"
        "  h1 = Add(norm, three) h2 = Clip(h1, zero, six) h3 = Mul(norm, h2) act = Div(h3, six)"
        "  pool = GlobalAveragePool(act) e = Conv(pool, se) g1 = Add(e, three) g2 = Clip(g1, zero, six)"
        "  gate = Div(g2, six) scaled = Mul(act, gate) y = Add(scaled, x) }",
        arrays,
    )
    result = fuse.fuse(model, prove)
    assert ops(result.model) == [
        "Conv",
        "HardSwish",
        "GlobalAveragePool",
        "Conv",
        "HardSigmoid",
        "Mul",
        "Add",
    ]
    assert all(r.kept for r in result.rewrites) and prove(model, result.model) is None
    assert [n.outputs[0].name for n in result.model.graph] == [
        "norm",
        "act",
        "pool",
        "e",
        "gate",
        "scaled",
        "y",
    ]
    assert result.model.graph.node(0).name == "dw"


def test_scales_on_both_sides_of_one_convolution(parse, prove):
    arrays = W | {"p": np.full((4, 1, 1), 2, np.float32), "q": np.full((6, 1, 1), 3, np.float32)}
    model = parse(
        "g (float[n,4,6,6] x) => (float[n,6,4,4] y) "
        "{ a = Sub(x, p) b = Conv(a, w) c = Mul(b, q) y = Relu(c) }",
        arrays,
    )
    result = fuse.fuse(model, prove)
    assert ops(result.model) == ["Conv", "Relu"] and prove(model, result.model) is None


def test_the_given_model_is_not_touched(parse, prove):
    arrays = W | {n: RNG.uniform(0.5, 1, 6).astype(np.float32) for n in ("s", "b", "m", "v")}
    model = parse(
        "g (float[n,4,6,6] x) => (float[n,6,4,4] y) { h = Conv(x, w) y = BatchNormalization(h, s, b, m, v) }",
        arrays,
    )
    before = ir.to_onnx_text(model), arrays["w"].copy()
    fuse.fuse(model, prove)
    assert ir.to_onnx_text(model) == before[0]
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), before[1])
