"""A piece of a graph computes what it computed there; its disguise and its narrow form are still networks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploy.execute.compare import random_feeds
from deploy.execute.reference import open_graph
from deploy.graph.edit import constant
from deploy.graph.shapes import infer
from deploy.graph.subgraph import cut, disguise, shrunk
from deploy.graph.summary import tensor_specs


def graph(text: str, arrays: dict[str, np.ndarray] | None = None) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    for name, array in (arrays or {}).items():
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.dtype, value.shape = ir.DataType(ir.tensor(array).dtype), ir.Shape(array.shape)
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            for index, given in enumerate(node.inputs):
                if given is not None and given.name == name:
                    node.replace_input_with(index, value)
        model.graph.register_initializer(value)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}{number}"
    return infer(model)


CHAIN = graph(
    """g (float[n,4] x) => (float[n,4] y, float[n,4] c) {
        a = Relu(x)  b = Neg(a)  c = Mul(a, b)  d = Add(c, a)  y = Abs(d)
    }"""
)


@pytest.mark.parametrize("names", [{"Neg1"}, {"Neg1", "Mul2"}, {"Relu0", "Abs4"}, {"Mul2", "Add3"}])
def test_a_piece_computes_what_it_did_in_the_whole(names: set[str]) -> None:
    piece = cut(CHAIN, names)
    assert {node.name for node in piece.graph} == names
    feeds = random_feeds(tensor_specs(CHAIN.graph.inputs), 0)
    inner = ["a", "b", "c", "d"]
    with open_graph(CHAIN, optimised=False, expose=[n for n in inner if n != "c"]) as session:
        values = {**feeds, **session.run(feeds, inner)}
    ends = {spec.name: values[spec.name] for spec in tensor_specs(piece.graph.inputs)}
    with open_graph(piece, optimised=False) as session:
        for name, array in session.run(ends).items():
            np.testing.assert_array_equal(array, values[name])
    assert [v.name for v in CHAIN.graph.outputs] == ["y", "c"], "the whole is as it was"


def test_outputs_are_what_is_read_elsewhere() -> None:
    assert [v.name for v in cut(CHAIN, {"Relu0", "Neg1", "Mul2"}).graph.outputs] == ["a", "c"]
    assert [v.name for v in cut(CHAIN, {"Add3", "Abs4"}).graph.outputs] == ["y"]
    assert [v.name for v in cut(CHAIN, {"Add3", "Abs4"}).graph.inputs] == ["c", "a"]


def test_what_a_body_captures_is_an_input() -> None:
    model = graph(
        """g (bool c, float[2] x) => (float[2] y) {
            a = Neg(x)
            y = If(c) <then_branch = t () => (float[2] u) { u = Abs(a) },
                       else_branch = e () => (float[2] v) { v = Relu(a) }>
        }"""
    )
    piece = cut(model, {"If1"})
    assert sorted(v.name or "" for v in piece.graph.inputs) == ["a", "c"]
    with open_graph(piece) as session:
        found = session.run({"c": np.array(False), "a": np.array([-1, 2], np.float32)})
    assert found["y"].tolist() == [0, 2]


def test_what_a_body_elsewhere_captures_stays_outside() -> None:
    text = """g (float[2] x) => (float[2] y) { h = Neg(x)
    k = If(yes)<then_branch = t () => (float[2] u) { u = Neg(h) },
                    else_branch = e () => (float[2] v) { v = Abs(h) }>
    y = Exp(k) }"""
    piece = cut(graph(text, {"yes": np.bool_(True)}), {"Exp2"})
    assert [node.name for node in piece.graph] == ["Exp2"]
    assert [value.name for value in piece.graph.inputs] == ["k"] and not piece.graph.initializers


def test_quantized_values_stay_quantized_around_it() -> None:
    model = graph(
        """g (float[n,4] x) => (float[n,4] y) {
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
            a = Sigmoid(d)
            p = QuantizeLinear(a, s, z)  e = DequantizeLinear(p, s, z)
            y = Neg(e)
        }""",
        {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)},
    )
    assert [node.op_type for node in cut(model, {"Sigmoid2"}).graph] == [
        "QuantizeLinear", "DequantizeLinear", "Sigmoid", "QuantizeLinear", "DequantizeLinear",
    ]  # fmt: skip


def test_nothing_is_said_beside_the_network() -> None:
    model = CHAIN.clone()
    secret = "/home/user/secret.py"
    model.metadata_props["origin"] = model.doc_string = model.graph.doc_string = secret
    model.graph.metadata_props["origin"] = secret
    for node in model.graph:
        node.metadata_props["pkg.torch.stack_trace"] = node.doc_string = secret
        node.outputs[0].metadata_props["origin"] = node.outputs[0].doc_string = secret
    model.graph.inputs[0].metadata_props["origin"] = secret
    proto = ir.to_proto(cut(model, {"Relu0", "Neg1"}))
    assert b"secret" not in proto.SerializeToString()


CONVOLUTION = {
    "w": np.random.default_rng(0).normal(0.5, 0.1, (128, 96, 3, 3)).astype(np.float32),
    "b": np.random.default_rng(1).normal(0, 2, 128).astype(np.float32),
    "low": np.array(0, np.float32),
    "high": np.array(6, np.float32),
    "sizes": np.array([0, 128, -1], np.int64),
}


def convolution() -> ir.Model:
    return graph(
        """g (float[n,96,5,5] x) => (float[n,128,9] y) {
            c = Conv(x, w, b)  d = Clip(c, low, high)  y = Reshape(d, sizes)
        }""",
        CONVOLUTION,
    )


def constants(model: ir.Model) -> dict[str, np.ndarray]:
    found = {name: constant(value) for name, value in model.graph.initializers.items()}
    return {name: array for name, array in found.items() if array is not None}


def test_weights_are_exchanged_for_numbers_as_large() -> None:
    model = cut(convolution(), {"Conv0", "Clip1", "Reshape2"})
    found = constants(disguise(model))
    for name in "wb":
        old, new = CONVOLUTION[name], found[name]
        assert new.shape == old.shape and new.dtype == old.dtype and np.isin(new, old).mean() < 0.01
        assert old.min() <= new.min() and new.max() <= old.max()
        assert np.ptp(new) > 0.9 * np.ptp(old)
    for name in ("low", "high", "sizes"):
        assert np.array_equal(found[name], CONVOLUTION[name])
    assert np.array_equal(constants(convolution())["w"], CONVOLUTION["w"])


def test_products_of_scales_stay_products() -> None:
    rng = np.random.default_rng(0)
    scale, product = (rng.uniform(0.01, 0.1, 8).astype(np.float32) for _ in range(2))
    product = scale * np.float32(0.07)
    model = graph(
        """g (float[n,4] x) => (float[n,8] y) {
            w = DequantizeLinear<axis=0>(codes, s, z)
            b = DequantizeLinear<axis=0>(bias, t, u)
            y = Gemm<transB=1>(x, w, b)
        }""",
        {
            "codes": rng.integers(-127, 128, (8, 4), np.int8), "s": scale, "z": np.zeros(8, np.int8),
            "bias": rng.integers(-999, 999, 8, np.int32), "t": product, "u": np.zeros(8, np.int32),
        },
    )  # fmt: skip
    found = constants(disguise(model))
    assert len(set(found["s"])) == 1 and np.array_equal(found["t"], found["s"] * np.float32(0.07))


def test_a_narrow_form_is_a_network_of_the_same_kind() -> None:
    narrow = shrunk(convolution())
    assert narrow is not None
    assert constants(narrow)["w"].shape == (16, 12, 3, 3) or constants(narrow)["w"].shape == (8, 6, 3, 3)
    wide = constants(narrow)["w"].shape[0]
    assert constants(narrow)["sizes"].tolist() == [0, wide, -1]
    (spec,) = tensor_specs(narrow.graph.inputs)
    with open_graph(narrow) as session:
        assert session.run(random_feeds([spec], 0))["y"].shape == (2, wide, 9)


def test_a_depthwise_convolution_keeps_its_groups() -> None:
    weights = np.ones((64, 1, 3, 3), np.float32)
    narrow = shrunk(
        graph("g (float[1,64,8,8] x) => (float[1,64,6,6] y) { y = Conv<group=64>(x, w) }", {"w": weights})
    )
    assert narrow is not None
    with open_graph(narrow) as session:
        assert session.run(random_feeds(tensor_specs(narrow.graph.inputs), 0))["y"].shape[1] < 64


def test_what_has_nothing_in_common_does_not_shrink() -> None:
    weights = np.ones((17, 13), np.float32)
    assert shrunk(graph("g (float[n,17] x) => (float[n,13] y) { y = MatMul(x, w) }", {"w": weights})) is None
