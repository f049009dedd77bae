import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import pytest

from deploy.graph import clean


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_a_padded_shortcut_as_pytorch_exports_it(parse, prove):
    """The pads of a parameter-free ResNet shortcut arrive as a chain of thirteen nodes."""
    model = parse(
        "g (float[n,4,8,8] x) => (float[n,8,4,4] y)"
        "<int64[8] half = {0, 0, 0, 0, 2, 2, 0, 0}, "
        "int64[1] zero = {0}, int64[1] two = {2},"
        " int64[1] one = {1}, int64[1] eight = {8}, int64[1] d2 = {2}, int64[1] d3 = {3},"
        " int64[2] rows = {-1, 2}, int64[1] back = {-1},"
        " int64[1] first = {-1}, int64[1] last = {-9}, float v = {0}>"
        "{ a = Slice(x, zero, eight, d2, two) b = Slice(a, zero, eight, d3, two)"
        "  e = ConstantOfShape<value = int64[1] {0}>(zero) p = Concat<axis = 0>(half, e) r = Reshape(p, rows)"
        "  s = Slice(r, first, last, zero, back) t = Transpose<perm = [1, 0]>(s) f = Reshape(t, back)"
        "  q = Cast<to = 7>(f) y = Pad<mode = \"constant\">(b, q, v) }"
    )  # fmt: skip
    expected = clean.clean(model, prove)
    assert ops(expected.model) == ["Slice", "Pad"]
    assert all(r.kept for r in expected.rewrites) and prove(model, expected.model) is None


def test_batch_normalization_stays(parse, prove):
    rng = np.random.default_rng(0)
    arrays = {n: rng.uniform(0.5, 1, 4).astype(np.float32) for n in ("s", "b", "m", "v")}
    arrays["w"] = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    model = parse(
        "g (float[n,3,8,8] x) => (float[n,4,6,6] y) "
        "{ h = Conv(x, w) i = BatchNormalization(h, s, b, m, v) y = Relu(i) }",
        arrays,
    )
    result = clean.clean(model, prove)
    assert ops(result.model) == ["Conv", "BatchNormalization", "Relu"] and result.rewrites == ()


def test_names_of_what_survives(parse, prove):
    model = parse(
        "g (float[n,4] x, float[n,4] z) => (float[n,4] y, float[n,4] w)"
        "{ a = Identity(x) b = Exp(a) c = Identity(b)"
        "  d = Neg(c) dead = Sin(d) y = Identity(d) w = Add(b, z) }"
    )
    result = clean.clean(model, prove).model
    assert [v.name for v in result.graph.inputs] == ["x", "z"] and [v.name for v in result.graph.outputs] == [
        "y",
        "w",
    ]
    assert {v.name for n in result.graph for v in n.outputs} == {"b", "y", "w"}


def test_equal_nodes_and_constants(parse, prove):
    weights = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    model = parse(
        "g (float[n,4] x) => (float[n,4] y) "
        "{ a = MatMul(x, v) b = MatMul(x, w) c = Exp(a) d = Exp(b) y = Add(c, d) }",
        {"v": weights, "w": weights.copy()},
    )
    result = clean.clean(model, prove).model
    assert sorted(ops(result)) == ["Add", "Exp", "MatMul"] and list(result.graph.initializers) == ["v"]
    assert prove(model, result) is None


def test_equal_float_vectors_are_two_parameters(parse, prove):
    zero = np.zeros(64, np.float32)
    model = parse(
        "g (float[n,64] x) => (float[n,64] y) { a = Add(x, v) b = Exp(a) y = Add(b, w) }",
        {"v": zero, "w": zero.copy()},
    )
    assert set(clean.clean(model, prove).model.graph.initializers) == {"v", "w"}


def test_random_nodes_are_not_merged(parse):
    model = parse(
        "g (float[4] x) => (float[4] y) {"
        "  a = RandomNormalLike(x) b = RandomNormalLike(x) c = Add(a, b) d = Bernoulli(x)"
        "  e = Bernoulli(x) f = Add(d, e) y = Add(c, f) }"
    )
    assert len(clean.clean(model, lambda a, b: None).model.graph) == 7


def test_the_given_model_is_not_touched(parse, prove):
    model = parse(
        "g (float[n,4] x) => (float[n,4] y) <float[1] a = {2}> { b = Neg(a) c = Identity(x) y = Mul(c, b) }"
    )
    before = ir.to_onnx_text(model)
    result = clean.clean(model, prove)
    assert ir.to_onnx_text(model) == before and len(result.model.graph) == 1


@pytest.mark.parametrize("step", clean.STEPS)
def test_every_step_leaves_a_clean_graph_alone(parse, step: str):
    model = parse(
        "g (float[n,4] x) => (float[n,4] y) <float[4] w = {1, 2, 3, 4}> { h = Mul(x, w) y = Exp(h) }"
    )
    passes.ShapeInferencePass()(model)
    assert clean.STEPS[step](model) == 0
