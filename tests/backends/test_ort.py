"""The ONNX Runtime backend: what it says of graphs it cannot run, what it writes, and how that runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from backends.ort import OnnxRuntime
from backends.ort.backend import OrtOptions
from deploy.adapter.profiles import load_profile
from deploy.errors import BackendError, DataError, UnsupportedError
from deploy.graph.qdq import data_digest, insert, quantize_array
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.artifact import Options
from deploy.spec.plan import Plan, QuantParams, TensorPlan, differences

RUNTIME = load_profile("x86-vnni").runtime_named("ort")
PLAIN = Plan(graph_sha256="", target="x86", runtime="ort")
ROWS = "float[N,8]"


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def graph(text: str, domains: str = "", **weights: np.ndarray) -> ir.Model:
    tensors = [ir.tensor(a, name=n) for n, a in weights.items()]
    head = f'<ir_version: 10, opset_import: ["" : 21{domains}]>'
    model = ir.from_onnx_text(f"{head} {text}", initializers=tensors)
    for i, node in enumerate(ir.traversal.RecursiveGraphIterator(model.graph)):
        node.name = node.name or f"n{i}"
    return infer(model)


def verdicts(model: ir.Model) -> dict[str, str]:
    return {v.node: v.support for v in OnnxRuntime().check(model, RUNTIME)}


CUSTOM = ', "acme" : 1, "com.microsoft" : 1'


def test_a_graph_that_runs_is_supported_node_by_node():
    model = graph(f"g ({ROWS} x) => ({ROWS} y) {{ [a] a = MatMul(x, w)  [b] y = Relu(a) }}", w=weight(8, 8))
    assert verdicts(model) == {"a": "supported", "b": "supported"}


def test_every_unsupported_node_is_listed_with_its_reason_and_no_other():
    model = graph(
        f"""g ({ROWS} x) => ({ROWS} y, {ROWS} z) {{
        [a] a = MatMul(x, w)  [bad1] b = acme.Twist(a)  [sq] s = Mul(a, a)  [bad2] y = acme.Turn(s)
        [bad3] d = acme.Twist(s)  [e] z = Clip(s, , hi) }}""",
        CUSTOM,
        w=weight(8, 8), hi=np.float32(3),
    )  # fmt: skip
    found = OnnxRuntime().check(model, RUNTIME)
    refused = [v for v in found if v.support == "unsupported"]
    assert [v.node for v in refused] == ["bad1", "bad2", "bad3"]
    assert all("acme" in v.reason or "Twist" in v.reason or "Turn" in v.reason for v in refused)
    assert {v.node for v in found} == {"a", "bad1", "sq", "bad2", "bad3", "e"}
    with pytest.raises(
        UnsupportedError, match=r"(?s)cannot run 3 of \d nodes:\n.*bad1.*\n.*bad2.*\n.*bad3"
    ) as caught:
        OnnxRuntime().lower(model, PLAIN, RUNTIME, Path("/nonexistent"), SILENT)
    assert caught.value.hint


def test_what_comes_after_an_unknown_type_is_unknown_not_refused():
    model = graph(f"g ({ROWS} x) => ({ROWS} y) {{ [bad] a = acme.Twist(x)  [r] y = Relu(a) }}", CUSTOM)
    assert verdicts(model) == {"bad": "unsupported", "r": "unknown"}


def test_bodies_and_optional_outputs_are_not_blamed():
    model = graph(
        f"""g ({ROWS} x, bool c) => ({ROWS} y, {ROWS} p) {{ [a] a = Neg(x)
        [i] b = If(c) <then_branch = t () => ({ROWS} tt) {{ [tn] tt = Abs(a) }},
        else_branch = e () => ({ROWS} ee) {{ [en] ee = Mul(a, w) }}>
        [d] p, m = Dropout(b)  [u] u = Unsqueeze(b, ax)  [l] h, , k = LSTM<hidden_size=4>(u, lw, lr)
        [bad] y = acme.Twist(b) }}""",
        CUSTOM,
        w=weight(8), ax=np.int64([0]), lw=weight(1, 16, 8), lr=weight(1, 16, 4),
    )  # fmt: skip
    found = verdicts(model)
    assert [n for n, s in found.items() if s != "supported"] == ["bad"]


def test_a_body_with_an_unsupported_node_is_named():
    model = graph(
        f"""g ({ROWS} x, bool c) => ({ROWS} y) {{
        [i] y = If(c) <then_branch = t () => ({ROWS} tt) {{ [tn] tt = acme.Twist(x) }},
        else_branch = e () => ({ROWS} ee) {{ [en] ee = Abs(x) }}> }}""",
        CUSTOM,
    )
    assert verdicts(model) == {"i": "unsupported"}


def of_weight(array: np.ndarray) -> tuple[TensorPlan, np.ndarray]:
    scale = (np.abs(array).max(axis=0) / 127).astype(np.float32)
    params = QuantParams(type="int8", scale=tuple(map(float, scale)), zero_point=(0,) * len(scale), axis=1)
    codes = quantize_array(array, params)
    return TensorPlan(**params.model_dump(), origin="weight", digest=data_digest(codes)), codes


@pytest.fixture
def lowered(tmp_path):
    """A quantized product, its plan, and the artifact."""
    model = graph(
        f"g ({ROWS} x) => (float[N,4] y) {{ [m] a = MatMul(x, w)  [r] y = Relu(a) }}", w=weight(8, 4)
    )
    of_w, codes = of_weight(weight(8, 4))
    x = TensorPlan(type="uint8", scale=(0.03125,), zero_point=(128,), origin="calibration")
    y = TensorPlan(type="uint8", scale=(0.0625,), zero_point=(0,), origin="calibration")
    plan = PLAIN.model_copy(update={"tensors": {"w": of_w, "x": x, "y": y}})
    qdq = insert(model, plan.tensors, {"w": codes})
    return plan, qdq, OnnxRuntime().lower(qdq, plan, RUNTIME, tmp_path, SILENT)


def test_the_artifact_is_one_valid_file_that_carries_the_plan(lowered):
    plan, _, artifact = lowered
    onnx.checker.check_model(onnx.load(artifact.main), full_check=True)
    assert artifact.files == ("model.onnx",)
    assert (artifact.inputs[0].name, artifact.outputs[0].name) == ("x", "y")
    assert artifact.inputs[0].shape == ("N", 8)
    assert artifact.weight_bytes >= 8 * 4
    assert artifact.toolchain == {"onnxruntime": onnxruntime.__version__}
    assert not artifact.deferred
    assert differences(plan, OnnxRuntime().read_plan(artifact)) == []


def test_the_plan_is_read_from_the_file_not_from_memory(lowered):
    plan, _, artifact = lowered
    proto = onnx.load(artifact.main)
    scale = next(i for i in proto.graph.initializer if i.name == "x/scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.5), "x/scale"))
    onnx.save(proto, artifact.main)
    assert differences(plan, OnnxRuntime().read_plan(artifact)) == [
        "x: scale 0.5, planned 0.03125 (125829120.0 ulp apart)"
    ]


def test_the_runner_computes_the_plan_and_gives_inner_values(lowered):
    plan, _, artifact = lowered
    x = weight(5, 8)
    options = OnnxRuntime().options(RUNTIME, threads=1)
    with OnnxRuntime().open(artifact, options) as runner:
        got = runner.run({"x": x}, ["x/dq"])
        with pytest.raises(DataError, match="'x' is missing"):
            runner.run({})

    def step(array, params):
        codes = np.rint(array.astype(np.float64) / params.scale[0]) + params.zero_point[0]
        return (np.clip(codes, 0, 255) - params.zero_point[0]) * params.scale[0]

    rounded = step(x, plan.tensors["x"])
    np.testing.assert_array_equal(got["x/dq"], rounded)
    codes = np.rint(weight(8, 4) / np.asarray(plan.tensors["w"].scale))
    exact = np.maximum(rounded @ (codes * np.asarray(plan.tensors["w"].scale)), 0)
    assert np.abs(got["y"] - step(exact, plan.tensors["y"])).max() <= plan.tensors["y"].scale[0]


def test_options_are_threads_and_the_profiles_session_settings():
    runtime = RUNTIME.model_copy(update={"options": {"session.intra_op.allow_spinning": False, "note": "x"}})
    options = OnnxRuntime().options(runtime, threads=2)
    assert options == OrtOptions(threads=2, session={"session.intra_op.allow_spinning": "0", "note": "x"})


def test_a_damaged_file_is_a_backend_error(lowered):
    artifact = lowered[2]
    artifact.main.write_bytes(artifact.main.read_bytes()[:100])
    with pytest.raises(BackendError, match="cannot open"):
        OnnxRuntime().open(artifact, Options())


def test_available_says_the_version():
    found = OnnxRuntime().available()
    assert (found.version, found.missing) == (onnxruntime.__version__, "")


def test_a_float_convolution_between_integer_ones_keeps_its_float_weights(tmp_path):
    """Left alone, ONNX Runtime gives it integer weights of its own, and the small ones here are gone."""
    tiny = np.zeros((2, 2, 1, 1), np.float32)
    tiny[:, 0], tiny[:, 1] = 1.0, 1e-4  # 1e-4 is less than half a step of 1 / 127
    eye = np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1)
    model = graph(
        """g (float[N,2,4,4] x) => (float[N,2,4,4] y) {
        [a] a = Conv(x, i)  [b] b = Conv(a, t)  [c] y = Conv(b, i) }""",
        i=eye, t=tiny,
    )  # fmt: skip
    params = {"type": "uint8", "zero_point": (0,), "origin": "calibration"}
    ends = TensorPlan(scale=(4.0,), **params)
    tensors = {"x": ends, "a": ends, "b": TensorPlan(scale=(2.0**-8,), **params)}
    qdq = insert(model, tensors, {})
    artifact = OnnxRuntime().lower(qdq, PLAIN, RUNTIME, tmp_path, SILENT)
    x = np.zeros((1, 2, 4, 4), np.float32)
    x[:, 1] = 1000.0  # 1000 times 1e-4 is 0.1
    with OnnxRuntime().open(artifact, OnnxRuntime().options(RUNTIME, 1)) as runner:
        assert np.abs(runner.run({"x": x})["y"] - 0.1).max() < 2.0**-8


def test_settings_worth_trying_concern_threads_alone():
    backend = OnnxRuntime()
    alone = backend.options(RUNTIME, 1)
    assert backend.variants(RUNTIME, alone) == []
    variants = backend.variants(RUNTIME, backend.options(RUNTIME, 2))
    assert variants and all(v.options.threads == 2 and v.around is None for v in variants)
    kept = backend.options(RUNTIME, 2).session.items()
    assert all(kept < v.options.session.items() for v in variants)


def test_a_file_opens_with_every_variant(tmp_path):
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1,8] x) => (float[1,8] y) { [a] y = Tanh(x) }'
    )
    backend, x = OnnxRuntime(), np.linspace(-2, 2, 8, dtype=np.float32)[None]
    artifact = backend.lower(model, PLAIN, RUNTIME, tmp_path, SILENT)
    for variant in backend.variants(RUNTIME, backend.options(RUNTIME, 2)):
        with backend.open(artifact, variant.options) as runner:
            np.testing.assert_allclose(runner.run({"x": x})["y"], np.tanh(x), rtol=1e-6)
