"""Recurrent layers against ONNX Runtime: unrolled, and fused with a first step that clears the state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from backends.tflite.ops import recurrent
from deploy.adapter.profiles import load_profile
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.plan import Plan

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, INPUTS, HIDDEN = 6, 3, 5, 4


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 0.5, shape).astype(np.float32)


def layer(
    kind: str, direction: str, *, batch: int | str = BATCH, steps: int | str = STEPS, more: str = ""
) -> tuple[str, dict[str, np.ndarray]]:
    """The layer as text, with Y and Y_h as outputs, and its constants."""
    count, rows = 2 if direction == "bidirectional" else 1, GATES[kind] * HIDDEN
    constants = {
        "w": floats(count, rows, INPUTS), "r": floats(count, rows, HIDDEN), "b": floats(count, 2 * rows)
    }  # fmt: skip
    declared = ", ".join(f"float[{','.join(map(str, a.shape))}] {n}" for n, a in constants.items())
    node = f'{kind}<hidden_size = {HIDDEN}, direction = "{direction}"{more}>(x, w, r, b)'
    ends = f"float[{steps},{count},{batch},{HIDDEN}] y, float[{count},{batch},{HIDDEN}] h"
    return f"(float[{steps},{batch},{INPUTS}] x, {declared}) => ({ends}) {{ y, h = {node} }}", constants


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_unrolled_for_any_batch(kind: str, direction: str, ran: Callable) -> None:
    given, constants = layer(kind, direction, batch="n")
    for batch in (1, 3):
        found = ran(given, {"x": floats(STEPS, batch, INPUTS)}, constants)
        for name in "yh":
            np.testing.assert_allclose(found.got[name], found.want[name], atol=1e-6)


@pytest.mark.parametrize("more", [", linear_before_reset = 1", ", clip = 0.3"])
def test_forms_of_gru(more: str, ran: Callable) -> None:
    given, constants = layer("GRU", "forward", more=more)
    found = ran(given, {"x": floats(STEPS, BATCH, INPUTS)}, constants)
    np.testing.assert_allclose(found.got["y"], found.want["y"], atol=1e-6)


def test_states_as_inputs_and_outputs_carry_on(ran: Callable) -> None:
    constants = {"w": floats(1, 16, INPUTS), "r": floats(1, 16, HIDDEN), "b": floats(1, 32)}
    given = f"""(float[1,2,{INPUTS}] x, float[1,2,{HIDDEN}] h0, float[1,2,{HIDDEN}] c0,
        float[1,16,{INPUTS}] w, float[1,16,{HIDDEN}] r, float[1,32] b)
        => (float[1,1,2,{HIDDEN}] y, float[1,2,{HIDDEN}] h, float[1,2,{HIDDEN}] c)
        {{ y, h, c = LSTM<hidden_size = {HIDDEN}>(x, w, r, b, , h0, c0) }}"""
    feeds = {"x": floats(1, 2, INPUTS), "h0": floats(1, 2, HIDDEN), "c0": floats(1, 2, HIDDEN) + 1}
    found = ran(given, feeds, constants)
    for name in "yhc":
        np.testing.assert_allclose(found.got[name], found.want[name], atol=1e-6)


@pytest.mark.parametrize("steps", [STEPS, "t"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_fused_where_it_is_large(
    direction: str, steps: int | str, ran: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrent, "_FUSED_FROM", 0)
    given, constants = layer("LSTM", direction, steps=steps)
    found = ran(given, {"x": floats(STEPS, BATCH, INPUTS)}, constants)
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in found.operators
    for name in "yh":
        np.testing.assert_allclose(found.got[name], found.want[name], atol=1e-6)


def test_the_fused_layer_forgets_the_call_before(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "_FUSED_FROM", 0)
    given, constants = layer("LSTM", "forward")
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> g {given}')
    for value in list(model.graph.inputs):
        if value.name in constants:
            value.const_value = ir.tensor(constants[value.name], name=value.name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    runtime = load_profile("android").runtime_named("tflite")
    plan = Plan(graph_sha256="", target="", runtime="tflite")
    artifact = TFLite().lower(infer(model), plan, runtime, tmp_path, SILENT)
    feeds = {"x": floats(STEPS, BATCH, INPUTS)}
    with TFLite().open(artifact, TFLite().options(runtime, 1)) as runner:
        first = runner.run(feeds)["y"]
        runner.run({"x": 1000 * feeds["x"][::-1].copy()})
        np.testing.assert_array_equal(runner.run(feeds)["y"], first)
