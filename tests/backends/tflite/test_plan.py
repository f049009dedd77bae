"""Plans of INT8 that few networks have: the file carries them, and computes what the Q/DQ graph says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.bundle.operations import deviations
from deploy.execute.reference import open_graph
from deploy.graph.edit import constant
from deploy.graph.qdq import insert, quantize_array
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.quantize.candidate import Candidate, Subject
from deploy.spec.plan import Plan, QuantParams, TensorPlan, differences

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite

RUNTIME = load_profile("android").runtime_named("tflite")
HEAD = '<ir_version: 10, opset_import: ["" : 21]> g '
RNG = np.random.default_rng(0)
X = {"x": RNG.normal(0, 1, (2, 4, 6, 6)).astype(np.float32)}


def graph(text: str, **constants: np.ndarray) -> ir.Model:
    tensors = [ir.tensor(array, name=name) for name, array in constants.items()]
    model = ir.from_onnx_text(HEAD + text, initializers=tensors)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}{number}"
    return infer(model)


def activation(scale: float, zero: int = 0, **more: object) -> TensorPlan:
    given = {"type": "int8", "scale": (scale,), "zero_point": (zero,), "origin": "calibration", **more}
    return TensorPlan.model_validate(given)


def require_right(
    model: ir.Model, tensors: dict[str, TensorPlan], folder: Path, feeds: dict[str, np.ndarray] = X
) -> None:
    """The file carries the plan, and each of its operations is right to one step."""
    codes = {}
    for name in tensors.keys() & model.graph.initializers.keys():
        array = constant(model.graph.initializers[name])
        assert array is not None
        codes[name] = quantize_array(array, tensors[name])
    plan = Plan(graph_sha256="", target="", runtime="tflite", tensors=tensors)
    qdq = insert(model, tensors, codes)
    backend = TFLite()
    artifact = backend.lower(qdq, plan, RUNTIME, folder, SILENT)
    assert differences(plan, backend.read_plan(artifact), ulps=1) == []
    options = backend.options(RUNTIME, 1)
    subject = Subject(model, "", "", RUNTIME, backend, options, (), [], {}, "minmax", frozenset())
    found = deviations(Candidate(plan, qdq, qdq, artifact), subject, feeds)
    assert found and not [str(deviation) for deviation in found if deviation.wrong]
    with open_graph(qdq, optimised=False) as literal, backend.open(artifact, options) as runner:
        want, got = literal.run(feeds), runner.run(feeds)
    for name, array in want.items():
        assert got[name].shape == array.shape


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.3, shape).astype(np.float32)


def by_tensor(array: np.ndarray) -> TensorPlan:
    return activation(float(np.float32(np.abs(array).max() / 127)), origin="weight")


@pytest.mark.parametrize(
    ("mover", "constants"),
    [
        ("Pad(x, widths)", {"widths": np.zeros(8, np.int64)}),
        ("Transpose<perm=[0,1,2,3]>(x)", {}),
        ("Reshape(x, same)", {"same": np.array([2, 4, 6, 6])}),
    ],
    ids=["no padding", "no turn", "no reshape"],
)
def test_who_reads_a_value_that_another_node_only_passes_on_reads_that_one(
    mover, constants, tmp_path: Path
) -> None:
    """The value and what is passed on are the same bytes, but two tensors of the plan."""
    w = weights(8, 4, 3, 3)
    model = graph(
        f"""(float[2,4,6,6] x) => (float[2,8,4,4] y, float[2,4,6,6] z) {{
            m = {mover} y = Conv(m, w) z = Abs(x)
        }}""",
        w=w,
        **constants,
    )
    first = model.graph[0].name
    tensors = {"x": activation(0.03, 5, readers=(first,)), "m": activation(0.03, 5), "y": activation(0.05)}
    require_right(model, {**tensors, "w": by_tensor(w)}, tmp_path)


def test_channels_shuffled_beside_a_float_reader(tmp_path: Path) -> None:
    """Two reshapes and the turn between them leave no tensor of their own for what lies between."""
    model = graph(
        """(float[2,4,6,6] x) => (float[2,4,6,6] y, float[2,4,6,6] z) {
            a = Reshape(x, apart) b = Transpose<perm=[0,2,1,3,4]>(a) c = Reshape(b, whole)
            y = Add(c, c) z = Abs(x)
        }""",
        apart=np.array([2, 2, 2, 6, 6]), whole=np.array([2, 4, 6, 6]),
    )  # fmt: skip
    tensors = {name: activation(0.03, 5) for name in "abc"} | {"y": activation(0.06, 5)}
    require_right(model, {**tensors, "x": activation(0.03, 5, readers=("Reshape0",))}, tmp_path)


def test_a_value_with_two_sets_of_parameters_is_rounded_once_for_each_reader(tmp_path: Path) -> None:
    """The first set clips what the second holds."""
    w = weights(8, 4, 3, 3)
    model = graph(
        """(float[2,4,6,6] x) => (float[2,8,4,4] y, float[2,8,4,4] z) {
            c = Conv(x, w) y = Add(c, c) z = Mul(c, c)
        }""",
        w=w,
    )
    wide = QuantParams(type="int8", scale=(0.04,), zero_point=(3,))
    tensors = {"x": activation(0.03), "c": activation(0.004, uses={"Mul2": wide}), "w": by_tensor(w)}
    require_right(model, tensors | {"y": activation(0.01), "z": activation(0.1)}, tmp_path)


@pytest.mark.parametrize("same", ["Identity(c)", 'Resize<mode = "nearest">(c, , s)'])
def test_what_does_nothing_is_told_apart_from_its_readers(same: str, tmp_path: Path) -> None:
    """With parameters like its operand's, with others, and read as floats."""
    w = weights(4, 4, 1, 1)
    text = f"""(float[2,4,6,6] x, float[2,4,6,6] z) => (float[2,4,6,6] a, float[2,4,6,6] b)
    <float[4] s = {{1, 1, 1, 1}}> {{ c = Conv(x, w) d = {same} a = Add(d, z) b = Mul(c, z) }}"""
    feeds = {**X, "z": X["x"][::-1].copy()}
    plain = {"x": activation(0.03), "z": activation(0.03), "w": by_tensor(w)}
    op = same[: same.index("(")].partition("<")[0]
    wide = QuantParams(type="int8", scale=(0.05,), zero_point=(3,))
    for number, tensors in enumerate((
        {**plain, "c": activation(0.02), "d": activation(0.02), "a": activation(0.04)},
        {**plain, "c": activation(0.02)},
        {**plain, "c": activation(0.02, uses={f"{op}1": wide})},
        {"x": activation(0.03), "w": by_tensor(w), "c": activation(0.02, readers=(f"{op}1",))},
    )):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        require_right(graph(text, w=w), tensors, tmp_path / str(number), feeds)


def test_an_integer_bias_beside_a_float_convolution_is_read_as_floats(tmp_path: Path) -> None:
    """DEQUANTIZE takes no int32."""
    w, b = weights(8, 4, 3, 3), weights(8)
    model = graph("(float[2,4,6,6] x) => (float[2,8,4,4] y) { y = Conv(x, w, b) }", w=w, b=b)
    scale = 0.03 * by_tensor(w).scale[0]
    bias = TensorPlan(type="int32", scale=(float(np.float32(scale)),), zero_point=(0,), origin="bias")
    require_right(model, {"x": activation(0.03), "w": by_tensor(w), "b": bias}, tmp_path)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_a_scale_too_fine_for_the_kernel_leaves_the_operation_float(op, tmp_path: Path) -> None:
    """Nearly dead behind its activation: kernels overflow, or abort the process."""
    model = graph(f"(float[2,4,6,6] x) => (float[2,4,6,6] y) {{ a = {op}(x, x) y = Relu(a) }}")
    require_right(model, {"x": activation(0.03), "y": activation(1e-6, -128)}, tmp_path)


def test_floats_behind_a_reshape_have_readers_beside_the_quantized_ones(tmp_path: Path) -> None:
    """Reshapes of a reshape read what that was made of, but for what is quantized."""
    u = weights(6, 8)
    model = graph(
        """(float[2,4,6,6] x) => (float[2,24,8] y, float[2,144] z) {
            a = Abs(x) v = Reshape(a, rows) y = MatMul(v, u) f = Reshape(v, flat) z = Neg(f)
        }""",
        u=u, rows=np.array([2, 24, 6]), flat=np.array([2, 144]),
    )  # fmt: skip
    plans = {"v": activation(0.03, -128, readers=("MatMul2",)), "u": by_tensor(u), "y": activation(0.05)}
    require_right(model, plans, tmp_path)


@pytest.mark.parametrize("coarser", [0.5, 255.0, 257.0, 1e5])
def test_a_product_whose_result_is_stored_too_finely_is_float(coarser: float, tmp_path: Path) -> None:
    """XNNPACK takes a ratio of scales below 256, and fails to prepare beyond."""
    u = weights(6, 8)
    model = graph("(float[2,4,6,6] x) => (float[2,4,6,8] y) { y = MatMul(x, u) }", u=u)
    stored = by_tensor(u)
    fine = 0.03 * stored.scale[0] / coarser
    require_right(model, {"x": activation(0.03), "u": stored, "y": activation(fine)}, tmp_path)
