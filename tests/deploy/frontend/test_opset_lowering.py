"""Graphs said in an earlier opset than their own, against ONNX Runtime on both."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from deploy.errors import UnsupportedError
from deploy.frontend.opset import OPSET, retarget, upgrade

RNG = np.random.default_rng(0)
Q = RNG.normal(size=(1, 2, 3, 4)).astype(np.float32)
X = RNG.normal(size=(2, 4, 6, 5)).astype(np.float32)


def parse(opset: int, signature: str, body: str) -> ir.Model:
    """``signature`` is ``(inputs) => (outputs) <constants>``; ONNX text, domain and versions left out."""
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["": {opset}]> g {signature} {{ {body} }}')


def execute(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


def assert_same(before: ir.Model, after: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    for want, got in zip(execute(before, feeds), execute(after, feeds), strict=True):
        assert want.dtype == got.dtype and want.shape == got.shape
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    assert [v.name for v in after.graph.outputs] == [v.name for v in before.graph.outputs]


# ---------------------------------------------------------------------- newer than the pinned


@pytest.mark.parametrize(
    ("opset", "signature", "body"),
    [
        (23, "(float[1,2,3,4] q) => (float[1,2,3,4] y)", "k = Neg (q)  y = Attention (q, k, q)"),
        (24, "(float[1,2,3,4] q) => (float[1,2,3,4] y)", "y = Attention <is_causal=1> (q, q, q)"),
        (23, "(float[1,2,3,4] q) => (float[1,2,3,4] y, float[1,2,3,3] s)", "y, , , s = Attention (q, q, q)"),
        (23, "(float[1,2,3,4] q) => (float[1,2,3,4] y) <float[4] s = {1, 2, -1, 0.5}>",
         "y = RMSNormalization (q, s)"),
        (24, "(float[1,2,3,4] q) => (float[1,2,3,4] y)", "a = Swish (q)  y = Swish <alpha=0.5> (a)"),
        (23, "(float[1,2,3,4] q) => (float[1,2,3,4] y) <float[3,2] c = {1,2,3,4,5,6},int64[1,3] p = {0,1,2}>",
         "y = RotaryEmbedding (q, c, c, p)"),
        (23, "(float[1,2,3,4] q) => (float[2,12] y) <int64[2] t = {2, 12}>",
         "a = Relu (q)  b = AveragePool <kernel_shape=[1,1]> (a)  c = Cast <to=1> (b)  y = Reshape (c, t)"),
        (22, "(float[1,2,3,4] q) => (float[1,2,3,4] y) <bool c = {1}>",
         """y = If (c) <then_branch = p () => (float[1,2,3,4] a) { a = Elu (q) },
                        else_branch = n () => (float[1,2,3,4] b) { b = Tan (q) }>"""),
    ],
)  # fmt: skip
def test_newer_than_pinned(opset: int, signature: str, body: str) -> None:
    model = parse(opset, signature, body)
    upgraded = upgrade(model)
    assert upgraded.opset_imports[""] == OPSET
    assert_same(model, upgraded, {"q": Q})


def test_functions_of_functions_are_expanded() -> None:
    upgraded = upgrade(parse(28, "(float[2,3] a, float[2,3] b) => (float[2,3] y)", "y = SwiGLU (a, b)"))
    a, b = X[0, 0, :2, :3], X[1, 0, :2, :3]
    (y,) = execute(upgraded, {"a": a, "b": b})
    np.testing.assert_allclose(y, a / (1 + np.exp(-a)) * b, rtol=1e-5)
    assert all(node.name and node.name.startswith("SwiGLU_0/") for node in upgraded.graph)


def test_what_the_pinned_opset_cannot_say_is_refused_all_at_once() -> None:
    body = """a = CumProd (x, k)  b = Cast <to=16> (a)  c = Cos (b)  d = Cast <to=1> (c)
        y = SpaceToDepth <blocksize=2, mode="CRD"> (d)"""
    with pytest.raises(UnsupportedError, match="3 operations") as refusal:
        upgrade(parse(28, "(float[1,1,4,4] x, int64 k) => (float[1,4,2,2] y)", body))
    for part in ("CumProd_0", "Cos_2' (bfloat16", "SpaceToDepth_4' (mode"):
        assert part in refusal.value.message


# ---------------------------------------------------------------------- down to an older runtime

GRID = "<float[2,2,5,2] g = {" + ", ".join(f"{v:.3f}" for v in np.tanh(X.flat[:40])) + "}>"


@pytest.mark.parametrize(
    ("opset", "signature", "body"),
    [
        (17, "=> (float[2,1,6,1] y) <int64[2] a = {1, -1}>", "y = ReduceMean (x, a)"),
        (17, "=> (float y)", "y = ReduceMax <keepdims=0> (x)"),
        (17, "=> (float[2,4,2,5] a, float[2,4,2,5] b, float[2,4,2,5] c)",
         "a, b, c = Split <axis=2, num_outputs=3> (x)"),
        (17, "=> (float[2,4,6,3] a, float[2,4,6,2] b)", "a, b = Split <axis=-1, num_outputs=2> (x)"),
        (17, "=> (float[2,4,7,8] y) <int64[4] p = {1,2,0,1}, int64[2] a = {2,-1}, float v = {3}>",
         "y = Pad (x, p, v, a)"),
        (17, "=> (float[2,4,12,15] y) <float[2] s = {2, 3}>",
         'y = Resize <axes=[2, 3], mode="linear", antialias=0> (x, , s)'),
        (18, "=> (float[2,4,5,4] y)", "y = AveragePool <kernel_shape=[2,2], dilations=[1,1]> (x)"),
        (17, "=> (float[2,4,5,4] y)", "y = LpPool <kernel_shape=[2,2]> (x)"),
        (17, "=> (float[2,4,6,5] y) <float[4] s = {1,2,3,4}>",
         "y = GroupNormalization <num_groups=2> (x, s, s)"),
        (17, "=> (float[2,4,6,5] y)", 'a = Gelu (x)  b = Mish (a)  y = Gelu <approximate="tanh"> (b)'),
        (17, "=> (float[2,4,6,5] y)", "a = CastLike (x, x)  y = HardSwish (a)"),
        (17, f"=> (float[2,4,2,5] y) {GRID}", 'y = GridSample <mode="cubic"> (x, g)'),
        (17, "=> (float[2,4,6,5,2] y) <int64[5] t = {2,4,6,5,1}, int64 a = {-2}>",
         "r = Reshape (x, t)  y = DFT (r, , a)"),
        (17, "=> (float[2,4,6,5] y) <float[4] s = {0.1,0.2,0.3,0.4}, int8[4] z = {0,0,0,0}>",
         "q = QuantizeLinear <axis=1> (x, s, z)  y = DequantizeLinear <axis=1> (q, s, z)"),
        (19, "=> (float[2,4,6,5] y) <float s = {0.1}>",
         "q = QuantizeLinear <output_dtype=3> (x, s)  y = DequantizeLinear (q, s)"),
        (17, "=> (float[2,4,6,5] y) <bool c = {1}>",
         """y = If (c) <then_branch = p () => (float[2,4,6,5] a) { a = Mish (x) },
                        else_branch = n () => (float[2,4,6,5] b) { b = Abs (x) }>"""),
    ],
)  # fmt: skip
def test_retarget(opset: int, signature: str, body: str) -> None:
    model = upgrade(parse(OPSET, f"(float[2,4,6,5] x) {signature}", body))
    lowered = retarget(model, opset)
    assert lowered.opset_imports[""] == opset and model.opset_imports[""] == OPSET
    assert_same(model, lowered, {"x": X})


def test_a_body_says_the_type_instead_of_referring_to_it() -> None:
    """TensorRT 8 knows no CastLike."""
    lowered = retarget(upgrade(parse(OPSET, "(float[2,4,6,5] x) => (float[2,4,6,5] y)", "y = Gelu (x)")), 17)
    kinds = [node.op_type for node in lowered.graph]
    assert "Cast" in kinds and "CastLike" not in kinds


def test_retarget_refuses_everything_at_once() -> None:
    signature = """(float[4] x, int64[1] i, int64[1,1] j, float[1] u)
        => (int64[1] a, float[5] b, float[1] c, float[4] d, float[4] e)
        <int64[2] p = {1, 0}, float s = {0.5}>"""
    body = """a = BitwiseNot (i)  b = Pad <mode="wrap"> (x, p)  c = ReduceMean (x, i)
        d = ScatterND <reduction="max"> (x, j, u)
        q = QuantizeLinear <output_dtype=22> (x, s)  e = DequantizeLinear (q, s)"""
    with pytest.raises(UnsupportedError, match="6 operations") as refusal:
        retarget(upgrade(parse(OPSET, signature, body)), 17)
    for op in ("BitwiseNot", "Pad", "ReduceMean", "ScatterND", "QuantizeLinear", "DequantizeLinear"):
        assert op in refusal.value.message
    assert refusal.value.hint


def test_retarget_to_the_pinned_opset_changes_nothing() -> None:
    model = upgrade(parse(OPSET, "(float[2] x) => (float[2] y)", "y = Gelu (x)"))
    assert [node.op_type for node in retarget(model, OPSET).graph] == ["Gelu"]
    with pytest.raises(UnsupportedError, match="17 to 21"):
        retarget(model, 16)
