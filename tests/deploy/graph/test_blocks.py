"""Blocks: the rule on small graphs, and on random ones that every partition is one, convex and repeatable."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import ModelError
from deploy.graph.blocks import COMPUTE, Block, activation_from, partition

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def blocks_of(text: str) -> list[str]:
    """Each block as its nodes' names in one string, in the order of the partition."""
    return [" ".join(b.nodes) for b in partition(ir.from_onnx_text(HEAD + text))]


def test_norm_bias_activation_and_shape_operations_join_their_producer():
    assert blocks_of("""g (float[1,2,4,4] x) => (float[a,b] y)
      <float[2,2,1,1] w = {1,2,3,4}, float[2] v = {1,1}, float[1,2,1,1] c = {1,2}, int64[2] s = {1,-1}> {
      [conv] t1 = Conv(x, w)
      [bn] t2 = BatchNormalization(t1, v, v, v, v)
      [bias] t3 = Add(c, t2)
      [relu] t4 = Relu(t3)
      [reshape] t5 = Reshape(t4, s)
      [transpose] y = Transpose(t5)
    }""") == ["conv bn bias relu reshape transpose"]


def test_a_residual_add_joins_its_later_producer_with_what_follows():
    assert blocks_of("""g (float[1,2,4,4] x) => (float[1,2,4,4] y) <float[2,2,1,1] w = {1,2,3,4}> {
      [a] t1 = Conv(x, w)
      [a_relu] t2 = Relu(t1)
      [b] t3 = Conv(t2, w)
      [add] t4 = Add(t3, t2)
      [relu] y = Relu(t4)
    }""") == ["a a_relu", "b add relu"]


def test_an_add_behind_a_moved_shortcut_does_not_close_a_cycle():
    # The shortcut is moved last, by nodes of the first block, which the second block depends on.
    assert blocks_of("""g (float[1,2,4,4] x) => (float[1,2,4,4] y)
      <float[2,2,1,1] w = {1,2,3,4}, int64[1] i = {0}, int64[1] n = {4}, int64[1] k = {2}> {
      [a] t1 = Conv(x, w)
      [b] t2 = Conv(t1, w)
      [slice] t3 = Slice(t1, i, n, k)
      [add] y = Add(t2, t3)
    }""") == ["a slice", "b add"]


def test_a_producer_with_two_readers_keeps_its_result():
    assert blocks_of("""g (float[1,2,4,4] x) => (float[1,2,4,4] y, float[1,2,4,4] z)
      <float[2,2,1,1] w = {1,2,3,4}> {
      [a] t = Conv(x, w)
      [relu] y = Relu(t)
      [pool] z = MaxPool<kernel_shape = [1, 1]>(t)
    }""") == ["a", "relu", "pool"]


SWISH = "[s] t1 = Sigmoid(t) [m] y = Mul(t, t1)"
HARD_SWISH = "[a] t1 = Add(t, three) [c] t2 = Clip(t1, zero, six) [m] t3 = Mul(t, t2) [d] y = Div(t3, six)"
GELU_ERF = (
    "[d] t1 = Div(t, six) [e] t2 = Erf(t1) [a] t3 = Add(t2, three) [m] t4 = Mul(t, t3) [h] y = Mul(t4, six)"
)
GELU_TANH = (
    "[p] t1 = Pow(t, three) [q] t2 = Mul(t1, six) [r] t3 = Add(t, t2) [u] t4 = Mul(t3, six) [v] t5 = Tanh(t4)"
    " [w] t6 = Add(t5, three) [m] t7 = Mul(t, t6) [h] y = Mul(t7, three)"
)


@pytest.mark.parametrize("spelling", [SWISH, HARD_SWISH, GELU_ERF, GELU_TANH])
def test_an_activation_spelled_out_joins_what_computes_its_argument(spelling):
    text = f"""g (float[1,2] x) => (float[1,2] y)
      <float[2,2] k = {{1,2,3,4}}, float zero = {{0}}, float three = {{3}}, float six = {{6}}> {{
      [dot] t = MatMul(x, k) {spelling} }}"""
    assert len(blocks_of(text)) == 1


def test_a_product_with_something_else_is_no_activation():
    text = """g (float[1,2,4,4] x) => (float[1,2,4,4] y) <float[2,2,1,1] w = {1,2,3,4}> {
      [a] t = Conv(x, w)
      [pool] t1 = GlobalAveragePool(t)
      [excite] t2 = Conv(t1, w)
      [gate] t3 = HardSigmoid(t2)
      [scale] y = Mul(t, t3)
    }"""
    assert blocks_of(text) == ["a", "pool", "excite gate", "scale"]
    model = ir.from_onnx_text(HEAD + text)
    assert activation_from(model.graph[0].outputs[0]) is None


def test_the_arithmetic_of_a_free_shape_stays_with_its_data():
    assert blocks_of(
        """g (float[n,4,4] x) => (float[a,b] y)
      <float[4,4] w, int64 i = {0}, int64[1] o = {-1}, int64[1] z = {0}> {
      [dot] t = MatMul(x, w)
      [shape] s = Shape(t)
      [gather] s1 = Gather(s, i)
      [unsqueeze] s2 = Unsqueeze(s1, z)
      [concat] s3 = Concat<axis = 0>(s2, o)
      [reshape] y = Reshape(t, s3)
    }""".replace("float[4,4] w,", "float[4,4] w = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1},")
    ) == ["dot shape gather unsqueeze concat reshape"]


def test_attention_products_are_compute_and_softmax_stands_alone():
    assert blocks_of("""g (float[1,2,2] q, float[1,2,2] k) => (float[1,2,2] y) <float s = {0.5}> {
      [kt] k1 = Transpose<perm = [0, 2, 1]>(k)
      [scores] t1 = MatMul(q, k1)
      [scaled] t2 = Mul(t1, s)
      [softmax] t3 = Softmax(t2)
      [mix] y = MatMul(t3, k)
    }""") == ["kt", "scores scaled", "softmax", "mix"]


def test_a_node_with_a_body_is_a_block_and_what_it_captures_counts():
    model = ir.from_onnx_text(
        HEAD
        + """g (bool c, float[2,2] x) => (float[2,2] y) {
      [a] t = MatMul(x, x)
      [if] t1 = If(c) <
        then_branch = yes () => (float[2,2] u) { [inner] u = Relu(t) },
        else_branch = no () => (float[2,2] v) { [other] v = Neg(t) }>
      [b] t2 = MatMul(t, t)
      [relu] y1 = Relu(t2)
      [add] y = Add(t1, y1)
    }"""
    )
    assert [b.nodes for b in partition(model)] == [("a",), ("if",), ("b", "relu", "add")]


def test_id_and_kind_are_those_of_the_first_node():
    model = ir.from_onnx_text(
        HEAD + "g (float[2,2] x) => (float[2,2] y) { [d] t = MatMul(x, x) [r] y = Relu(t) }"
    )
    assert partition(model) == (Block(id="d", nodes=("d", "r"), kind="MatMul"),)


def test_names_must_be_there_and_differ():
    with pytest.raises(ModelError, match="Relu has no name"):
        partition(ir.from_onnx_text(HEAD + "g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    with pytest.raises(ModelError, match="two nodes are named 'r'"):
        partition(
            ir.from_onnx_text(HEAD + "g (float[2] x) => (float[2] y) { [r] t = Relu(x) [r] y = Relu(t) }")
        )


UNARY = (
    "Conv",
    "Relu",
    "Sigmoid",
    "Transpose",
    "MaxPool",
    "Softmax",
    "BatchNormalization",
    "AddConstant",
    "Shape",
)
BINARY = ("Add", "Mul", "MatMul", "Concat", "Reshape")


@st.composite
def graphs(draw: st.DrawFn) -> ir.Model:
    """A random acyclic graph; shapes do not fit, as nothing here looks at them."""
    values = [ir.Value(name="x"), ir.Value(name="z")]
    constant = ir.Value(name="c", const_value=ir.tensor(np.ones(1, np.float32), name="c"))
    nodes = []
    for i in range(draw(st.integers(1, 25))):
        op = draw(st.sampled_from(UNARY + BINARY))
        # Mostly recent values, so that chains and diamonds appear and not only wide fans.
        pick = st.integers(0, min(4, len(values) - 1)).map(lambda k: values[-1 - k])
        inputs = [draw(pick), draw(pick)] if op in BINARY else [draw(pick)]
        if op == "AddConstant":
            op, inputs = "Add", [constant, *inputs]
        outputs = draw(st.integers(1, 2)) if op == "Transpose" else 1  # two: as Split
        node = ir.node("Split" if outputs == 2 else op, inputs, num_outputs=outputs, name=f"n{i}")
        for j, value in enumerate(node.outputs):
            value.name = f"v{i}_{j}"
        nodes.append(node)
        values.extend(node.outputs)
    ends = [v for v in values[2:] if not v.consumers()] + draw(
        st.lists(st.sampled_from(values[2:]), max_size=2)
    )
    graph = ir.Graph(
        values[:2], list(dict.fromkeys(ends)), nodes=nodes, initializers=[constant], opset_imports={"": 21}
    )
    return ir.Model(graph, ir_version=10)


@given(graphs())
@settings(max_examples=150, deadline=None)
def test_every_partition_is_one_and_its_blocks_can_run_in_order(model):
    blocks = partition(model)
    nodes = {n.name: n for n in model.graph}
    assert sorted(n for b in blocks for n in b.nodes) == sorted(nodes)
    place = {n: i for i, b in enumerate(blocks) for n in b.nodes}
    order = list(nodes)
    for block in blocks:
        assert list(block.nodes) == sorted(block.nodes, key=order.index)
        assert (block.id, block.kind) == (block.nodes[0], nodes[block.id].op_type)
        assert not any(nodes[n].op_type in COMPUTE for n in block.nodes[1:])
    # Every edge stays in its block or goes to a later one: so no path leaves a block and comes back.
    for node in model.graph:
        for successor in node.successors():
            assert place[node.name] <= place[successor.name]
    assert partition(model) == blocks
    assert partition(model.clone()) == blocks


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_an_activation_has_one_way_in_and_one_way_out(model):
    for node in model.graph:
        for value in node.outputs:
            function = activation_from(value)
            if function is None:
                continue
            assert set(value.consumers()) <= set(function) and not value.is_graph_output()
            for part in function[:-1]:
                assert set(part.successors()) <= set(function)
