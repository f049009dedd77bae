"""The rounding that runtimes do while running, written out in a graph, against the same in numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploy.execute.reference import open_graph
from deploy.graph.dynamic import rounded_inputs, rounding_inputs
from deploy.graph.qdq import insert
from deploy.graph.shapes import infer
from deploy.quantize.weights import assign_weights


def net_of(parse, text: str, shapes: dict[str, tuple[int, ...]]) -> ir.Model:
    rng = np.random.default_rng(1)
    return infer(parse(text, {n: rng.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()}))


def rounded(x: np.ndarray) -> np.ndarray:
    """One scale for all of ``x``: a code is 1/255 of the range with 0 in it."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / 255
    zero = np.rint(-128 - low / step)
    return (np.clip(np.rint(x / step) + zero, -128, 127) - zero) * step


def integers(model: ir.Model) -> ir.Model:
    assignment = assign_weights(model, 8)
    return infer(insert(model, assignment.tensors, assignment.codes))


def test_rows_samples_and_pixels_share_a_scale(parse):
    net = integers(
        net_of(
            parse,
            """g (float[N,16,4,4] x, float[N,3,64] v) =>
            (float[N,64,4,4] y, float[N,3,16] z, float[N,64,4,4] d, float[N,64,4,4] f)
            { [c] y = Conv<pads=[1,1,1,1]>(x, w)  [m] z = MatMul(v, a)  [p] f = Conv(x, o)
            [g] d = Conv<group=64, pads=[2,2,2,2]>(y, u) }""",
            {"w": (64, 16, 3, 3), "a": (64, 16), "u": (64, 1, 5, 5), "o": (64, 16, 1, 1)},
        )
    )
    found = rounded_inputs(net, ("Conv", "Gemm", "MatMul"))
    assert found == {"c": (1, 2, 3), "m": (2,), "p": (1,)}, "a depthwise convolution reads floats"
    assert set(rounded_inputs(net, ("MatMul",))) == {"m"}
    written = rounding_inputs(net, found)
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.normal(0.4, 1, (2, 16, 4, 4)).astype(np.float32),
        "v": np.concatenate([rng.normal(0, 1, (2, 2, 64)), np.zeros((2, 1, 64))], axis=1).astype(np.float32),
    }
    names = {n.name: n.inputs[0].name for n in written.graph if n.name in found}
    with open_graph(written, optimised=False, expose=list(names.values())) as session:
        got = session.run(feeds, list(names.values()))
    samples = np.stack([rounded(sample) for sample in feeds["x"]])
    np.testing.assert_allclose(got[names["c"]], samples, atol=1e-5)
    rows = np.stack([[rounded(row) if row.any() else row for row in m] for m in feeds["v"]])
    np.testing.assert_allclose(got[names["m"]], rows, atol=1e-5)
    pixels = np.apply_along_axis(rounded, 1, feeds["x"])
    np.testing.assert_allclose(got[names["p"]], pixels, atol=1e-5)


@pytest.mark.parametrize("operations", [(), ("Add",)])
def test_nothing_is_rounded_that_the_runtime_does_not_round(parse, operations):
    net = integers(
        net_of(parse, "g (float[N,64] x) => (float[N,16] y) { [m] y = MatMul(x, a) }", {"a": (64, 16)})
    )
    assert rounded_inputs(net, operations) == {}


def test_products_with_float_weights_or_none_are_left_alone(parse):
    net = net_of(parse, "g (float[N,64] x) => (float[N,16] y) { [m] y = MatMul(x, a) }", {"a": (64, 16)})
    assert rounded_inputs(net, ("MatMul",)) == {}
