"""Reshapes and transposes: what moves nothing makes no operator, in floats and in INT8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.adapter.profiles import load_profile
from deploy.execute.reference import open_graph
from deploy.graph.edit import constant
from deploy.graph.qdq import insert, quantize_array
from deploy.graph.qdq import read_tensors as planned_by
from deploy.graph.shapes import infer
from deploy.graph.symbolic import Size
from deploy.progress import SILENT
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan, QuantParams, TensorPlan, differences

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from backends.tflite.regroup import groups

RUNTIME = load_profile("android").runtime_named("tflite")
PLAN = Plan(graph_sha256="", target="", runtime="tflite")
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.4, shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def text(ends: str, body: str, constants: Mapping[str, np.ndarray]) -> str:
    """``ends`` as ``inputs => outputs``; the constants are declared beside the inputs."""
    inputs, outputs = ends.split(" => ")
    kinds = {"float32": "float", "int64": "int64"}
    declared = [f"{kinds[a.dtype.name]}[{','.join(map(str, a.shape))}] {n}" for n, a in constants.items()]
    return f"({', '.join([inputs, *declared])}) => ({outputs}) {{ {body} }}"


SHUFFLE = (
    "float[n,4,6,6] x => float[n,8,6,6] y",
    """a = Conv(x, w) r = Reshape(a, s) t = Transpose<perm = [0, 2, 1, 3, 4]>(r) b = Reshape(t, u)
    y = Conv(b, v)""",
    {"w": floats(8, 4, 1, 1), "v": floats(8, 8, 1, 1), "s": ints(0, 2, 4, 6, 6), "u": ints(0, 8, 6, 6)},
)
FLATTEN = (
    "float[n,4,3,5] x => float[n,7] y",
    "a = Conv(x, w) f = Flatten(a) y = Gemm<transB = 1>(f, u)",
    {"w": floats(6, 4, 1, 1), "u": floats(7, 90)},
)
PATCHES = (
    "float[n,3,8,8] x => float[n,4,5] y",
    "a = Conv<strides = [4, 4]>(x, w) r = Reshape(a, s) t = Transpose<perm = [0, 2, 1]>(r) y = MatMul(t, u)",
    {"w": floats(12, 3, 4, 4), "s": ints(0, 12, -1), "u": floats(12, 5)},
)


def test_a_channel_shuffle_is_one_transpose_between_the_convolutions(ran: Callable) -> None:
    found = ran(text(*SHUFFLE), {"x": floats(2, 4, 6, 6)}, SHUFFLE[2])
    np.testing.assert_allclose(found.got["y"], found.want["y"], atol=1e-5)
    assert found.operators == [
        "TRANSPOSE", "CONV_2D", "RESHAPE", "TRANSPOSE", "RESHAPE", "CONV_2D", "TRANSPOSE",
    ]  # fmt: skip


def test_an_image_flattened_for_a_product_is_not_turned_but_its_weights(ran: Callable) -> None:
    found = ran(text(*FLATTEN), {"x": floats(2, 4, 3, 5)}, FLATTEN[2])
    np.testing.assert_allclose(found.got["y"], found.want["y"], atol=1e-5)
    assert found.operators == ["TRANSPOSE", "CONV_2D", "RESHAPE", "FULLY_CONNECTED"]


def test_an_image_flattened_for_others_too_is_turned(ran: Callable) -> None:
    ends, body, constants = FLATTEN
    found = ran(text(f"{ends}, float[n,90] f", body, constants), {"x": floats(2, 4, 3, 5)}, constants)
    for name in "yf":
        np.testing.assert_allclose(found.got[name], found.want[name], atol=1e-5)


def test_patches_become_tokens_without_a_transpose(ran: Callable) -> None:
    found = ran(text(*PATCHES), {"x": floats(2, 3, 8, 8)}, PATCHES[2])
    np.testing.assert_allclose(found.got["y"], found.want["y"], atol=1e-5)
    assert found.operators == ["TRANSPOSE", "CONV_2D", "RESHAPE", "FULLY_CONNECTED"]


def test_a_class_token_of_a_free_batch_needs_no_computed_sizes(ran: Callable) -> None:
    constants = {"k": floats(1, 1, 4), "i": ints(0), "one": ints(1), "four": ints(4)}
    body = """s = Shape(x) b = Gather(s, i) e = Concat<axis = 0>(b, one, four) t = Expand(k, e)
    y = Concat<axis = 1>(t, x)"""
    given = text("float[n,3,4] x => float[n,4,4] y", body, constants)
    found = ran(given, {"x": floats(2, 3, 4)}, constants)
    np.testing.assert_array_equal(found.got["y"], found.want["y"])
    assert found.operators == ["PAD", "ADD"]


def test_two_free_sizes_are_taken_from_the_tensor_while_it_runs(ran: Callable) -> None:
    constants = {"s": ints(0, 0, 2, 3), "u": ints(0, 0, 6)}
    body = "a = Reshape(x, s) b = Transpose<perm = [0, 2, 1, 3]>(a) c = Softmax(b) "
    body += "d = Transpose<perm = [0, 2, 1, 3]>(c) y = Reshape(d, u)"
    given = text("float[n,m,6] x => float[n,m,6] y", body, constants)
    for shape in ((2, 5, 6), (1, 3, 6)):
        found = ran(given, {"x": floats(*shape)}, constants)
        np.testing.assert_allclose(found.got["y"], found.want["y"], atol=1e-6)


@pytest.mark.parametrize("kind", ["int64", "int32", "bool"])
def test_a_transpose_of_every_type_and_six_axes(ran: Callable, kind: str) -> None:
    given = f"({kind}[1,2,3,2,2,3] x) => ({kind}[3,2,2,3,2,1] y) {{ y = Transpose(x) }}"
    found = ran(given, {"x": RNG.integers(0, 2, (1, 2, 3, 2, 2, 3)).astype(kind)})
    np.testing.assert_array_equal(found.got["y"], found.want["y"])


def graph_of(ends: str, body: str, constants: Mapping[str, np.ndarray]) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> g {text(ends, body, constants)}')
    for value in list(model.graph.inputs):
        if value.name in constants:
            value.const_value = ir.tensor(constants[value.name], name=value.name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}{number}"
    return infer(model)


def quantized(model: ir.Model, axes: Mapping[str, int]) -> ir.Model:
    """Every activation as INT8 by the same scale, so that integers go through what only moves them."""
    activations = ["x", *(o.name or "" for node in model.graph for o in node.outputs)]
    tensors = {
        name: TensorPlan(type="int8", scale=(0.0371,), zero_point=(3,), origin="calibration")
        for name in activations
    }
    codes = {}
    for name, axis in axes.items():
        array = constant(model.graph.initializers[name])
        assert array is not None
        others = tuple(i for i in range(array.ndim) if i != axis)
        scale = (np.abs(array).max(axis=others) / 127).astype(np.float32)
        zeros = (0,) * len(scale)
        params = QuantParams(type="int8", scale=tuple(map(float, scale)), zero_point=zeros, axis=axis)
        codes[name] = quantize_array(array, params)
        tensors[name] = TensorPlan(**params.model_dump(), origin="weight")
    return insert(model, tensors, codes)


def lowered(model: ir.Model, folder: Path) -> Artifact:
    return TFLite().lower(model, PLAN, RUNTIME, folder, SILENT)


@pytest.mark.parametrize(
    ("graph", "axes", "shape", "between"),
    [
        (SHUFFLE, {"w": 0, "v": 0}, (2, 4, 6, 6), ["CONV_2D", "RESHAPE", "TRANSPOSE", "RESHAPE", "CONV_2D"]),
        (FLATTEN, {"w": 0, "u": 0}, (2, 4, 3, 5), ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]),
        (
            PATCHES,
            {"w": 0, "u": 1},
            (2, 3, 8, 8),
            ["RESHAPE", "CONV_2D", "RESHAPE", "FULLY_CONNECTED"],
        ),
    ],
    ids=["shuffle", "flatten", "patches"],
)
def test_int8_goes_through_and_the_plan_comes_back(
    graph: tuple[str, str, dict[str, np.ndarray]],
    axes: dict[str, int],
    shape: tuple[int, ...],
    between: list[str],
    tmp_path: Path,
) -> None:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    from backends.tflite.write import read_file

    model = quantized(graph_of(*graph), axes)
    artifact = lowered(model, tmp_path)
    feeds = {"x": floats(*shape)}
    with TFLite().open(artifact, TFLite().options(RUNTIME, 1)) as runner:
        got = runner.run(feeds)["y"]
    with open_graph(model, optimised=False) as session:
        want = session.run(feeds)["y"]
    assert np.abs(got - want).max() <= 0.0371 * 1.01
    names = {code: name for name, code in vars(BuiltinOperator).items() if name.isupper()}
    file = read_file(artifact.main)
    found = [names[file.operatorCodes[o.opcodeIndex].builtinCode] for o in file.subgraphs[0].operators]
    assert found[2 : 2 + len(between)] == between
    assert (
        differences(PLAN.model_copy(update={"tensors": planned_by(model)}), TFLite().read_plan(artifact))
        == []
    )


def test_an_inner_value_that_was_flattened_channels_last_comes_back_in_order(tmp_path: Path) -> None:
    model = graph_of(*FLATTEN)
    feeds = {"x": floats(2, 4, 3, 5)}
    with TFLite().open(lowered(model, tmp_path), TFLite().options(RUNTIME, 1)) as runner:
        got = runner.run(feeds, ("f",))
    with open_graph(model, optimised=False, expose=["f"]) as session:
        want = session.run(feeds, ("f",))
    np.testing.assert_allclose(got["f"], want["f"], atol=1e-5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=4), st.data())
def test_groups_of_a_reshape_have_equal_sizes(shape: list[int], data: st.DataObject) -> None:
    """Splitting or joining axes at random gives groups that cover both sides, each of as many elements."""
    result: list[int] = []
    for size in shape:
        parts = data.draw(st.sampled_from([[size], [1, size], [2, size // 2] if size == 4 else [size]]))
        result += parts
    if len(result) > 1 and data.draw(st.booleans()):
        result = [result[0] * result[1], *result[2:]]
    found = groups([Size(n) for n in shape], [Size(n) for n in result])
    assert found is not None
    for mine, theirs in found:
        assert np.prod([shape[i] for i in mine]) == np.prod([result[i] for i in theirs])
    assert [i for mine, _ in found for i in mine] == [i for i, n in enumerate(shape) if n != 1]
