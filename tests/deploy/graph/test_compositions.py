import re

import numpy as np
import onnx_ir as ir
import pytest

from deploy.graph import compositions, shapes

NUMBERS = {
    "three": 3, "six": 6, "zero": 0, "sixth": 1 / 6, "half": 0.5, "one": 1, "two": 2, "root2": 2**0.5,
    "fifth": 0.2, "inv_root2": 0.5**0.5, "k": 0.044715, "r": (2 / np.pi) ** 0.5, "eps": 1e-5, "minus": -0.5,
    "seven": 7,
}  # fmt: skip


def model_of(parse, body: str, arrays=None, inputs: str = "float[n,4,8] x") -> ir.Model:
    words = re.findall(r"\w+", body)
    constants = {n: np.asarray(np.float32(v)) for n, v in NUMBERS.items() if n in words} | (arrays or {})
    return parse(f"g ({inputs}) => (float[a,b,c] y) {{ {body} }}", constants)


def after(model: ir.Model, step) -> ir.Model:
    result = shapes.infer(model.clone())
    step(result)
    return result


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) [end] y = Div(c, six)", "HardSwish"),
        ("a = Add(three, x) b = Clip(a, zero, six) c = Div(b, six) [end] y = Mul(c, x)", "HardSwish"),
        ("a = Add(x, three) b = Clip(a, zero, six) c = Mul(sixth, b) [end] y = Mul(x, c)", "HardSwish"),
        ("a = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) [end] y = Mul(x, a)", "HardSwish"),
        ("a = Add(x, three) b = Clip(a, zero, six) [end] y = Div(b, six)", "HardSigmoid"),
        ("a = Mul(x, fifth) b = Add(a, half) [end] y = Clip(b, zero, one)", "HardSigmoid"),
        ("a = Div(x, root2) b = Erf(a) c = Add(b, one) d = Mul(x, c) [end] y = Mul(d, half)", "Gelu"),
        ("h = Mul(x, half) a = Mul(x, inv_root2) b = Erf(a) c = Add(one, b) [end] y = Mul(h, c)", "Gelu"),
        ("a = Div(x, root2) b = Erf(a) c = Add(b, one) d = Mul(half, c) [end] y = Mul(x, d)", "Gelu"),
        ("p = Pow(x, three) q = Mul(p, k) s = Add(x, q) t = Mul(s, r) u = Tanh(t) v = Add(u, one)"
         " w = Mul(x, v) [end] y = Mul(w, half)", "Gelu"),
        ("p = Mul(x, x) q = Mul(p, k) s = Add(q, one) m = Mul(x, r) t = Mul(m, s) u = Tanh(t) v = Add(one, u)"
         " w = Mul(half, x) [end] y = Mul(w, v)", "Gelu"),
    ],
)  # fmt: skip
def test_spellings(parse, prove, body: str, wanted: str):
    model = model_of(parse, "g = Exp(x) " + re.sub(r"\bx\b", "g", body))
    result = after(model, compositions.recognise_activations)
    assert ops(result) == ["Exp", wanted] and prove(model, result) is None
    assert result.graph.node(1).name == "end"


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, three) b = Clip(a, zero, seven) c = Mul(x, b) y = Div(c, six)",  # another limit
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, seven)",  # another divisor
        "a = Erf(x) b = Add(a, one) c = Mul(x, b) y = Mul(c, half)",  # without the square root of two
        "a = Sigmoid(x) y = Mul(x, a)",
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(z, b) y = Div(c, six)",  # another value
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) d = Div(c, six) y = Add(d, b)",  # also read
        "a = Clip(x, zero, six) y = Mul(a, one)",
    ],
)
def test_not_mistaken(parse, body: str):
    model = model_of(parse, body, inputs="float[n,4,8] x, float[n,4,8] z")
    assert compositions.recognise_activations(shapes.infer(model)) == 0


VARIANCE = "m = ReduceMean(x, ax) d = Sub(x, m) {square} v = ReduceMean(p, ax) e = Add(v, eps) "
LAYER = {"w": np.linspace(0.5, 2, 8).astype(np.float32), "o": np.linspace(-1, 1, 8).astype(np.float32)}


@pytest.mark.parametrize("square", ["p = Pow(d, two)", "p = Mul(d, d)"])
@pytest.mark.parametrize(
    ("rest", "left"),
    [
        ("s = Sqrt(e) q = Div(d, s) g = Mul(q, w) [end] y = Add(g, o)", 1),
        ("s = Sqrt(e) t = Reciprocal(s) q = Mul(t, d) g = Mul(w, q) [end] y = Add(o, g)", 1),
        ("s = Sqrt(e) t = Div(one, s) q = Mul(t, d) g = Mul(w, q) [end] y = Add(o, g)", 1),
        ("t = Pow(e, minus) q = Mul(d, t) g = Mul(q, w) [end] y = Add(g, o)", 1),
        ("s = Sqrt(e) q = Div(d, s) [end] g = Mul(q, w) y = Add(g, x)", 2),
    ],
)
def test_layer_norm(parse, prove, square: str, rest: str, left: int):
    body = VARIANCE.format(square=square) + rest
    arrays = {n: a for n, a in LAYER.items() if n in re.findall(r"\w+", rest)}
    model = model_of(parse, body, {"ax": np.array([-1])} | arrays)
    result = after(model, compositions.recognise_layer_norm)
    assert len(result.graph) == left and prove(model, result) is None
    node = result.graph.node(0)
    assert (node.op_type, node.name, node.attributes.get_int("axis")) == ("LayerNormalization", "end", -1)


def test_layer_norm_over_two_axes(parse, prove):
    body = VARIANCE.format(square="p = Pow(d, two)") + "s = Sqrt(e) q = Div(d, s) g = Mul(q, w) y = Add(g, o)"
    arrays = {
        "ax": np.array([1, 2]),
        "w": np.ones((1, 4, 8), np.float32) * 2,
        "o": np.ones((4, 8), np.float32),
    }
    model = model_of(parse, body, arrays)
    result = after(model, compositions.recognise_layer_norm)
    assert ops(result) == ["LayerNormalization"] and prove(model, result) is None


@pytest.mark.parametrize("axes", [[1], [0, 2]])
def test_other_axes_are_not_layer_norm(parse, axes: list[int]):
    body = VARIANCE.format(square="p = Pow(d, two)") + "s = Sqrt(e) q = Div(d, s) g = Mul(q, w) y = Add(g, o)"
    model = model_of(parse, body, {"ax": np.array(axes)} | LAYER)
    assert compositions.recognise_layer_norm(shapes.infer(model)) == 0
