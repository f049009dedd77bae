"""Quantized models taken apart and put together again, against ONNX Runtime on the model as given."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from deploy.errors import UnsupportedError
from deploy.frontend.onnx_file import read, to_bytes
from deploy.frontend.opset import upgrade
from deploy.frontend.quantized import import_quantized
from deploy.graph.qdq import data_digest, insert, quantize_array
from deploy.spec.plan import TensorPlan

RNG = np.random.default_rng(0)
MS = "com.microsoft"


def parse(text: str) -> ir.Model:
    imports = f'<ir_version: 10, opset_import: ["": 21, "{MS}": 1]>'
    return upgrade(ir.from_onnx_text(f"{imports} g {text}"))


def execute(model: ir.Model | Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    content = ir.to_proto(model).SerializeToString() if isinstance(model, ir.Model) else str(model)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


def imported(model: ir.Model) -> tuple[ir.Model, dict[str, TensorPlan]]:
    result = import_quantized(model)
    assert result is not None
    graph, plan = result
    onnx.checker.check_model(onnx.load_from_string(to_bytes(graph)), full_check=True)
    assert [v.name for v in graph.graph.outputs] == [v.name for v in model.graph.outputs]
    return graph, plan


def codes_of(graph: ir.Model, plan: dict[str, TensorPlan]) -> dict[str, np.ndarray]:
    """The integers of the constants, found again by rounding; their digests must be the imported ones."""
    found = {}
    for name, value in graph.graph.initializers.items():
        if name in plan and value.const_value is not None:
            found[name] = quantize_array(value.const_value.numpy(), plan[name])
            assert data_digest(found[name]) == plan[name].digest
    return found


def rebuilt(graph: ir.Model, plan: dict[str, TensorPlan]) -> ir.Model:
    return insert(graph, plan, codes_of(graph, plan))


def steps_apart(want: np.ndarray, got: np.ndarray, scale: float) -> float:
    assert want.shape == got.shape and want.dtype == got.dtype
    return float(np.abs(want.astype(np.float64) - got.astype(np.float64)).max() / scale)


# ---------------------------------------------------------------------- a whole network, quantized by others

NETWORK = """<ir_version: 8, opset_import: ["": 17]>
net (float[n,3,8,8] x) => (float[n,5] y) <int64[2] flat = {0, -1}> {
    [conv1] a = Conv <pads=[1,1,1,1]> (x, w1, b1)  [relu1] b = Relu (a)
    [conv2] c = Conv <pads=[1,1,1,1]> (b, w2, b2)  [relu2] d = Relu (c)
    [add] e = Add (d, b)  [pool] f = MaxPool <kernel_shape=[2,2], strides=[2,2]> (e)
    [gate] g = Sigmoid (f)  [scale] h = Mul (f, g)  [leaky] i = LeakyRelu <alpha=0.1> (h)
    [join] j = Concat <axis=1> (i, f)  [mean] k = GlobalAveragePool (j)  [flatten] l = Reshape (k, flat)
    [fc] y = Gemm <transB=1> (l, w3, b3) }"""


class Samples:
    def __init__(self) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = iter(
            [{"x": RNG.normal(size=(4, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


@pytest.fixture(scope="module")
def float_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    proto = onnx.parser.parse_model(NETWORK)
    shapes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (5, 8), "b3": (5,)}
    for name, shape in shapes.items():
        array = RNG.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path = tmp_path_factory.mktemp("network") / "float.onnx"
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activation", ["QUInt8", "QInt8"])
def test_a_network_quantized_by_onnx_runtime(
    float_network: Path, tmp_path: Path, form: str, per_channel: bool, activation: str
) -> None:
    from onnxruntime import quantization

    logging.disable(logging.WARNING)
    quantization.quantize_static(
        float_network,
        tmp_path / "quantized.onnx",
        Samples(),
        quant_format=quantization.QuantFormat[form],
        per_channel=per_channel,
        activation_type=quantization.QuantType[activation],
        weight_type=quantization.QuantType.QInt8,
    )
    logging.disable(logging.NOTSET)
    graph, plan = imported(read(tmp_path / "quantized.onnx").model)
    kinds = {node.op_type for node in graph.graph}
    assert not any(kind.startswith("Q") or "Linear" in kind for kind in kinds)
    x = {"x": RNG.normal(size=(8, 3, 8, 8)).astype(np.float32)}
    (want,) = execute(tmp_path / "quantized.onnx", x)
    (got,) = execute(rebuilt(graph, plan), x)
    # The two orders of float summation may round a code apart, and a code apart is seen at the end.
    assert steps_apart(want, got, plan["y"].scale[0]) <= 2.01
    assert np.mean(np.abs(want - got) > plan["y"].scale[0] / 2) < 0.1
    (floats,) = execute(float_network, x)
    (dequantized,) = execute(graph, x)
    np.testing.assert_allclose(dequantized, floats, atol=0.15 * np.abs(floats).max())
    weight = plan["w1"]
    assert weight.type == "int8" and weight.axis == (0 if per_channel else None) and weight.digest
    assert plan["b1"].type == "int32" and plan["b1"].bias_of == ("x", "w1")
    assert plan["x"].origin == "imported"


# ---------------------------------------------------------------------- one operation at a time

X = RNG.uniform(-1, 1, size=(2, 4, 6, 5)).astype(np.float32)
Y = RNG.uniform(-1, 1, size=(2, 4, 6, 5)).astype(np.float32)
PARAMETERS = """float sx = {0.008}, uint8 zx = {127}, float sy = {0.009}, uint8 zy = {120},
    float so = {0.02}, uint8 zo = {100}"""
QX = "qx = QuantizeLinear (x, sx, zx)"
QXY = f"{QX}  qy = QuantizeLinear (y, sy, zy)"


@pytest.mark.parametrize(
    ("kind", "body", "shape"),
    [
        ("Add", f"{QXY}  q = {MS}.QLinearAdd (qx, sx, zx, qy, sy, zy, so, zo)", "2,4,6,5"),
        ("Mul", f"{QXY}  q = {MS}.QLinearMul (qx, sx, zx, qy, sy, zy, so, zo)", "2,4,6,5"),
        ("Sigmoid", f"{QX}  q = {MS}.QLinearSigmoid (qx, sx, zx, so, zo)", "2,4,6,5"),
        ("LeakyRelu", f"{QX}  q = {MS}.QLinearLeakyRelu <alpha=0.2> (qx, sx, zx, so, zo)", "2,4,6,5"),
        ("Softmax", f"{QX}  q = {MS}.QLinearSoftmax <axis=-1, opset=13> (qx, sx, zx, so, zo)", "2,4,6,5"),
        ("GlobalAveragePool", f"{QX}  q = {MS}.QLinearGlobalAveragePool (qx, sx, zx, so, zo)", "2,4,1,1"),
        ("AveragePool", f"{QX}  q = {MS}.QLinearAveragePool <kernel_shape=[2,2]> (qx, sx, zx, so, zo)",
         "2,4,5,4"),
        ("Concat", f"{QXY}  q = {MS}.QLinearConcat <axis=1> (so, zo, qx, sx, zx, qy, sy, zy)", "2,8,6,5"),
        ("Where", f"{QXY}  c = Less (x, y)  q = {MS}.QLinearWhere (c, qx, sx, zx, qy, sy, zy, so, zo)",
         "2,4,6,5"),
        ("MaxPool", f"{QX}  m = MaxPool <kernel_shape=[2,2]> (qx)  d = DequantizeLinear (m, sx, zx)"
         "  q = QuantizeLinear (d, so, zo)", "2,4,5,4"),
        ("Pad", f"{QX}  m = Pad (qx, p)  d = DequantizeLinear (m, sx, zx)  q = QuantizeLinear (d, so, zo)",
         "2,4,7,7"),
        ("Transpose", f"{QX}  m = Transpose (qx)  d = DequantizeLinear (m, sx, zx)"
         "  q = QuantizeLinear (d, so, zo)", "5,6,4,2"),
        ("Relu", f"q0 = {MS}.QuantizeLinear (x, sx, zx)  d = {MS}.DequantizeLinear (q0, sx, zx)  r = Relu (d)"
         "  q = QuantizeLinear (r, so, zo)", "2,4,6,5"),
    ],
)  # fmt: skip
def test_each_operation_within_one_step(kind: str, body: str, shape: str) -> None:
    signature = f"(float[2,4,6,5] x, float[2,4,6,5] y) => (float[{shape}] z)"
    constants = f"<{PARAMETERS}, int64[8] p = {{0,0,1,0,0,0,0,2}}>"
    model = parse(f"{signature} {constants} {{ {body}  z = DequantizeLinear (q, so, zo) }}")
    graph, plan = imported(model)
    assert kind in {node.op_type for node in graph.graph}
    assert not {node.domain for node in graph.graph} - {""} and MS not in graph.opset_imports
    assert plan["z"].scale == (float(np.float32(0.02)),) and plan["z"].zero_point == (100,)
    (want,) = execute(model, {"x": X, "y": Y})
    (got,) = execute(rebuilt(graph, plan), {"x": X, "y": Y})
    assert steps_apart(want, got, 0.02) <= 1.01


@pytest.mark.parametrize("channels", ["scalar", "vector"])
def test_products_with_bias(channels: str) -> None:
    vector = "float[3] sw = {0.01, 0.02, 0.03}, int8[3] zw = {0, 0, 0}"
    scale = vector if channels == "vector" else "float sw = {0.01}, int8 zw = {0}"
    weights = ",".join(map(str, RNG.integers(-127, 127, 12)))
    model = parse(f"""(float[2,4,6,5] x) => (float[2,3,6,5] z, float[48,3] g, float[2,4,6,3] m)
        <{PARAMETERS}, {scale}, int8[3,4,1,1] w = {{{weights}}}, int8[3,5] v = {{{weights},1,2,3}},
         int8[5,3] u = {{{weights},3,2,1}}, int32[3] b = {{1000, -2000, 70000}}, int64[2] s = {{48, 5}}> {{
        {QX}  c = QLinearConv (qx, sx, zx, w, sw, zw, so, zo, b)  z = DequantizeLinear (c, so, zo)
        f = Reshape (qx, s)  h = {MS}.QGemm <transB=1> (f, sx, zx, v, sw, zw, b, so, zo)
        g = DequantizeLinear (h, so, zo)
        k = QLinearMatMul (qx, sx, zx, u, sw, zw, so, zo)  m = DequantizeLinear (k, so, zo) }}""")
    graph, plan = imported(model)
    axis = {"w": 0, "v": 0, "u": 1} if channels == "vector" else dict.fromkeys("wvu")
    assert {name: plan[name].axis for name in "wvu"} == axis
    assert plan["b"].bias_of == ("x", "w") and plan["b"].type == "int32"
    stored = model.graph.initializers["w"].const_value
    assert stored is not None and plan["w"].digest == data_digest(stored.numpy())
    for want, got in zip(execute(model, {"x": X}), execute(rebuilt(graph, plan), {"x": X}), strict=True):
        assert steps_apart(want, got, 0.02) <= 1.01


def test_weights_alone() -> None:
    model = parse("""(float[2,3] x) => (float[2,2] y)
        <int8[3,2] w = {1,-2,3,-4,5,-6}, float[2] s = {0.5, 0.25}> {
        d = DequantizeLinear <axis=1> (w, s)  y = MatMul (x, d) }""")
    graph, plan = imported(model)
    assert list(plan) == ["w"] and plan["w"].axis == 1 and plan["w"].type == "int8"
    x = {"x": X[0, 0, :2, :3]}
    np.testing.assert_array_equal(execute(model, x)[0], execute(graph, x)[0])
    np.testing.assert_array_equal(execute(model, x)[0], execute(rebuilt(graph, plan), x)[0])


def test_weights_kept_in_float_behind_a_pair() -> None:
    model = parse("""(float[2,3] x) => (float[2,2] y)
        <float[3,2] w = {1.1,-2.2,3.3,-4.4,5.5,-6.6}, float s = {0.5}, int8 z = {0}> {
        q = QuantizeLinear (w, s, z)  d = DequantizeLinear (q, s, z)  y = MatMul (x, d) }""")
    graph, plan = imported(model)
    weight = graph.graph.initializers["w"].const_value
    assert weight is not None and plan["w"].digest
    np.testing.assert_array_equal(weight.numpy(), np.array([[1, -2], [3.5, -4.5], [5.5, -6.5]], np.float32))


def test_readers_that_see_other_parameters_or_none() -> None:
    model = parse(f"""(float[2,4,6,5] x) => (float[2,4,6,5] o) <{PARAMETERS}> {{
        {QX}  d = DequantizeLinear (qx, sx, zx)
        e = QuantizeLinear (x, sy, zy)  f = DequantizeLinear (e, sy, zy)
        [one] a = Relu (d)  [two] b = Sigmoid (d)  [three] c = Neg (f)  [four] g = Abs (x)
        o = Sum (a, b, c, g) }}""")
    graph, plan = imported(model)
    assert list(plan) == ["x"]
    assert plan["x"].readers == ("one", "three", "two")
    assert list(plan["x"].uses) == ["three"] and plan["x"].uses["three"].zero_point == (120,)
    (want,), (got,) = execute(model, {"x": X}), execute(rebuilt(graph, plan), {"x": X})
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_quantized_twice_in_a_row_stays_two_steps() -> None:
    model = parse(f"""(float[2,4,6,5] x) => (float[2,4,6,5] o) <{PARAMETERS}> {{
        {QX}  d = DequantizeLinear (qx, sx, zx)
        e = QuantizeLinear (d, so, zo)  f = DequantizeLinear (e, so, zo)
        o = Relu (f) }}""")
    graph, plan = imported(model)
    assert [node.op_type for node in graph.graph] == ["Identity", "Relu"] and len(plan) == 2
    (want,), (got,) = execute(model, {"x": X}), execute(rebuilt(graph, plan), {"x": X})
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(("scale", "kind"), [(6 / 255, "Clip"), (0.02, "Relu")])
def test_an_activation_left_to_the_codes_comes_back(scale: float, kind: str) -> None:
    model = parse(f"""(float[2,4,6,5] x) => (float[2,4,6,5] o)
        <{PARAMETERS}, float s = {{{scale}}}, uint8 z = {{0}}> {{
        a = Add (x, x)  q = QuantizeLinear (a, s, z)  d = DequantizeLinear (q, s, z)  o = Neg (d) }}""")
    graph, plan = imported(model)
    assert [node.op_type for node in graph.graph] == ["Add", kind, "Neg"] and list(plan) == ["a"]
    np.testing.assert_allclose(execute(graph, {"x": X})[0], execute(model, {"x": X})[0], atol=scale / 1.9)
    np.testing.assert_array_equal(execute(rebuilt(graph, plan), {"x": X})[0], execute(model, {"x": X})[0])


def test_codes_come_in_and_go_out() -> None:
    model = parse(f"""(uint8[2,4,6,5] q) => (uint8[2,4,6,5] o, uint8[2,4,6,5] p) <{PARAMETERS}> {{
        o = {MS}.QLinearSigmoid (q, sx, zx, so, zo)
        d = DequantizeLinear (q, sx, zx)  r = Relu (d)  p = QuantizeLinear (r, so, zo) }}""")
    graph, _ = imported(model)
    codes = {"q": RNG.integers(0, 255, (2, 4, 6, 5)).astype(np.uint8)}
    for want, got in zip(execute(model, codes), execute(graph, codes), strict=True):
        assert steps_apart(want, got, 1) <= 1


def test_a_float_model_is_none_and_the_given_one_unchanged() -> None:
    model = parse("(float[2] x) => (float[2] y) { y = Relu (x) }")
    assert import_quantized(model) is None
    model = parse(
        f"(float[2,4,6,5] x) => (float[2,4,6,5] o) <{PARAMETERS}>{{ {QX} o = DequantizeLinear (qx, sx, zx) }}"
    )
    before = to_bytes(model)
    imported(model)
    assert to_bytes(model) == before


def test_what_cannot_be_taken_over_is_refused_all_at_once() -> None:
    model = parse(f"""(float[2,4] x, float s, int8[4,4] w)
        => (float[2,4] o, int32[2,4] m, float[4,4] e, uint8[2,4] t) <{PARAMETERS},
        int8[4,4] k = {{1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}}, float[2,4] b = {{1,1,1,1,1,1,1,1}}> {{
        [dynamic] q, a, z = DynamicQuantizeLinear (x)  [product] m = MatMulInteger (q, w, z)
        [computed] c = QuantizeLinear (x, s)  [blocked] e = DequantizeLinear <axis=0, block_size=2> (k, b)
        {QX}  [other] o = DequantizeLinear (qx, so, zo)  [codes] t = Max (qx, qx) }}""")
    with pytest.raises(UnsupportedError, match="6 operations") as refusal:
        import_quantized(model)
    for name in ("dynamic", "product", "computed", "blocked", "other", "codes"):
        assert f"'{name}'" in refusal.value.message
    assert "float model" in refusal.value.hint
