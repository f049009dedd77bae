import onnx_ir as ir
import pytest

from deploy.graph import noop, shapes

X = "g (float[n,3,4,4] x) => (float[n,a,b,c] y)"


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    "body",
    [
        "{ h = Exp(x) y = Identity(h) }",
        "{ h = Identity(x) y = Exp(h) }",
        "{ h = Exp(x) y, mask = Dropout(h) }",
        "<float r = {0.5}, bool t = {0}> { h = Exp(x) y = Dropout(h, r, t) }",
        "{ h = Cast<to = 1>(x) y = Exp(h) }",
        "<int64[8] p = {0, 0, 0, 0, 0, 0, 0, 0}> { h = Pad(x, p) y = Exp(h) }",
        "<int64[4] t = {0, 3, 4, -1}> { h = Reshape(x, t) y = Exp(h) }",
        "<int64[3] t = {0, 3, 16}, "
        "int64[4] u = {-1, 3, 4, 4}> { h = Reshape(x, t) i = Reshape(h, u) y = Exp(i) }",
        "<int64[1] z = {0}> { h = Unsqueeze(x, z) i = Squeeze(h, z) y = Exp(i) }",
        "{ h = Transpose<perm = [0, 1, 2, 3]>(x) y = Exp(h) }",
        "{ h = Concat<axis = 1>(x) y = Exp(h) }",
        "{ h = Sum(x) y = Exp(h) }",
        "<int64[1] a = {0}, int64[1] b = {9223372036854775807}>{ h = Slice(x, a, b) y = Exp(h) }",
        "<int64[2] a = {0, 0}, int64[2] b = {4, 4}, int64[2] c = {2, 3}>{ h = Slice(x, a, b, c) y = Exp(h) }",
        "<int64[2] s = {1, 1}> { h = Expand(x, s) y = Exp(h) }",
        "{ h = Clip(x) y = Exp(h) }",
        "<float s = {1}> { h = Mul(s, x) y = Exp(h) }",
        "<float s = {1}> { h = Div(x, s) y = Exp(h) }",
        "<float[1] s = {0}> { h = Add(x, s) y = Exp(h) }",
        "<float[4] s = {1, 1, 1, 1}> { h = Resize(x, , s) y = Exp(h) }",
        "<int64[1] s = {3}> { h = Split<axis = 1>(x, s) y = Exp(h) }",
    ],
)
def test_dropped(parse, prove, body: str):
    model = shapes.infer(parse(f"{X} {body}"))
    after = model.clone()
    assert noop.drop_noops(after) > 0
    assert "Exp" in ops(after) and len(after.graph) < len(model.graph)
    assert [v.name for v in after.graph.outputs] == ["y"] and prove(model, after) is None
    assert noop.drop_noops(after) == 0


@pytest.mark.parametrize(
    "body",
    [
        "{ y = Identity(x) }",  # alone gives the output its name
        "{ h = Exp(x) i = Cast<to = 11>(h) y = Cast<to = 1>(i) }",
        "<int64[8] p = {0, 0, 1, 0, 0, 0, 1, 0}> { h = Pad(x, p) y = Exp(h) }",
        "<int64[4] t = {0, 3, 2, 8}> { h = Reshape(x, t) y = Exp(h) }",
        "<int64[4] t = {0, 4, 3, 4}> { h = Reshape(x, t) y = Exp(h) }",
        "{ h = Transpose<perm = [0, 1, 3, 2]>(x) y = Exp(h) }",  # same size, other order
        "<int64[1] a = {3}, int64[1] b = {-9}, int64[1] c = {2}, int64[1] d = {-1}>"
        "{ h = Slice(x, a, b, c, d) y = Exp(h) }",  # same size, backwards
        "<float[4] s = {1, 1, 1.01, 1}> { h = Resize<mode = \"linear\">(x, , s) y = Exp(h) }",  # blurred
        "<float s = {1}> { h = Div(s, x) y = Exp(h) }",
        "<float[2,1,1,1] s = {0, 0}> { h = Add(z, s) y = Exp(h) }",
        "{ h, mask = Dropout(x) m = Cast<to = 1>(mask) y = Add(h, m) }",
        "<float r = {0.5}, bool t = {1}> { h = Dropout(x, r, t) y = Exp(h) }",
        "<float[3,1,1] s = {1, 1, 1}> { h = Mul(x, s) y = Exp(h) }",  # a parameter that is still 1
    ],
)  # fmt: skip
def test_kept(parse, body: str):
    model = shapes.infer(
        parse(f"{X} {body}".replace("(float[n,3,4,4] x)", "(float[n,3,4,4] x, float[1,3,4,4] z)"))
    )
    assert noop.drop_noops(model) == 0


def test_two_outputs_of_one_value_keep_both_names(parse, prove):
    model = shapes.infer(parse("g (float[n] x) => (float[n] y, float[n] z) { y = Exp(x) z = Identity(y) }"))
    assert noop.drop_noops(model) == 0
    model = shapes.infer(
        parse("g (float[n] x) => (float[n] y, float[n] z) { h = Exp(x) y = Identity(h) z = Identity(h) }")
    )
    after = model.clone()
    assert noop.drop_noops(after) == 1
    assert [v.name for v in after.graph.outputs] == ["y", "z"] and prove(model, after) is None


@pytest.mark.parametrize(
    ("step", "body", "left"),
    [
        (noop.merge_transposes,
         "{ h = Transpose<perm = [0, 2, 3, 1]>(x) y = Transpose<perm = [1, 3, 0, 2]>(h) }", 1),
        (noop.merge_transposes, "{ h = Transpose(x) y = Transpose<perm = [1, 0, 2, 3]>(h) }", 1),
        (noop.merge_reshapes, "<int64[4] t = {-1, 2, 3, 8}> { h = Flatten(x) y = Reshape(h, t) }", 1),
        (noop.merge_reshapes, "<int64[4] t = {0, 2, 3, 8}> { h = Flatten(x) y = Reshape(h, t) }", 2),
        (noop.merge_slices,
         "<int64[1] a = {0}, int64[1] b = {4}, int64[1] c = {2}, int64[1] d = {-1}, int64[1] e = {2}>"
         "{ h = Slice(x, a, b, c, e) y = Slice(h, a, b, d, e) }", 1),
        (noop.merge_slices, "<int64[1] a = {1}, int64[1] b = {4}, int64[1] c = {2}, int64[1] d = {-2}>"
         "{ h = Slice(x, a, b, c) y = Slice(h, a, b, d) }", 2),
    ],
)  # fmt: skip
def test_merged(parse, prove, step, body: str, left: int):
    model = shapes.infer(parse(f"{X} {body}"))
    after = model.clone()
    assert step(after) == 2 - left
    assert len(after.graph) == left and prove(model, after) is None


def test_a_value_that_others_read_is_not_merged_away(parse):
    model = shapes.infer(
        parse(
            "g (float[2,3] x) => (float[2,3] y, float[3,2] z){ h = Transpose(x) y = Transpose(h) z = Exp(h) }"
        )
    )
    assert noop.merge_transposes(model) == 0
