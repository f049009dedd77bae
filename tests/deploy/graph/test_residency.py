"""Which nodes a unit computes: conditions hold where they should and only there; blocks and MACs add up."""

from __future__ import annotations

import datetime
import re

import numpy as np
import onnx_ir as ir
import pytest

from deploy.graph import shapes
from deploy.graph.blocks import partition
from deploy.graph.cost import macs
from deploy.graph.residency import holds, residency
from deploy.spec.residency import Residency
from deploy.spec.unit import ComputeUnit, Condition, UnitRule

TODAY = datetime.date(2026, 11, 21)
HEAD = '<ir_version: 10, opset_import: ["" : 21]> '


WEIGHTS = {
    name: np.zeros(shape, np.float32)
    for name, shape in (
        *(("w", (6, 3, 3, 5)), ("b", (6,)), ("m", (4, 5))),
        *(("u", (4, 2, 3, 3)), ("v", (4,)), ("f", (64, 10)), ("k", (1, 3))),
    )
}


def graph(text: str) -> ir.Model:
    """A graph with those of the weights that it reads."""
    tensors = [ir.tensor(a, name=n) for n, a in WEIGHTS.items() if re.search(rf"[(,] ?{n}\b(?=[,)])", text)]
    model = ir.from_onnx_text(HEAD + text, initializers=tensors)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.type = ir.TensorType(value.const_value.dtype)
        value.shape = ir.Shape(value.const_value.numpy().shape)
    return shapes.infer(model)


def node(text: str) -> ir.Node:
    """The node called ``it`` of a graph."""
    return next(n for n in graph(text).graph if n.name == "it")


def unit(runs: str = "", **rules: UnitRule) -> ComputeUnit:
    return ComputeUnit(runs=tuple(runs.split()), otherwise="CPU", rule=rules, source="s", date=TODAY)


def rule(operations: str = "", effect: str = "leaves", **when: object) -> UnitRule:
    return UnitRule.model_validate(
        {
            "operations": tuple(operations.split()),
            "when": when,
            "effect": effect,
            "words": "for a reason",
            "said": "vendor",
            "source": "s",
            "date": TODAY,
        }
    )


CONV = """g (float[1, 3, 9, 20] x) => (float y)
    { [it] y = Conv<strides = [1, 5], dilations = [1, 2], kernel_shape = [3, 5]>(x, w, b) }"""
POOL = """g (float[1, 3, 8, 8] x) => (float y)
    { [it] y = AveragePool<kernel_shape = [8, 8], strides = [8, 8]>(x) }"""
INNER = "g (float[2, 7] x) => (float z) { p = Relu(x) [it] q = Abs(p) z = Relu(q) }"
ENDS = "g (float[2, 7] x) => (float z) { [it] z = Relu(x) }"
FIVE = "g (float[1, 2, 3, 4, 5] x) => (float z) { [it] z = Relu(x) }"
BATCH = "g (float[n, 4] x) => (float z) { [it] z = Relu(x) }"
FREE = "g (float[n, m] x) => (float z) { [it] z = Relu(x) }"
WHOLE = "g (int32[2] x) => (int32 z) { [it] z = Abs(x) }"
TURNED = "g (float[2, 3, 4] x) => (float z) { [it] z = Transpose<perm = [0, 2, 1]>(x) }"
ROWS = "g (float[2, 3, 4] x) => (float z) { [it] z = Transpose<perm = [1, 0, 2]>(x) }"
JOINED = "g (float[2, 3, 4] x) => (float z) <int64[2] s = {6, 4}> { [it] z = Reshape(x, s) }"
SPLIT = "g (float[2, 3, 4] x) => (float z) <int64[2] s = {2, 12}> { [it] z = Reshape(x, s) }"
LINEAR = "g (float[2, 4] x) => (float z) { [it] z = MatMul(x, m) }"
PRODUCT = "g (float[2, 4] x, float[4, 5] y) => (float z) { [it] z = MatMul(x, y) }"
PAD = (
    """g (float[1, 4] x) => (float z) <int64[4] p = {0, 1, 0, 1}> { [it] z = Pad<mode = "reflect">(x, p) }"""
)


@pytest.mark.parametrize(
    ("text", "when", "expected"),
    [
        (FIVE, {"rank_above": 4}, True),
        (FIVE, {"rank_above": 5}, False),
        (FIVE, {"size_above": 4}, True),
        (FIVE, {"axes": [-2], "size_above": 4}, False),
        (FIVE, {"axes": [-1, -9], "size_above": 4}, True),
        (CONV, {"size_above": 20}, False),
        (CONV, {"kernel_above": [4]}, True),
        (CONV, {"kernel_above": [5, 3]}, False),
        (CONV, {"kernel_above": [5, 2]}, True),
        (POOL, {"kernel_above": [7]}, True),
        (LINEAR, {"kernel_above": [1]}, False),
        (CONV, {"stride_not_of": [1, 2]}, True),
        (CONV, {"stride_not_of": [1, 5]}, False),
        (POOL, {"stride_not_of": [1, 2]}, False),  # one step only: no stride is taken
        (CONV, {"dilation_above": 1}, True),
        (CONV, {"dilation_above": 2}, False),
        (CONV, {"channels_not_of": 4}, True),
        (CONV, {"channels_not_of": 3}, False),
        (ENDS, {"border": True, "last_below": 8}, True),
        (ENDS, {"border": True, "last_below": 7}, False),
        (INNER, {"border": True, "last_below": 8}, False),
        (INNER, {"last_below": 8}, True),
        (WHOLE, {"types": ["int32"]}, True),
        (WHOLE, {"types": ["int64", "float32"]}, False),
        (JOINED, {"types": ["int64"]}, False),  # the shape is a constant
        (BATCH, {"free_sizes": True}, False),
        (FREE, {"free_sizes": True}, True),
        (FREE, {"size_above": 1}, False),
        (LINEAR, {"constant": [1]}, True),
        (LINEAR, {"constant": [0, 1]}, False),
        (PRODUCT, {"constant": [1]}, False),
        (LINEAR, {"constant": [2]}, False),
        (TURNED, {"moves_last": True}, True),
        (ROWS, {"moves_last": True}, False),
        (SPLIT, {"moves_last": True}, True),
        (JOINED, {"moves_last": True}, False),
        (LINEAR, {"moves_last": True}, False),
        (PAD, {"attributes": {"mode": ["edge", "reflect"]}}, True),
        (PAD, {"attributes": {"mode": ["edge"]}}, False),
        (JOINED, {"attributes": {"mode": ["edge"]}}, False),
        (ENDS, {"options": {"precision": "FLOAT32"}}, True),
        (ENDS, {"options": {"precision": "FLOAT16"}}, False),
        (ENDS, {"options": {"other": 1}}, False),
        (CONV, {"kernel_above": [4], "dilation_above": 2}, False),  # all must hold
        (ENDS, {}, True),
    ],
)
def test_a_condition_holds_where_it_says(text: str, when: dict[str, object], expected: bool) -> None:
    assert holds(Condition.model_validate(when), node(text), {"precision": "FLOAT32"}) is expected


NETWORK = """g (float[n, 2, 6, 6] x) => (float z)
    <int64[2] s = {0, -1}, int64[3] i = {2, 0, 1}, int64[1] zero = {0}, int64[1] three = {3}>
    {
        [conv] c = Conv(x, u, v)
        [relu] r = Relu(c)
        [flat] l = Reshape(r, s)
        [fc] p = MatMul(l, f)
        [pick] q = Gather<axis = 1>(p, i)
        [odd] o = Selu(q)
        [shape] h = Shape(o)
        [rows] a = Gather<axis = 0>(h, zero)
        [size] t = Concat<axis = 0>(a, three)
        [wide] e = Expand(k, t)
        [add] z = Add(o, e)
    }"""


@pytest.fixture
def network() -> ir.Model:
    return graph(NETWORK)


def found(model: ir.Model, runs: str = "Conv Relu Reshape MatMul Add", **rules: UnitRule) -> Residency:
    return residency(model, "engine", unit(runs, **rules))


def test_blocks_and_macs_by_state(network: ir.Model) -> None:
    told = found(network, gather=rule("Gather"), linear=rule("MatMul", "may leave", constant=[1]))
    assert told.macs == {"stays": 4 * 16 * 2 * 9, "unknown": 0, "may leave": 640, "leaves": 0}
    assert sum(told.macs.values()) == macs(network)
    states = {block.id: (block.state, block.macs, block.rules, block.unlisted) for block in told.apart}
    assert states["fc"] == ("may leave", 640, ("linear",), ())
    assert states["pick"] == ("leaves", 0, ("gather",), ("Selu",))  # an activation joins what it follows
    assert sum(told.blocks.values()) <= len(partition(network))
    assert told.share == pytest.approx(1152 / 1792)


def test_what_is_known_before_anything_runs_is_not_counted(network: ir.Model) -> None:
    """The Gather on a shape, and the Expand of a constant, are gone once sizes are fixed."""
    told = found(network, "Conv Relu Reshape MatMul Add Gather Selu", sizes=rule("Shape Concat Expand"))
    assert told.rules == ()
    assert told.blocks["stays"] == sum(told.blocks.values())


def test_a_free_size_is_computed() -> None:
    model = graph(
        "g (float[n, m] x) => (int64 z) <int64[1] two = {2}> { [a] s = Shape(x) [it] z = Mul(s, two) }"
    )
    told = found(model, "Mul", shape=rule("Shape"))
    assert {block.state for block in told.apart} == {"leaves"}


def test_slower_stays_and_is_told(network: ir.Model) -> None:
    told = found(network, "Conv Relu Reshape MatMul Add Gather Selu", wide=rule("Conv", "slower"))
    assert told.share == 1.0
    assert [(block.id, block.state, block.rules) for block in told.apart] == [("conv", "stays", ("wide",))]
    assert [(r.name, r.effect) for r in told.rules] == [("wide", "slower")]


def test_the_worst_of_several_rules_counts(network: ir.Model) -> None:
    rules = {
        "a": rule("MatMul", "may leave"),
        "b": rule("", "leaves", rank_above=3),
        "c": rule("MatMul", "slower"),
    }
    told = found(network, "Relu Reshape MatMul Add Gather Selu", **rules)
    states = {block.id: (block.state, block.rules) for block in told.apart}
    assert states["conv"] == ("leaves", ("b",))
    assert states["fc"] == ("may leave", ("a", "c"))


def test_values_that_cross_the_border(network: ir.Model) -> None:
    """What the Gather reads and what it makes; sizes cross nothing, they are known before."""
    assert found(network, "Conv Relu Reshape MatMul Add Selu", gather=rule("Gather")).crossings == 2
    assert found(network, "Conv Relu Reshape MatMul Add Selu Gather").crossings == 0


def test_other_domains_are_unknown() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21, "own" : 1]> g (float[2] x) => (float[2] y) '
        "{ [it] y = own.Conv(x) }"
    )
    told = residency(model, "engine", unit("Conv", conv=rule("Conv")))
    assert [(block.state, block.unlisted) for block in told.apart] == [("unknown", ("Conv",))]
