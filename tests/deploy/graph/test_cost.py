"""Costs against brute force: loops that count products, numpy's own results, lifetimes replayed by hand."""

import itertools
import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.graph import cost
from deploy.graph.edit import weight_bytes
from deploy.graph.shapes import infer

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def model_of(text: str) -> ir.Model:
    return infer(ir.from_onnx_text(HEAD + text))


def single(op: str, shapes: list[tuple[int, ...]], outputs: int = 1, **attributes: object) -> ir.Model:
    """A graph of one node whose operands, however many, are all inputs."""
    inputs = [ir.val(f"x{i}", ir.DataType.FLOAT, shape) for i, shape in enumerate(shapes)]
    node = ir.node(op, inputs, attributes=attributes, num_outputs=outputs, name="node")
    for i, value in enumerate(node.outputs):
        value.name = f"y{i}"
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": 23})
    return infer(ir.Model(graph, ir_version=10))


def taps(size: int, kernel: int, stride: int, dilation: int, pad: int) -> int:
    """Output positions of a convolution along one axis, found by sliding a window."""
    padded = size + 2 * pad
    return sum(1 for start in range(0, padded, stride) if start + (kernel - 1) * dilation < padded)


@given(
    channels=st.sampled_from(
        [(1, 2, 3), (2, 1, 2), (4, 1, 1), (2, 2, 1)]
    ),  # groups, inputs and outputs of each
    size=st.integers(5, 9),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pad=st.integers(0, 2),
)
@settings(max_examples=25, deadline=None)
def test_convolution_by_counting_products(channels, size, kernel, stride, dilation, pad):
    groups, fan_in, fan_out = channels
    model = single(
        "Conv",
        [(2, groups * fan_in, size, size + 1), (groups * fan_out, fan_in, kernel, kernel)],
        group=groups, strides=[stride] * 2, dilations=[dilation] * 2, pads=[pad] * 4,
    )  # fmt: skip
    products = 0
    for _batch, _out, _y, _x, _in, _ky, _kx in itertools.product(
        range(2), range(groups * fan_out),
        range(taps(size, kernel, stride, dilation, pad)),
        range(taps(size + 1, kernel, stride, dilation, pad)),
        range(fan_in), range(kernel), range(kernel),
    ):  # fmt: skip
        products += 1
    assert cost.macs(model) == products


def test_transposed_convolution_spreads_every_input_element():
    model = single("ConvTranspose", [(1, 4, 5, 5), (4, 3, 2, 2)], group=2, strides=[2, 2])
    assert cost.macs(model) == 4 * 5 * 5 * 3 * 2 * 2


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((2, 3), (3, 4)),
        ((5, 1, 2, 3), (4, 3, 6)),
        ((3,), (3, 4)),
        ((2, 3), (3,)),
        ((3,), (3,)),
        ((7, 2, 3), (3,)),
    ],
)
def test_matmul_as_numpy_sees_it(left, right):
    result = np.matmul(np.ones(left), np.ones(right))  # each element sums as many ones as it has products
    assert cost.macs(single("MatMul", [left, right])) == int(result.sum())


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm(trans_a, trans_b):
    shapes = [(3, 2) if trans_a else (2, 3), (5, 3) if trans_b else (3, 5)]
    assert cost.macs(single("Gemm", shapes, transA=trans_a, transB=trans_b)) == 2 * 3 * 5


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("b i d, b j d -> b i j", [(2, 3, 4), (2, 5, 4)]),
        ("...ij,...jk->...ik", [(6, 1, 2, 3), (5, 3, 4)]),
        ("i,j", [(2,), (3,)]),
        ("ii,i->i", [(3, 3), (3,)]),
    ],
)
def test_einsum_by_counting_products(equation, shapes):
    # Summing over nothing but the indices that the result drops: ones add up to the number of products.
    expected = int(np.einsum(equation.replace(" ", ""), *(np.ones(s) for s in shapes)).sum())
    assert cost.macs(single("Einsum", shapes, equation=equation)) == expected


def test_einsum_of_one_operand_multiplies_nothing():
    assert cost.macs(single("Einsum", [(2, 3)], equation="ij->ji")) == 0


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_recurrent_layers(op, gates, direction):
    steps, samples, inputs, hidden = 7, 2, 3, 5
    ways = 2 if direction == "bidirectional" else 1
    shapes = [(steps, samples, inputs), (ways, gates * hidden, inputs), (ways, gates * hidden, hidden)]
    model = single(op, shapes, hidden_size=hidden, direction=direction)
    assert cost.macs(model) == steps * samples * ways * gates * (hidden * inputs + hidden * hidden)


def test_attention_counts_both_products_over_heads():
    four = single("Attention", [(2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 6)])
    three = single("Attention", [(2, 3, 32), (2, 5, 16), (2, 5, 12)], q_num_heads=4, kv_num_heads=2)
    assert cost.macs(four) == cost.macs(three) == 2 * 4 * 3 * 5 * (8 + 6)


NET = """g (float[n,3,8,8] x) => (float[n,c] y)
  <int64[2] s = {0, -1}, float k = {3}> {
  [conv] t1 = Conv(x, w)
  [bn] t2 = BatchNormalization(t1, g, b, m, v)
  [scale] t3 = Mul(t2, k)
  [flat] t4 = Reshape(t3, s)
  [head] y = MatMul(t4, f)
}"""


def net() -> ir.Model:
    shapes = {"w": (4, 3, 3, 3), "g": (4,), "b": (4,), "m": (4,), "v": (4,), "f": (144, 2)}
    weights = [ir.tensor(np.ones(shape, np.float32), name=name) for name, shape in shapes.items()]
    model = ir.from_onnx_text(HEAD + NET, initializers=weights)
    return infer(model)


def test_parameters_leave_out_statistics_shapes_and_single_numbers():
    model = net()
    assert cost.parameters(model) == 4 * 27 + 4 + 4 + 144 * 2
    assert [c.parameters for c in cost.node_costs(model)] == [108, 8, 0, 0, 288]
    assert sum(c.weight_bytes for c in cost.node_costs(model)) == weight_bytes(model)


def test_costs_scale_with_the_batch():
    model = net()
    assert cost.macs(model) == 4 * 36 * 27 + 144 * 2
    assert cost.macs(model, batch=5) == 5 * cost.macs(model)
    conv = cost.node_costs(model, batch=2)[0]
    assert (conv.node, conv.op) == ("conv", "Conv")
    assert conv.activation_bytes == 2 * 4 * (3 * 64 + 4 * 36)


def test_a_shared_weight_counts_once():
    model = model_of("""g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1,2,3,4}> {
      [a] t = MatMul(x, w) [b] y = MatMul(t, w) }""")
    assert cost.parameters(model) == 4
    assert [c.weight_bytes for c in cost.node_costs(model)] == [16, 0]


def test_integer_weights_are_parameters():
    model = model_of("""g (float[1,2] x) => (float[1,2] y)
      <int8[2,2] w = {1,2,3,4}, float s = {0.1}, int8 z = {0}> {
      [dq] d = DequantizeLinear(w, s, z) [dot] y = MatMul(x, d) }""")
    assert cost.parameters(model) == 4


def test_a_free_size_is_unknown_and_named():
    model = model_of("""g (float[n,3,h,8] x) => (float[n,4,a,b] y, float[n,3,h,8] z) <float[4,3,1,1] w = {
      1,1,1,1,1,1,1,1,1,1,1,1}> { [conv] y = Conv(x, w) [relu] z = Relu(x) }""")
    assert cost.macs(model) is None and cost.uncounted(model) == ("conv",)
    assert cost.peak_activation_bytes(model) is None
    assert cost.node_costs(model)[1].macs == 0 and cost.node_costs(model)[1].activation_bytes is None


def test_a_custom_operation_and_a_body_that_computes_are_unknown():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21, "acme" : 1]>'
        """g (bool c, float[2,2] x) => (float[2,2] y) {
      [custom] t = acme.Warp(x)
      [if] y = If(c) <
        then_branch = yes () => (float[2,2] u) { u = MatMul(t, t) },
        else_branch = no () => (float[2,2] v) { v = Neg(t) }>
    }"""
    )
    assert cost.uncounted(model) == ("custom", "if")


def test_peak_is_the_largest_sum_of_living_values():
    # a and b live together while c is made; x is dead by then.
    model = model_of("""g (float[10] x) => (float[40] y) <int64[1] four = {4}, int64[1] two = {2}> {
      a = Tile(x, four) b = Tile(x, two) c = Concat<axis = 0>(b, b) y = Add(a, c) }""")
    live = {"a": 10 + 40, "b": 10 + 40 + 20, "c": 40 + 20 + 40, "y": 40 + 40 + 40}
    assert cost.peak_activation_bytes(model) == 4 * max(live.values())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_peak_by_replaying_every_moment(picks):
    """Chains with shortcuts: values are looked at anew at every step, without counting on when they die."""
    values = [ir.val("x", ir.DataType.FLOAT, (3, 5))]
    nodes = []
    for i, pick in enumerate(picks):
        node = ir.node(
            "Concat", [values[-1], values[max(0, len(values) - 1 - pick)]], {"axis": 0}, name=f"n{i}"
        )
        node.outputs[0].name = f"v{i}"
        nodes.append(node)
        values.append(node.outputs[0])
    graph = ir.Graph(values[:1], values[-1:], nodes=nodes, opset_imports={"": 21})
    model = infer(ir.Model(graph, ir_version=10))
    rows = [3]
    for i, pick in enumerate(picks):
        rows.append(rows[-1] + rows[max(0, i - pick)])
    moments = []
    for now in range(len(nodes)):
        needed = {0} if now == 0 else set()
        for later in range(now, len(nodes)):
            needed |= {i for i in (later, max(0, later - picks[later])) if i <= now}
        moments.append(sum(rows[i] for i in needed) + rows[now + 1])
    assert cost.peak_activation_bytes(model) == 4 * 5 * max(moments)


def test_a_graph_without_nodes_holds_its_inputs():
    value = ir.val("x", ir.DataType.FLOAT, (2, 3))
    model = ir.Model(ir.Graph([value], [value], nodes=[], opset_imports={"": 21}), ir_version=10)
    assert cost.peak_activation_bytes(model) == 4 * math.prod((2, 3))
    assert cost.macs(model) == 0
