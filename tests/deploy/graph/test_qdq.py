"""Plans written into graphs and read back; the graphs against ONNX Runtime and numpy's own affine formula."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.graph.qdq import data_digest, dequantize_array, insert, quantize_array, read_tensors
from deploy.spec.plan import Plan, QuantParams, TensorPlan, differences
from deploy.spec.tensors import RANGES

U8 = {"type": "uint8", "scale": (0.0625,), "zero_point": (100,)}
S8 = {"type": "int8", "scale": (0.078125,), "zero_point": (-3,)}
S16 = {"type": "int16", "scale": (2.0**-12,), "zero_point": (0,)}
PAD = "<pads=[1,1,1,1]>"
IMAGE = "float[N,2,4,4]"


def tensor(given=U8, **more) -> TensorPlan:
    return TensorPlan(**{**given, "origin": "calibration", **more})


def weight(*shape: int) -> np.ndarray:
    return (0.2 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def of_weight(array: np.ndarray, axis: int | None = 0, kind: str = "int8") -> tuple[TensorPlan, np.ndarray]:
    others = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
    scale = np.atleast_1d(np.abs(array).max(axis=others) / 127).astype(np.float32)
    params = QuantParams(type=kind, scale=tuple(map(float, scale)), zero_point=(0,) * scale.size, axis=axis)
    codes = quantize_array(array, params)
    return TensorPlan(**params.model_dump(), origin="weight", digest=data_digest(codes)), codes


def assert_carried(model: ir.Model, tensors, codes=None, scale_type: str = "float32") -> ir.Model:
    """The graph carries the plan, in memory and after a trip through bytes, and keeps the names outside."""
    written = insert(model, tensors, codes or {}, scale_type)
    onnx.checker.check_model(ir.to_proto(written), full_check=scale_type == "float32")
    for graph in (
        written,
        ir.from_proto(onnx.ModelProto.FromString(ir.to_proto(written).SerializeToString())),
    ):
        decided, read = (
            Plan(graph_sha256="", target="", runtime="", tensors=t) for t in (tensors, read_tensors(graph))
        )
        assert differences(decided, read) == []
    for kind in ("inputs", "outputs"):
        before, after = getattr(model.graph, kind), getattr(written.graph, kind)
        assert [v.name for v in before] == [v.name for v in after]
        assert [v.dtype for v in before] == [v.dtype for v in after] or scale_type != "float32"
    assert {n.name for n in model.graph} <= {n.name for n in written.graph}
    return written


# --- the affine formula


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["int8", "uint8", "int16", "uint16"]),
    st.floats(2.0**-10, 2.0**4, width=32),
    st.integers(0, 255),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
)
def test_codes_are_those_of_onnx_runtime(kind, scale, offset, values):
    low, high = RANGES[kind]
    params = QuantParams(type=kind, scale=(scale,), zero_point=(low + offset,))
    array = np.float32(values)
    codes = quantize_array(array, params)
    exact = array.astype(np.float64) / scale
    clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-3  # ties hang on the width of the division
    expected = np.clip(np.rint(array / np.float32(scale)).astype(np.int64) + low + offset, low, high)
    np.testing.assert_array_equal(codes[clear], expected[clear])
    assert codes.dtype.name == kind
    back = dequantize_array(codes, params)
    inside = (codes > low) & (codes < high)
    assert (np.abs(back - array)[inside] <= 0.5000001 * scale + 1e-6 * np.abs(array)[inside]).all()
    np.testing.assert_array_equal(quantize_array(back, params), codes)


def test_halves_go_to_the_even_code():
    params = QuantParams(type="int8", scale=(2.0,), zero_point=(0,))
    np.testing.assert_array_equal(quantize_array(np.float32([1, 3, 5, -1, -3]), params), [0, 2, 2, 0, -2])


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_each_slice_has_its_own_parameters(axis):
    array = weight(2, 3, 4, 5)
    n = array.shape[axis]
    params = QuantParams(
        type="uint8", scale=tuple(0.01 * (i + 1) for i in range(n)), zero_point=tuple(range(n)), axis=axis
    )
    codes = quantize_array(array, params)
    for i in range(n):
        part, alone = (np.take(a, i, axis) for a in (array, codes))
        single = QuantParams(type="uint8", scale=(0.01 * (i + 1),), zero_point=(i,))
        np.testing.assert_array_equal(alone, quantize_array(part, single))


def test_narrower_limits_hold():
    params = QuantParams(type="int8", scale=(0.01,), zero_point=(0,))
    codes = quantize_array(np.float32([-9, 9, 0.5]), params, low=-64, high=64)
    np.testing.assert_array_equal(codes, [-64, 64, 50])


def test_the_digest_is_of_the_numbers_not_of_their_layout():
    codes = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert data_digest(codes) == data_digest(np.asfortranarray(codes))
    assert data_digest(codes) == data_digest(codes.astype(">i4"))
    assert data_digest(codes) != data_digest(codes.T)


# --- round trips

CHAIN = (
    f"g ({IMAGE} x) => ({IMAGE} y) {{ [c] a = Conv{PAD}(x, w)  [r] b = Relu(a)  [d] y = Conv{PAD}(b, w) }}"
)
ROUND_TRIPS = {
    "one inner value": (CHAIN, {"b": tensor()}),
    "input": (CHAIN, {"x": tensor()}),
    "output": (CHAIN, {"y": tensor(S8)}),
    "all": (CHAIN, {"x": tensor(), "b": tensor(S8), "y": tensor()}),
    "residual add": (
        f"g ({IMAGE} x) => ({IMAGE} y) {{ a = Conv{PAD}(x, w)  y = Add(a, x) }}",
        {"x": tensor(), "a": tensor(S8), "y": tensor()},
    ),
    "read twice by one node": (
        f"g ({IMAGE} x) => ({IMAGE} y) {{ a = Conv{PAD}(x, w)  y = Mul(a, a) }}",
        {"a": tensor()},
    ),
    "concat": (
        f"g ({IMAGE} x) => (float[N,4,4,4] y) {{ a = Relu(x)  b = Neg(x)  y = Concat<axis=1>(a, b) }}",
        {"a": tensor(), "b": tensor(), "y": tensor()},
    ),
    "split": (
        f"g ({IMAGE} x) => (float[N,1,4,4] y, float[N,1,4,4] z) {{ y, z = Split<axis=1, num_outputs=2>(x) }}",
        {"x": tensor(), "y": tensor(), "z": tensor()},
    ),
    "output read inside": (
        f"g ({IMAGE} x) => ({IMAGE} a, {IMAGE} y) {{ a = Conv{PAD}(x, w)  y = Relu(a) }}",
        {"a": tensor(), "y": tensor()},
    ),
    "output read inside, put out as float": (
        f"g ({IMAGE} x) => ({IMAGE} a, {IMAGE} y) {{ a = Conv{PAD}(x, w)  [r] y = Relu(a) }}",
        {"a": tensor(readers=("r",))},
    ),
    "some readers": (
        f"g ({IMAGE} x) => ({IMAGE} y) {{ [c] a = Conv{PAD}(x, w)  [s] b = Sigmoid(x)  [m] y = Add(a, b) }}",
        {"x": tensor(readers=("c",))},
    ),
    "a reader with parameters of its own": (
        f"g ({IMAGE} x) => ({IMAGE} y) {{ [c] a = Conv{PAD}(x, w)  [s] b = Sigmoid(x)  [m] y = Add(a, b) }}",
        {"x": tensor(uses={"s": QuantParams(**S8)})},
    ),
    "own parameters and an output": (
        f"g ({IMAGE} x) => ({IMAGE} a, {IMAGE} y) {{ a = Neg(x)  [s] b = Sigmoid(a)  [t] y = Tanh(b) }}",
        {"a": tensor(uses={"s": QuantParams(**S8)}), "b": tensor(uses={})},
    ),
    "own parameters among some readers": (
        f"""g ({IMAGE} x) => ({IMAGE} y) {{
        [n] b = Neg(x)  [s] c = Sigmoid(x)  [t] d = Tanh(x)  [m] y = Sum(b, c, d) }}""",
        {"x": tensor(readers=("n", "s"), uses={"s": QuantParams(**S8)})},
    ),
    "a reader of another width": (
        f"g ({IMAGE} x) => ({IMAGE} y) {{ [c] a = Conv{PAD}(x, w)  [s] b = Sigmoid(a)  [m] y = Add(a, b) }}",
        {"a": tensor(S8, uses={"s": QuantParams(**S16)}), "b": tensor(S16, uses={"m": QuantParams(**S8)})},
    ),
    "all readers of another width, and an output": (
        f"""g ({IMAGE} x) => ({IMAGE} a, {IMAGE} y) {{
        a = Neg(x)  [s] b = Sigmoid(a)  [t] y = Tanh(b) }}""",
        {"a": tensor(S16, uses={"s": QuantParams(**S8)}), "b": tensor(S8, uses={"t": QuantParams(**S16)})},
    ),
    "another width among some readers": (
        f"""g ({IMAGE} x) => ({IMAGE} y) {{
        [n] b = Neg(x)  [s] c = Sigmoid(x)  [t] d = Tanh(x)  [m] y = Sum(b, c, d) }}""",
        {"x": tensor(S16, readers=("n", "s"), uses={"s": QuantParams(**S8)})},
    ),
    "read in a body": (
        f"""g ({IMAGE} x) => ({IMAGE} y) <bool c = {{1}}> {{ a = Neg(x)
        [i] y = If(c) <then_branch = t () => ({IMAGE} tt) {{ [tn] tt = Abs(a) }},
        else_branch = e () => ({IMAGE} ee) {{ [en] ee = Exp(a) }}> }}""",
        {"a": tensor()},
    ),
    "input that is an output": (
        f"g ({IMAGE} x) => ({IMAGE} x, {IMAGE} y) {{ [n] y = Neg(x) }}",
        {"x": tensor(readers=("n",)), "y": tensor()},
    ),
    "names that look like ours": (
        f"""g ({IMAGE} x) => ({IMAGE} "a@b/raw") {{ ["x@n/q"] "x/raw" = Neg(x)  ["x/q"] "x@n" = Abs("x/raw")
        "x/dq" = Neg("x@n")  ["x/raw/q"] "a@b/raw" = Mul("x/dq", "x/scale") }}""",
        {n: tensor() for n in ("x", "x/raw", "x@n", "x/dq", "a@b/raw")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_what_was_written_is_read_back(name, parse, run):
    text, tensors = ROUND_TRIPS[name]
    arrays = {"w": weight(2, 2, 3, 3), "x/scale": weight(2, 4, 4)}
    model = parse(text, {n: a for n, a in arrays.items() if f", {n})" in text.replace('"', "")})
    written = assert_carried(model, tensors)
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 2, 4, 4)).astype(np.float32)}
    for a, b in zip(run(model, feeds), run(written, feeds), strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() < 1.0  # a few steps of 0.05, never another value


@pytest.mark.parametrize(("axis", "op"), [(0, "Gemm<transB=1>"), (1, "Gemm"), (None, "Gemm")])
def test_constants_are_stored_as_integers(axis, op, parse, run):
    shape = (3, 8) if axis == 0 else (8, 3)
    array = weight(*shape)
    model = parse(f"g (float[N,8] x) => (float[N,3] y) {{ y = {op}(x, w) }}", {"w": array})
    plan, codes = of_weight(array, axis)
    written = assert_carried(model, {"w": plan, "x": tensor()}, {"w": codes})
    assert written.graph.initializers["w/int"].dtype == ir.DataType.INT8
    assert "w" not in written.graph.initializers
    x = weight(4, 8)
    stored = dequantize_array(codes, plan)
    rounded = dequantize_array(quantize_array(x, tensor()), tensor())
    want = rounded @ (stored.T if axis == 0 else stored)
    np.testing.assert_allclose(run(written, {"x": x})[0], want, atol=1e-5)


def test_a_shared_weight_is_stored_once_and_zeros_too(parse):
    array = weight(2, 2, 3, 3)
    model = parse(CHAIN, {"w": array})
    plan, codes = of_weight(array)
    written = assert_carried(model, {"w": plan}, {"w": codes})
    assert [n.op_type for n in written.graph].count("DequantizeLinear") == 1
    other = parse(CHAIN.replace("(b, w)", "(b, v)"), {"w": array, "v": 2 * array})
    again, codes2 = of_weight(2 * array)
    written = assert_carried(other, {"w": plan, "v": again}, {"w": codes, "v": codes2})
    zeros = [n for n, v in written.graph.initializers.items() if not v.const_value.numpy().any()]
    assert len(zeros) == 1


def test_an_int32_bias_is_the_formula_of_its_two_scales(parse, run):
    array, bias = weight(2, 2, 3, 3), np.float32([0.3, -1.7])
    model = parse(f"g ({IMAGE} x) => (float[N,2,2,2] y) {{ y = Conv(x, w, b) }}", {"w": array, "b": bias})
    plan, codes = of_weight(array)
    scale = tuple(float(np.float32(0.0625) * np.float32(s)) for s in plan.scale)
    of_bias = TensorPlan(
        type="int32", scale=scale, zero_point=(0, 0), axis=0, origin="bias", bias_of=("x", "w"),
        digest=data_digest(bias_codes := np.rint(bias / scale).astype(np.int32)),
    )  # fmt: skip
    written = assert_carried(model, {"x": tensor(), "w": plan, "b": of_bias}, {"w": codes, "b": bias_codes})
    x = weight(1, 2, 4, 4)
    assert np.abs(run(written, {"x": x})[0] - run(model, {"x": x})[0]).max() < 0.3


def test_a_constant_that_is_an_output_stays_one(parse, run):
    array = weight(2, 2, 3, 3)
    model = parse(f"g ({IMAGE} x) => ({IMAGE} y, float[2,2,3,3] w) {{ y = Conv{PAD}(x, w) }}", {"w": array})
    plan, codes = of_weight(array)
    written = assert_carried(model, {"w": plan}, {"w": codes})
    np.testing.assert_array_equal(run(written, {"x": weight(1, 2, 4, 4)})[1], dequantize_array(codes, plan))


def test_half_scales(parse):
    model = parse(
        "g (float16[N,2,4,4] x) => (float16[N,2,2,2] y) { y = Conv(x, w) }",
        {"w": weight(2, 2, 3, 3).astype(np.float16)},
    )
    scale = tuple(float(np.float16(s)) for s in (0.01, 0.02))
    plan = TensorPlan(type="int8", scale=scale, zero_point=(0, 0), axis=0, origin="weight")
    half = float(np.float16(0.05))
    x = TensorPlan(type="int8", scale=(half,), zero_point=(0,), origin="calibration")
    written = assert_carried(model, {"x": x, "w": plan}, {"w": np.ones((2, 2, 3, 3), np.int8)}, "float16")
    assert written.graph.initializers["x/scale"].dtype == ir.DataType.FLOAT16
    session = ort.InferenceSession(ir.to_proto(written).SerializeToString())
    assert session.run(None, {"x": np.ones((1, 2, 4, 4), np.float16)})[0].dtype == np.float16


@pytest.mark.parametrize("axis", [0, 1])
def test_per_channel_activations(axis, parse):
    model = parse("g (float[2,2] x) => (float[2,2] y) { a = Neg(x)  y = Abs(a) }")
    plan = TensorPlan(type="uint8", scale=(0.125, 0.25), zero_point=(3, 4), axis=axis, origin="calibration")
    assert_carried(model, {"a": plan})


def test_the_graph_given_is_left_alone(parse):
    model = parse(CHAIN, {"w": weight(2, 2, 3, 3)})
    before = ir.to_proto(model).SerializeToString()
    plan, codes = of_weight(weight(2, 2, 3, 3))
    insert(model, {"y": tensor(), "x": tensor(), "w": plan}, {"w": codes})
    assert ir.to_proto(model).SerializeToString() == before


def test_two_writings_of_one_plan_are_equal(parse):
    model = parse(CHAIN, {"w": weight(2, 2, 3, 3)})
    plan, codes = of_weight(weight(2, 2, 3, 3))
    one, two = (
        ir.to_proto(insert(model, {"y": tensor(), "x": tensor(), "w": plan}, {"w": codes})) for _ in range(2)
    )
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_a_tampered_graph_reads_back_differently(parse):
    model = parse(CHAIN, {"w": weight(2, 2, 3, 3)})
    plan, codes = of_weight(weight(2, 2, 3, 3))
    tensors = {"x": tensor(), "b": tensor(), "w": plan}

    def problems(change) -> list[str]:
        graph = insert(model, tensors, {"w": codes})
        change(graph)
        read = Plan(graph_sha256="", target="", runtime="", tensors=read_tensors(graph))
        return differences(Plan(graph_sha256="", target="", runtime="", tensors=tensors), read)

    def replaced(name: str, array: np.ndarray):
        def change(graph: ir.Model) -> None:
            graph.graph.initializers[name].const_value = ir.tensor(array, name=name)

        return change

    def bypass(graph: ir.Model) -> None:
        node = next(n for n in graph.graph if n.name == "d")
        node.replace_input_with(0, next(n for n in graph.graph if n.name == "r").outputs[0])

    assert problems(lambda graph: None) == []
    assert "scale" in problems(replaced("x/scale", np.float32(0.06250001)))[0]
    assert "zero point" in problems(replaced("b/zero_point", np.uint8(99)))[0]
    assert "integer data" in problems(replaced("w/int", codes + np.int8(1)))[0]
    assert problems(bypass)


def test_what_cannot_be_written_or_read_is_said(parse):
    model = parse(CHAIN, {"w": weight(2, 2, 3, 3)})
    with pytest.raises(KeyError, match="nobody"):
        insert(model, {"nobody": tensor()}, {})
    both = parse("g (float[N] x) => (float[N] x, float[N] y) { y = Neg(x) }")
    with pytest.raises(ValueError, match="input and output"):
        insert(both, {"x": tensor()}, {})
    computed = parse(
        """g (float[N] x, float s) => (float[N] y) <uint8 z = {3}> {
        q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"""
    )
    with pytest.raises(ValueError, match="must be constants"):
        read_tensors(computed)


def test_integers_of_one_width_are_made_of_those_of_the_other(parse, run):
    """Whoever reads 16 bits of a value that is stored in 8 sees no more than these tell."""
    model = parse(f"g ({IMAGE} x) => ({IMAGE} y) {{ a = Neg(x)  [s] y = Neg(a) }}")
    plan = tensor(S8, uses={"s": QuantParams(**S16)})
    values = np.random.default_rng(2).normal(0, 3, (2, 2, 4, 4)).astype(np.float32)
    (found,) = run(insert(model, {"a": plan}, {}), {"x": values})
    eight = dequantize_array(quantize_array(-values, plan), plan)
    sixteen = plan.uses["s"]
    np.testing.assert_array_equal(found, -dequantize_array(quantize_array(eight, sixteen), sixteen))
    direct = dequantize_array(quantize_array(-values, sixteen), sixteen)
    assert np.abs(direct - values.clip(-7.9, 7.9) * -1).max() < 0.001 < np.abs(found - -direct).max()
