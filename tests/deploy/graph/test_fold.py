import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import pytest

from deploy.graph import edit, fold, shapes


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def folded(model: ir.Model, fold_one=fold.fold_constants) -> ir.Model:
    after = shapes.infer(model.clone())
    fold_one(after)
    passes.RemoveUnusedNodesPass()(after)
    return shapes.infer(after)


def test_constant_part_becomes_one_initializer_under_its_name(parse, prove):
    model = parse(
        "g (float[n,4] x) => (float[n,4] y) <float[4] a = {1, 2, 3, 4}, float[1] b = {2}>"
        "{ c = Mul(a, b) d = Sqrt(c) e = Neg(d) y = Add(x, e) }"
    )
    after = folded(model)
    assert ops(after) == ["Add"] and list(after.graph.initializers) == ["e"]
    np.testing.assert_allclose(
        edit.constant(after.graph.initializers["e"]),
        -np.sqrt(2 * np.arange(1, 5, dtype=np.float32)),
        rtol=1e-6,
    )
    assert prove(model, after) is None


def test_evaluated_in_one_session(parse, monkeypatch):
    import onnxruntime

    sessions = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: sessions.append(1) or real(*a, **k))
    after = folded(
        parse(
            "g (float[4] x) => (float[4] y, float[4] z) <float[4] a = {1, 2, 3, 4}>"
            "{ b = Neg(a) c = Abs(b) y = Add(x, c) d = Exp(a) z = Mul(x, d) }"
        )
    )
    assert ops(after) == ["Add", "Mul"] and len(sessions) == 1


def test_a_small_constant_is_not_blown_up(parse):
    model = parse(
        "g (float[64,64] x) => (float[64,64] y) "
        "<int64[2] s = {64, 64}, int64[2] one = {1, 1}, float[1] v = {2}>"
        "{ t = Mul(s, one) e = Expand(v, t) y = Add(x, e) }"
    )
    after = folded(model)
    assert ops(after) == ["Expand", "Add"]  # what leads to it is folded all the same
    assert list(after.graph.initializers) == ["v", "t"]


def test_a_large_result_may_replace_larger_constants(parse, prove):
    weights = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    model = parse(
        "g (float[n,128] x) => (float[n,32] y) <int64[1] a = {0}, int64[1] b = {32}>"
        "{ t = Transpose<perm = [1, 0]>(w) s = Slice(t, a, b, o) y = MatMul(x, s) }",
        {"w": weights, "o": np.array([1])},
    )
    after = folded(model)
    assert ops(after) == ["MatMul"] and edit.weight_bytes(after) == 128 * 32 * 4
    assert prove(model, after) is None


def test_but_not_where_another_node_still_reads_them(parse):
    weights = np.zeros((64, 64), np.float32)
    model = parse(
        "g (float[n,64] x) => (float[n,64] y) "
        "{ t = Transpose<perm = [1, 0]>(w) a = MatMul(x, t) y = MatMul(a, w) }",
        {"w": weights},
    )
    assert ops(folded(model)) == ["Transpose", "MatMul", "MatMul"]


@pytest.mark.parametrize(
    "body",
    [
        "{ r = RandomNormal<shape = [4]>() y = Add(x, r) }",
        "<float[4] a = {0, 1, 0, 1}> { r = Bernoulli(a) y = Add(x, r) }",
        "<int8[4] a = {1, 2, 3, 4}, float s = {0.5}> { r = DequantizeLinear(a, s) y = Add(x, r) }",
        "<float[4] a = {1, 2, 3, 4}> { r = Neg(a) y = Neg(r) }",
    ],
)
def test_kept(parse, body: str):
    model = parse(f"g (float[4] x) => (float[4] y) {body}")
    assert ops(folded(model))[-1] == ops(model)[-1]
    if "r = Neg" not in body:
        assert ops(folded(model)) == ops(model)


def test_what_onnx_runtime_cannot_do_stays_and_the_rest_is_folded(parse):
    model = parse(
        "g (float[4] x) => (float[4] y) <int8[4] a = {1, 2, 3, 4}, float[4] f = {1, 2, 3, 4}>"
        "{ b = Sin(f) y = Sum(x, b, e2) d = Cast<to = 11>(f) d1 = Celu(d) d2 = Cast<to = 1>(d1)"
        "  e2 = Cast<to = 1>(d1) }"
    )
    model.graph.sort()
    after = folded(model)  # Celu has no kernel for double
    assert "Sin" not in ops(after) and "Celu" in ops(after)


def test_reshape_target_computed_from_a_free_batch(parse, prove):
    model = parse(
        "g (float[n,3,4,4] x) => (float[n,k] y) <int64[1] zero = {0}, int64[1] rest = {-1}>"
        "{ s = Shape(x) b = Gather(s, zero) t = Concat<axis = 0>(b, rest) y = Reshape(x, t) }"
    )
    after = folded(model, fold.fold_shapes)
    assert ops(after) == ["Reshape"]
    assert edit.constant(after.graph.initializers["t"]).tolist() == [0, -1]
    assert prove(model, after) is None


def test_reshape_target_with_one_open_size(parse, prove):
    model = parse(
        "g (float[n,3,4,4] x) => (float[k,m] y) "
        "<int64[1] zero = {0}, int64[1] three = {3}, int64[1] sixteen = {16}>"
        "{ s = Shape(x) b = Gather(s, zero) c = Mul(b, three)"
        "  t = Concat<axis = 0>(c, sixteen) y = Reshape(x, t) }"
    )
    after = folded(model, fold.fold_shapes)
    assert ops(after) == ["Reshape"]
    assert edit.constant(after.graph.initializers["t"]).tolist() == [-1, 16]
    assert prove(model, after) is None


def test_a_target_with_two_open_sizes_stays(parse, prove):
    model = parse(
        "g (float[n,h,w] x) => (float[k,m,l] y) <int64[3] turned = {1, 0, 2}>"
        "{ s = Shape(x) t = Gather(s, turned) y = Reshape(x, t) }"
    )
    after = folded(model, fold.fold_shapes)
    assert ops(after) == ["Shape", "Gather", "Reshape"]


def test_a_target_that_others_read_keeps_its_value_for_them(parse, prove):
    model = parse(
        "g (float[n,6] x) => (float[k,m] y, float[k,m] z) "
        "<int64[1] zero = {0}, int64[1] tail = {6}, float[1] v = {2}>"
        "{ s = Shape(x) b = Gather(s, zero) t = Concat<axis = 0>(b, tail) a = Expand(v, t) y = Reshape(a, t)"
        "  z = Reshape(x, t) }"
    )
    after = folded(model, fold.fold_shapes)
    assert prove(model, after) is None
    assert all(edit.is_constant(n.inputs[1]) for n in after.graph if n.op_type == "Reshape")
    assert "Concat" in ops(after)


def test_static_sizes_become_numbers(parse, prove):
    model = parse(
        "g (float[n,3,4,4] x) => (float[n,k] y) <int64[1] i = {1}, int64[1] rest = {-1}, float[1] v = {2}>"
        "{ s = Shape<start = 1>(x) n = Shape(x) c = Gather(n, i) e = Expand(v, s) a = Mul(x, e)"
        "  t = Concat<axis = 0>(rest, c) y = Reshape(a, t) }"
    )
    after = folded(model, fold.fold_shapes)
    assert "Shape" not in ops(after) and prove(model, after) is None
    assert edit.constant(after.graph.initializers["t"]).tolist() == [-1, 3]
