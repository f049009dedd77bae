"""Quantization: bit for bit with ONNX Runtime, gradients against their formula and finite differences."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploy.execute.module import GraphModule
from deploy.execute.ops import TABLE
from deploy.execute.program import Program
from deploy.execute.reference import open_graph
from deploy.graph.qdq import insert, quantize_array
from deploy.spec.plan import TensorPlan

RNG = np.random.default_rng(0)
PAIR = "g (float[a,b] x) => (float[c,d] y) { q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"

NET = """<ir_version: 8, opset_import: ["" : 21]>
g (float[N,3,8,8] x) => (float[N,10] y) <float[1] w1 = {0}, float[1] w2 = {0}, float[1] w3 = {0},
    int64[2] flat = {0, -1}> {
a = Conv<pads=[1,1,1,1]>(x, w1)  b = Relu(a)  c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)
d = Conv<pads=[1,1,1,1]>(c, w2)  e = Add(d, c)  f = Transpose<perm=[0,2,3,1]>(e)  h = Reshape(f, flat)
y = MatMul(h, w3) }"""


def network() -> ir.Model:
    model = ir.from_onnx_text(NET)
    for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (8, 8, 3, 3)), ("w3", (128, 10))):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(RNG.standard_normal(shape).astype(np.float32), name=name)
        value.shape = ir.Shape(shape)
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    return model


def quantized(model: ir.Model, kind: str, zero: int) -> ir.Model:
    """Pairs on all activations and codes for all weights, with power-of-two scales."""

    def plan(exponent: int, zero: int, kind: str, axis: int | None = None, count: int = 1) -> TensorPlan:
        return TensorPlan(
            type=kind,
            scale=(2.0**exponent,) * count,
            zero_point=(zero,) * count,
            axis=axis,
            origin="imported",
        )

    plans = {"x": plan(-5, zero, kind), "b": plan(-3, zero, kind), "c": plan(-3, zero, kind)}
    plans |= {"d": plan(-1, zero, kind), "e": plan(-1, zero, kind), "h": plan(-1, zero, kind)}
    weights = {"w1": plan(-5, 0, "int8", 0, 8), "w2": plan(-6, 0, "int8", 0, 8), "w3": plan(-5, 0, "int8")}
    codes = {
        n: quantize_array(model.graph.initializers[n].const_value.numpy(), p) for n, p in weights.items()
    }
    return insert(model, plans | weights, codes)


@pytest.mark.parametrize(
    ("kind", "zero"), [("int8", 0), ("uint8", 128), ("uint8", 3), ("int8", -100), ("int16", 7)]
)
@pytest.mark.parametrize("learning", [False, True])
def test_a_network_is_onnx_runtimes_bit_for_bit(kind, zero, learning):
    """Scales are powers of two: every sum is exact, in whatever order, so every rounding falls alike."""
    model = quantized(network(), kind, zero)
    x = RNG.standard_normal((16, 3, 8, 8)).astype(np.float32) * 2
    names = [v.name for node in model.graph for v in node.outputs if not v.name.endswith("/q")]
    with open_graph(model, optimised=False, expose=names) as session:
        wanted = session.run({"x": x}, names)
    module = GraphModule(model)
    feed = torch.from_numpy(x).requires_grad_(learning)
    with torch.set_grad_enabled(learning):
        found = module({"x": feed}, want=names)
    for name in names:
        assert found[name].requires_grad == learning, "of weights too, whose scales learn"
        np.testing.assert_array_equal(found[name].detach().numpy(), wanted[name], err_msg=name)
    assert len(np.unique(wanted["y"])) > 100


def test_codes_are_integers_unless_something_is_learned(run):
    graph = "g (float[a,b] x) => (int8[c,d] q) { q = QuantizeLinear(x, s, z) }"
    x = torch.tensor([[0.25, 0.75, -0.25, 1e9, -1e9, -3.0]])
    constants = {"s": np.array(0.5, np.float32), "z": np.array(1, np.int8)}
    (codes,) = run(graph, x, **constants)
    (carrier,) = run(graph, x.requires_grad_(), **constants)
    assert (codes.dtype, carrier.dtype) == (torch.int8, torch.float32)
    assert codes.tolist() == carrier.tolist() == [[1, 3, 1, 127, -128, -5]]  # halves go to the even number


def test_division_is_not_multiplication_by_the_reciprocal(like_ort):
    """A third of these would be rounded otherwise if 1 / scale were multiplied with."""
    scale = np.float32(0.0123)
    x = ((np.arange(-120, 120) + 0.5) * scale).astype(np.float32)[None]
    assert (np.rint(x / scale) != np.rint(x * (np.float32(1) / scale))).any()
    like_ort(PAIR, x, rtol=0, atol=0, s=np.array(scale), z=np.array(0, np.int8))


X = RNG.standard_normal((4, 6)).astype(np.float32) * 3
FORMS = {
    "per axis": (PAIR.replace("Linear(", "Linear<axis=0>("), (4,), np.int8),
    "last axis": (PAIR.replace("Linear(", "Linear<axis=-1>("), (6,), np.uint8),
    "blocks": (PAIR.replace("Linear(", "Linear<axis=1, block_size=2>("), (4, 3), np.int8),
    "uneven blocks": (PAIR.replace("Linear(", "Linear<axis=0, block_size=3>("), (2, 6), np.uint8),
    "16 bit": (PAIR, (), np.uint16),
    "signed 16 bit": (PAIR, (), np.int16),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(name, like_ort):
    graph, shape, kind = FORMS[name]
    scale = RNG.uniform(0.01, 0.1, shape).astype(np.float32)
    zero = RNG.integers(np.iinfo(kind).min // 2, np.iinfo(kind).max // 2, shape).astype(kind)
    like_ort(graph, X, rtol=0, atol=0, s=np.asarray(scale), z=np.asarray(zero))


def test_without_a_zero_point_codes_are_bytes(like_ort):
    like_ort(
        "g (float[a,b] x) => (uint8[c,d] q) { q = QuantizeLinear(x, s) }", X, s=np.array(0.1, np.float32)
    )
    like_ort(
        "g (float[a,b] x) => (int8[c,d] q) { q = QuantizeLinear<output_dtype=3>(x, s) }",
        X,
        s=np.array(0.1, np.float32),
    )


def test_dynamic(like_ort):
    graph = "g (float[a,b] x) => (uint8[c,d] q, float s, uint8 z) { q, s, z = DynamicQuantizeLinear(x) }"
    like_ort(graph, X)
    like_ort(graph, np.abs(X))
    like_ort(graph, np.zeros((2, 3), np.float32))


def test_integer_convolution(like_ort):
    like_ort(
        "g (uint8[n,c,h,w] x) => (uint8[n2,c2,h2,w2] y) { y = QLinearConv<pads=[1,0,0,1], group=2>"
        "(x, xs, xz, k, ks, kz, ys, yz, b) }",
        RNG.integers(0, 256, (2, 4, 5, 5), np.uint8),
        xs=np.array(0.25, np.float32),
        xz=np.array(7, np.uint8),
        k=RNG.integers(-128, 128, (6, 2, 3, 3)).astype(np.int8),
        ks=np.array([0.5, 0.25, 1, 2, 0.125, 1], np.float32),
        kz=np.zeros(6, np.int8),
        ys=np.array(16, np.float32),
        yz=np.array(100, np.uint8),
        b=RNG.integers(-999, 999, 6).astype(np.int32),
    )


LEARN = "g (float[a,b] x, float[e] s) => (float[c,d] y) {{ q = QuantizeLinear<{0}>(x, s, z) {1}"
PLAIN_LEARN = LEARN.format("axis=1", "y = DequantizeLinear<axis=1>(q, s, z) }")


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [("axis=1", ()), ("axis=0", (4,)), ("axis=-1", (6,)), ("axis=1, block_size=3", (4, 2))],
)
@pytest.mark.parametrize("zero", [0, 50, -128])
def test_gradients_are_finite_differences_of_the_smooth_part(attributes, shape, zero, run):
    """With what rounding added held fixed, the pair is smooth but for the two ends of its range."""
    x = torch.from_numpy(X).double()
    scale = torch.from_numpy(np.asarray(RNG.uniform(0.01, 0.05, shape))).double()
    zeros = np.full(shape, zero, np.int8)
    weights = torch.from_numpy(RNG.standard_normal(x.shape))
    graph = LEARN.format(attributes, f"y = DequantizeLinear<{attributes}>(q, s, z) }}")

    def spread(s: torch.Tensor) -> torch.Tensor:
        if s.ndim == 2:
            return s.repeat_interleave(3, 1)
        return s if s.ndim == 0 or "-1" in attributes else s[:, None]

    held = (x / spread(scale)).round() - x / spread(scale)

    def smooth(x: torch.Tensor, s: torch.Tensor) -> float:
        v = (x / spread(s) + held).clamp(-128 - zero, 127 - zero)
        return (v * spread(s) * weights).sum().item()

    fed, learned = x.clone().requires_grad_(), scale.clone().requires_grad_()
    (y,) = run(graph, fed, learned, z=zeros)
    assert (y * weights).sum().item() == pytest.approx(smooth(x, scale), rel=1e-12)
    (y * weights).sum().backward()
    for gradient, argument in ((fed.grad, 0), (learned.grad, 1)):
        for place in np.ndindex(*gradient.shape):
            step = torch.zeros_like(gradient)
            step[place] = 1e-6
            ends = []
            for sign in (1, -1):
                at = [x, scale]
                at[argument] = at[argument] + sign * step
                ends.append(smooth(*at))
            assert gradient[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-5)


def test_gradients_at_and_beyond_the_ends_are_those_of_the_paper(run):
    """Esser et al. 2020, equation 3: the ends themselves are outside."""
    x = torch.tensor([[-200.0, -129.0, -128.0, -127.6, 0.3, 0.5, 126.6, 127.0, 500.0]]).requires_grad_()
    scale = torch.tensor(1.0).requires_grad_()
    expected = [-128.0, -128.0, -128.0, -0.4, -0.3, -0.5, 0.4, 127.0, 127.0]
    for k, slope in enumerate(expected):
        (y,) = run(PLAIN_LEARN, x, scale, z=np.array(0, np.int8))
        of_x, of_scale = torch.autograd.grad(y[0, k], (x, scale))
        assert of_scale.item() == pytest.approx(slope, abs=1e-4)
        assert of_x[0, k].item() == (1 if -128 < x[0, k].item() < 127 else 0)


def test_a_carrier_passes_through_what_moves_data(run):
    graph = """g (float[a,b] x, float[e] s) => (float[c,d] y) { q = QuantizeLinear(x, s, z)
    r = Reshape(q, shape)  t = Transpose(r)  p = Pad(t, pads, z)  c = Concat<axis=0>(p, p)
    g = Gather<axis=0>(c, rows)  y = DequantizeLinear(g, s, z) }"""
    constants = {
        "shape": np.array([6, 4], np.int64),
        "pads": np.array([1, 0, 0, 0], np.int64),
        "rows": np.array([3, 0, 8], np.int64),
        "z": np.array(5, np.int8),
    }
    x, scale = torch.from_numpy(X).requires_grad_(), torch.tensor(0.05).requires_grad_()
    (y,) = run(graph, x, scale, **constants)
    y.sum().backward()
    assert x.grad.abs().sum() > 0
    assert scale.grad != 0
    (plain,) = run(graph, x.detach(), scale.detach(), **constants)
    assert torch.equal(y.detach(), plain)
    assert plain[1].eq(0).all()  # what was padded with the zero point


def test_eight_bit_floats():
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 21]>
    g (float[a,b] x, float s, float8e4m3fn z) => (float[c,d] y) {
    q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }""")
    program = Program(model.graph, TABLE, 21)
    x, scale = torch.tensor([[0.3, -1.1, 500.0, -1e6]]), torch.tensor(1.0)
    zero = torch.zeros(()).to(torch.float8_e4m3fn)
    (plain,) = program.run((x, scale, zero))
    (learned,) = program.run((x.requires_grad_(), scale, zero))
    assert plain.tolist() == learned.tolist() == [[0.3125, -1.125, 448.0, -448.0]]
    learned.sum().backward()
    assert x.grad.tolist() == [[1, 1, 0, 0]]


def test_codes_of_four_bits(run):
    graph = "g (float[a,b] x) => (int4[c,d] q) { q = QuantizeLinear<output_dtype=22>(x, s) }"
    (codes,) = run(graph, np.array([[-100.0, -3.6, 2.5, 9.0]], np.float32), s=np.array(1, np.float32))
    assert (codes.dtype, codes.tolist()) == (torch.int8, [[-8, -4, 2, 7]])
