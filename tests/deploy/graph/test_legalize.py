"""Float16 graphs against ONNX Runtime on the float32 graph, and the types that ONNX's own inference finds."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto

from deploy.frontend.onnx_file import to_bytes
from deploy.graph import qdq
from deploy.graph.legalize import held_back, to_float16, without_casts
from deploy.graph.shapes import infer
from deploy.spec.plan import TensorPlan

RNG = np.random.default_rng(7)


def graph(text: str, *, opset: int = 21, **weights: np.ndarray) -> ir.Model:
    """A typed graph with named nodes; float64 arrays become float32."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    for name, array in weights.items():
        value = next(v for n in model.graph for v in n.inputs if v is not None and v.name == name)
        tensor = ir.tensor(array.astype(np.float32) if array.dtype == np.float64 else array, name=name)
        value.const_value, value.type, value.shape = (
            tensor,
            ir.TensorType(tensor.dtype),
            ir.Shape(array.shape),
        )
        model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"n{index}"
    return infer(model)


def weight(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def types(model: ir.Model) -> dict[str, int]:
    """Element type of every value as ONNX's strict, type-checking inference finds it."""
    proto = onnx.load_model_from_string(to_bytes(model))
    del proto.graph.value_info[:]
    onnx.checker.check_model(proto, full_check=True)
    found = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
    values = [*found.value_info, *found.input, *found.output]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {
        t.name: t.data_type for t in found.initializer
    }


CONV_NET = """
g (float[N, 3, 12, 12] x) => (float[N, 5] y) {
    [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    [r1] ar = Relu (a)
    [c2] b = Conv <pads = [1, 1, 1, 1]> (ar, w2)
    [s] s = Add (b, ar)
    [k] k = Clip (s, low, high)
    [p] p = GlobalAveragePool (k)
    [f] f = Flatten (p)
    [g] y = Gemm <transB = 1> (f, w3, b3)
}
"""


def conv_net() -> ir.Model:
    low, high = np.array(0.0), np.array(np.finfo(np.float32).max)
    weights = {"w1": weight(8, 3, 3, 3), "b1": weight(8), "w2": weight(8, 8, 3, 3), "w3": weight(5, 8)}
    return graph(CONV_NET, low=low, high=high, b3=weight(5), **weights)


def transformer() -> ir.Model:
    text = """
    g (float[N, 6, 16] x, int64[N, 6] kept) => (float[N, 6, 16] y, float[N, 6, 6] attention) {
        n = LayerNormalization (x, gamma, beta)
        q = MatMul (n, wq)
        k = MatMul (n, wk)
        v = MatMul (n, wv)
        kt = Transpose <perm = [0, 2, 1]> (k)
        scores = MatMul (q, kt)
        mask = Cast <to = 1> (kept)
        gone = Sub (one, mask)
        bias = Mul (gone, lowest)
        bias3 = Unsqueeze (bias, axis)
        masked = Add (scores, bias3)
        attention = Softmax (masked)
        mixed = MatMul (attention, v)
        h = Add (x, mixed)
        mean = ReduceMean (h, last)
        centred = Sub (h, mean)
        square = Pow (centred, two)
        variance = ReduceMean (square, last)
        safe = Add (variance, epsilon)
        root = Sqrt (safe)
        normal = Div (centred, root)
        up = MatMul (normal, wu)
        act = Gelu (up)
        down = MatMul (act, wd)
        y = Add (h, down)
    }
    """
    matrices = {name: weight(16, 16) for name in ("wq", "wk", "wv")}
    return graph(
        text,
        **matrices,
        gamma=np.ones(16),
        beta=weight(16),
        wu=weight(16, 32),
        wd=weight(32, 16),
        one=np.array(1.0),
        two=np.array(2.0),
        epsilon=np.array(1e-12),
        lowest=np.array(-3.4e38),
        axis=np.array([1]),
        last=np.array([-1]),
    )


def recurrent() -> ir.Model:
    text = """
    g (float[7, N, 4] x) => (float[7, N, 6] y) {
        r, last = GRU <hidden_size = 6, linear_before_reset = 1> (x, w, u, b)
        s = Squeeze (r, axis)
        y = Tanh (s)
    }
    """
    return graph(text, axis=np.array([1]), w=weight(1, 18, 4), u=weight(1, 18, 6), b=weight(1, 36))


def resizing() -> ir.Model:
    text = """
    g (float[N, 3, 5, 7] x) => (float[N, 3, H, W] y, float[N, 3, 10, 14] z) {
        shape = Shape (x)
        sizes = Cast <to = 1> (shape)
        factors = Mul (sizes, times)
        bigger = Floor (factors)
        target = Cast <to = 7> (bigger)
        a = Relu (x)
        y = Resize <mode = "linear"> (a, , , target)
        z = Resize <mode = "nearest"> (a, , scales)
    }
    """
    return graph(text, times=np.array([1.0, 1.0, 2.3, 1.7]), scales=np.array([1.0, 1.0, 2.0, 2.0]))


GRAPHS = {
    "conv": (conv_net, {"x": (2, 3, 12, 12)}),
    "transformer": (transformer, {"x": (2, 6, 16)}),
    "gru": (recurrent, {"x": (7, 2, 4)}),
    "resize": (resizing, {"x": (2, 3, 5, 7)}),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_float16_graphs_compute_the_same(case: str) -> None:
    make, shapes = GRAPHS[case]
    model = make()
    feeds = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if case == "transformer":
        feeds["kept"] = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], np.int64)
    half = to_float16(model)
    for want, got in zip(run(model, feeds), run(half, feeds), strict=True):
        assert got.dtype == want.dtype
        assert np.abs(got - want).max() < 2e-2 * np.abs(want).max()


@pytest.mark.parametrize("case", GRAPHS)
def test_types_are_float16_but_for_the_interface(case: str) -> None:
    model = GRAPHS[case][0]()
    before = types(model)
    half = to_float16(model)
    after = types(half)
    held = held_back(model)
    for node in model.graph:
        for output in node.outputs:
            name = output.name
            if not name or before[name] != TensorProto.FLOAT:
                continue
            if output.is_graph_output():
                assert after[name] == TensorProto.FLOAT
            elif node.name not in held:
                assert after[name] == TensorProto.FLOAT16, name
    assert [(v.name, v.dtype, v.shape) for v in half.graph.inputs] == [
        (v.name, v.dtype, v.shape) for v in model.graph.inputs
    ]
    assert [v.name for v in half.graph.outputs] == [v.name for v in model.graph.outputs]
    assert {n.name for n in model.graph} <= {n.name for n in half.graph}
    for node in half.graph:  # what the graph says of itself is what inference finds
        assert all(o.dtype is not None and o.dtype.value == after[o.name] for o in node.outputs if o.name)


def test_conv_net_has_two_casts_and_saturated_bounds() -> None:
    half = to_float16(conv_net())
    assert Counter(n.op_type for n in half.graph)["Cast"] == 2
    assert half.graph.initializers["high"].const_value.numpy() == np.float16(65504)


def test_the_original_is_left_alone() -> None:
    model = conv_net()
    bytes_before = to_bytes(model)
    to_float16(model)
    assert to_bytes(model) == bytes_before


def test_kept_nodes_have_one_cast_for_each_value() -> None:
    text = """
    g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) {
        [m] a = MatMul (x, w)
        [k1] b = Sigmoid (a)
        [k2] c = Tanh (a)
        [move] d = Reshape (b, shape)
        [k3] y = Add (d, c)
        [last] z = MatMul (a, w)
    }
    """
    model = graph(text, w=weight(4, 4), shape=np.array([2, 4]))
    half = to_float16(model, keep=["k1", "k2", "k3"])
    casts = {n.inputs[0].name: n.outputs[0].name for n in half.graph if n.op_type == "Cast"}
    assert casts == {"x": "x/f16", "a": "a/f32", "z/f16": "z"}
    assert types(half)["d"] == TensorProto.FLOAT
    with pytest.raises(KeyError, match="k9"):
        to_float16(model, keep=["k9"])


def test_a_value_needed_in_both_types_keeps_its_name_in_float16() -> None:
    text = """
    g (float[2, 4] x) => (float[2, 4] y) {
        a = Exp (x)
        b = MatMul (a, w)
        a2 = Add (a, b)
        y = Softplus (a2)
    }
    """
    found = types(to_float16(graph(text, w=weight(4, 4))))
    assert (found["a"], found["a/f32"]) == (TensorProto.FLOAT16, TensorProto.FLOAT)
    assert (found["a2"], found["a2/f32"]) == (TensorProto.FLOAT16, TensorProto.FLOAT)
    assert found["y"] == TensorProto.FLOAT


def test_constants_beyond_float16_keep_their_node_and_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    text = """
    g (float[2, 2] x) => (float[2, 2] y) {
        [big] a = MatMul (x, w)
        [ok] r = Relu (a)
        [tiny] b = Mul (r, v)
        [fine] y = Add (b, u)
    }
    """
    model = graph(text, w=np.full((2, 2), 4e4) * [1, 2], v=np.array(1e-9), u=np.array([1.0, 1e-9]))
    with caplog.at_level(logging.WARNING):
        half = to_float16(model)
    assert set(held_back(model)) == {"big", "tiny"}
    assert "big stays float32: its constant w" in caplog.text
    assert types(half)["w"] == TensorProto.FLOAT
    x = np.full((2, 2), 0.25, np.float32)
    np.testing.assert_allclose(run(half, {"x": x})[0], run(model, {"x": x})[0], rtol=1e-3)


def test_sizes_stay_exact_and_the_scales_of_resize_float32() -> None:
    found = types(to_float16(resizing()))
    assert found["factors"] == found["bigger"] == found["scales"] == found["times"] == TensorProto.FLOAT


def test_written_out_normalisation_and_mask_stay_float32() -> None:
    reasons = held_back(transformer())
    named = {o.name: n.name for n in transformer().graph for o in n.outputs}
    normalisation = ("mean", "centred", "square", "variance", "safe", "root", "normal")
    assert all(named[v] in reasons for v in (*normalisation, "bias", "masked", "attention"))
    assert all(named[v] not in reasons for v in ("n", "q", "scores", "h", "act", "y"))


def test_bodies_of_control_flow_stay_float32() -> None:
    text = """
    g (float[2] x, bool c) => (float[2] y) {
        a = Mul (x, w)
        b = If (c) <
            then_branch = t () => (float[2] p) { p = Exp (a) },
            else_branch = e () => (float[2] q) { q = Mul (a, w) }
        >
        y = Relu (b)
    }
    """
    model = graph(text, w=np.array([0.5, 2.0]))
    half = to_float16(model)
    for branch in (True, False):
        feeds = {"x": np.array([1.0, -2.0], np.float32), "c": np.array(branch)}
        np.testing.assert_allclose(run(half, feeds)[0], run(model, feeds)[0], rtol=1e-3)
    found = types(half)
    assert (found["w"], found["w/f32"]) == (TensorProto.FLOAT16, TensorProto.FLOAT)


def test_constants_made_in_the_graph_follow() -> None:
    text = """
    g (float[2, 3] x) => (float[2, 3] y) {
        s = Shape (x)
        ones = ConstantOfShape <value = float[1] {1.0}> (s)
        flags = Greater (x, ones)
        picks = Cast <to = 1> (flags)
        y = Add (ones, picks)
    }
    """
    half = to_float16(graph(text))
    found = types(half)
    assert found["ones"] == found["picks"] == TensorProto.FLOAT16
    x = np.array([[0.5, 2, 3], [-1, 0, 9]], np.float32)
    np.testing.assert_array_equal(run(half, {"x": x})[0], 1 + (x > 1))


def residual() -> tuple[ir.Model, dict[str, TensorPlan]]:
    """A residual block with its Q/DQ pairs, and the plan that it carries; scales are float16 numbers."""
    text = """
    g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
        [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        [r1] ar = Relu (a)
        [c2] b = Conv <pads = [1, 1, 1, 1]> (ar, w2)
        [add] s = Add (b, x)
        [r2] y = Relu (s)
    }
    """
    model = graph(text, w1=weight(4, 4, 3, 3), b1=weight(4), w2=weight(4, 4, 3, 3))
    plan = {
        name: TensorPlan(type="int8", scale=(scale,), zero_point=(0,), origin="calibration")
        for name, scale in (("x", 2.0**-5), ("ar", float(np.float16(0.013))), ("y", 2.0**-5))
    }
    plan["x"] = plan["x"].model_copy(update={"readers": ("c1",)})
    codes = {}
    for name in ("w1", "w2"):
        array = model.graph.initializers[name].const_value.numpy()
        scale = (np.abs(array).max((1, 2, 3)) / 127).astype(np.float16)
        bare = TensorPlan(
            type="int8", scale=tuple(map(float, scale)), zero_point=(0,) * 4, axis=0, origin="weight"
        )
        codes[name] = qdq.quantize_array(array, bare, low=-127)
        plan[name] = bare.model_copy(update={"digest": qdq.data_digest(codes[name])})
    return qdq.insert(model, plan, codes), plan


def test_quantized_graph_keeps_integers_scales_and_plan() -> None:
    model, plan = residual()
    half = to_float16(model)
    found = types(half)
    for name in ("x/scale", "ar/scale", "w1/scale", "w1", "ar/dq", "a", "b1"):
        assert found[name] == TensorProto.FLOAT16, name
    for name in ("w1/int", "x/q", "y/q", "zero/int8/4"):
        assert found[name] == TensorProto.INT8, name
    read = qdq.read_tensors(without_casts(half))
    assert {k: v.model_copy(update={"origin": plan[k].origin}) for k, v in read.items()} == plan
    x = RNG.normal(size=(2, 4, 6, 6)).astype(np.float32)
    (want,), (got,) = run(model, {"x": x}), run(half, {"x": x})
    assert np.abs(got - want).max() < 2e-2 * np.abs(want).max() + 2.0**-5  # one step of the output


def test_kept_nodes_do_not_change_the_plan_read_back() -> None:
    model, plan = residual()
    half = to_float16(model, keep=["c1", "add", "r2"])
    read = qdq.read_tensors(without_casts(half))
    assert {k: v.model_copy(update={"origin": plan[k].origin}) for k, v in read.items()} == plan
    types(half)


def test_a_scale_that_float16_cannot_hold_is_refused() -> None:
    model, _ = residual()
    plain = without_casts(model)
    scale = plain.graph.initializers["ar/scale"]
    scale.const_value = ir.tensor(np.array(0.013, np.float32), name="ar/scale")
    with pytest.raises(ValueError, match="ar/scale is not a float16 number"):
        to_float16(plain)
