"""Batch norm put back computes the same, and folding takes it away again."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.execute.compare import prover
from deploy.execute.reference import open_graph
from deploy.graph.batchnorm import Moments, foldable, reinsert
from deploy.graph.fuse import fuse
from deploy.graph.shapes import infer

GENERATOR = np.random.default_rng(0)
NET = """<ir_version: 10, opset_import: ["": 21]> g (float[n, 3, 8, 8] x) => (float[n, 5, 8, 8] y) {
    [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    [r] b = Relu (a)
    [c2] c = Conv <pads = [1, 1, 1, 1], group = 4> (b, w2)
    [s] d = Add (c, b)
    [c3] e = Conv (d, w3, b3)
    [c4] y = Conv (e, w4)
}"""
SHAPES = {
    "w1": (8, 3, 3, 3),
    "b1": (8,),
    "w2": (8, 2, 3, 3),
    "w3": (8, 8, 1, 1),
    "b3": (8,),
    "w4": (5, 8, 1, 1),
}


def network(text: str = NET) -> ir.Model:
    model = ir.from_onnx_text(text)
    read = {v.name: v for node in model.graph for v in node.inputs if v is not None}
    for name, shape in SHAPES.items():
        if name not in read:
            continue
        array = GENERATOR.standard_normal(shape).astype(np.float32)
        tensor = ir.tensor(array, name=name)
        value = read[name]
        value.const_value, value.type, value.shape = tensor, ir.TensorType(tensor.dtype), ir.Shape(shape)
        model.graph.register_initializer(value)
    return infer(model)


X = GENERATOR.standard_normal((16, 3, 8, 8)).astype(np.float32)


def moments(model: ir.Model, feeds: np.ndarray) -> dict[str, Moments]:
    wanted = foldable(model)
    with open_graph(model, optimised=False, expose=wanted) as runner:
        values = runner.run({"x": feeds}, wanted)
    return {n: Moments(values[n].mean((0, 2, 3), np.float64), values[n].var((0, 2, 3))) for n in wanted}


def test_it_goes_behind_every_convolution_but_the_last() -> None:
    assert foldable(network()) == ["a", "c", "e"]


def test_the_function_is_the_same_and_so_are_the_names() -> None:
    model = network()
    wider = infer(reinsert(model, moments(model, X)))
    assert [n.op_type for n in wider.graph].count("BatchNormalization") == 3
    assert [n.op_type for n in model.graph].count("BatchNormalization") == 0, "the graph given is not touched"
    other = GENERATOR.standard_normal(X.shape).astype(np.float32)
    inner = ["a", "c", "e"]
    with open_graph(model, expose=inner) as one, open_graph(wider, expose=inner) as two:
        want, got = one.run({"x": other}, inner), two.run({"x": other}, inner)
    for name in ("y", *inner):
        scale = np.abs(want[name]).max()
        assert np.abs(got[name] - want[name]).max() <= 5e-6 * scale, name


def test_weights_keep_their_names_and_the_bias_stays_what_it_was() -> None:
    """What a recipe says of a weight by its name must mean the same one."""
    model = network()
    wider = infer(reinsert(model, moments(model, X)))
    assert set(SHAPES) <= wider.graph.initializers.keys()
    first, second, third = (node for node in wider.graph if node.op_type == "BatchNormalization")
    assert [n.inputs[0].producer().inputs[1].name for n in (first, second, third)] == ["w1", "w2", "w3"]
    assert [[v.name for v in n.inputs[1:]] for n in (first, second)] == [
        ["w1/scale", "b1", "w1/mean", "w1/variance"],
        ["w2/scale", "w2/shift", "w2/mean", "w2/variance"],
    ]
    assert all(v.uses() for v in wider.graph.initializers.values())


def test_a_bias_that_several_read_is_left_to_the_others() -> None:
    text = NET.replace("(d, w3, b3)", "(d, w3, b1)")
    model = network(text)
    wider = infer(reinsert(model, {"a": moments(model, X)["a"]}))
    norm = next(node for node in wider.graph if node.op_type == "BatchNormalization")
    assert norm.inputs[2].name == "b1_2"
    with open_graph(model) as one, open_graph(wider) as two:
        want, got = one.run({"x": X})["y"], two.run({"x": X})["y"]
    assert np.abs(got - want).max() <= 5e-6 * np.abs(want).max()


def test_only_those_that_are_meant() -> None:
    assert foldable(network(), lambda name: name in ("w2", "w4")) == ["c"]


def test_filters_have_one_norm_afterwards_and_statistics_are_those_of_what_enters() -> None:
    model = network()
    wider = infer(reinsert(model, moments(model, X)))
    norms = [node for node in wider.graph if node.op_type == "BatchNormalization"]
    entering = [node.inputs[0].name for node in norms]
    with open_graph(wider, optimised=False, expose=entering) as runner:
        values = runner.run({"x": X}, entering)
    for node in norms:
        raw = values[node.inputs[0].name]
        mean, variance = (node.inputs[i].const_value.numpy() for i in (3, 4))
        np.testing.assert_allclose(raw.mean((0, 2, 3)), mean, atol=1e-5)
        np.testing.assert_allclose(raw.var((0, 2, 3)), variance, rtol=1e-4)
        weight = node.inputs[0].producer().inputs[1].const_value.numpy()
        np.testing.assert_allclose((weight.reshape(len(weight), -1) ** 2).sum(1), 2.0, rtol=1e-5)


def test_folding_takes_it_away_again() -> None:
    model = network()
    wider = infer(reinsert(model, moments(model, X)))
    folded = fuse(wider, prover([{"x": X}], 1)).model
    assert [n.op_type for n in folded.graph] == [n.op_type for n in model.graph]
    with open_graph(model) as one, open_graph(folded) as two:
        want, got = one.run({"x": X})["y"], two.run({"x": X})["y"]
    assert np.abs(got - want).max() <= 5e-6 * np.abs(want).max()


def test_a_dead_filter_is_left_as_it_is() -> None:
    model = network()
    weight = model.graph.initializers["w1"].const_value.numpy().copy()
    weight[3] = 0
    model.graph.initializers["w1"].const_value = ir.tensor(weight, name="w1")
    wider = infer(reinsert(model, moments(model, X)))
    with open_graph(model) as one, open_graph(wider) as two:
        want, got = one.run({"x": X})["y"], two.run({"x": X})["y"]
    assert np.abs(got - want).max() <= 5e-6 * np.abs(want).max()
