"""Recurrent layers written out, against ONNX Runtime on the layer itself and against ONNX's own cases."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploy.graph import shapes
from deploy.graph.blocks import partition
from deploy.graph.origin import origin, written_out
from deploy.graph.recurrent import KINDS
from deploy.graph.rules import apply_rules, rules_for
from deploy.graph.unroll import unroll_recurrent

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, INPUTS, HIDDEN = 5, 4, 3
RNG = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.6, shape).astype(np.float32)


def layer(
    parse,
    kind: str,
    *,
    direction: str = "forward",
    batch: int | str = "n",
    steps: int | str = STEPS,
    attributes: str = "",
    operands: str = "",
    inputs: str = "",
    arrays: dict[str, np.ndarray] | None = None,
) -> ir.Model:
    """The layer with all its outputs; ``operands`` are those behind the bias."""
    count, rows = 2 if direction == "bidirectional" else 1, GATES[kind] * HIDDEN
    constants = {
        "w": floats(count, rows, INPUTS), "r": floats(count, rows, HIDDEN), "b": floats(count, 2 * rows)
    }  # fmt: skip
    state = f"float[{count},{batch},{HIDDEN}]"
    ends = f"float[{steps},{count},{batch},{HIDDEN}] y, {state} h" + (
        f", {state} c" if kind == "LSTM" else ""
    )
    made = "y, h, c" if kind == "LSTM" else "y, h"
    text = f"""g (float[{steps},{batch},{INPUTS}] x{inputs}) => ({ends})
        {{ [layer] {made} = {kind}<hidden_size = {HIDDEN}, direction = "{direction}"{attributes}>
        (x, w, r, b{operands}) }}"""
    return shapes.infer(parse(text, {**constants, **(arrays or {})}))


def written(model: ir.Model) -> ir.Model:
    """The model written out, which must have happened."""
    result = model.clone()
    assert unroll_recurrent(result) == 1
    assert not {node.op_type for node in result.graph} & GATES.keys()
    return shapes.infer(result)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_directions(parse, prove, kind: str, direction: str) -> None:
    model = layer(parse, kind, direction=direction)
    assert prove(model, written(model)) is None


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_states_that_are_given(parse, prove, kind: str, direction: str) -> None:
    count = 2 if direction == "bidirectional" else 1
    state = f"float[{count},n,{HIDDEN}]"
    more = f", {state} c0" if kind == "LSTM" else ""
    model = layer(
        parse,
        kind,
        direction=direction,
        operands=", , h0" + (", c0" if more else ""),
        inputs=f", {state} h0{more}",
    )
    assert prove(model, written(model)) is None


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("GRU", ", linear_before_reset = 1"),
        ("GRU", ", linear_before_reset = 1, clip = 0.2"),
        ("GRU", ", clip = 0.2"),
        ("GRU", ', activations = ["Softsign", "Relu"]'),
        ("LSTM", ", clip = 0.2"),
        ("LSTM", ', activations = ["Sigmoid", "Softsign", "Softplus"]'),
        ("RNN", ", clip = 0.2"),
        ("RNN", ', activations = ["Relu"]'),
    ],
)
def test_forms(parse, prove, kind: str, attributes: str) -> None:
    model = layer(parse, kind, attributes=attributes)
    assert prove(model, written(model)) is None


def test_activations_of_each_direction(parse, prove) -> None:
    functions = ', activations = ["Sigmoid", "Tanh", "Softsign", "Relu"]'
    model = layer(parse, "GRU", direction="bidirectional", attributes=functions)
    assert prove(model, written(model)) is None


def test_peepholes(parse, prove) -> None:
    model = layer(parse, "LSTM", operands=", , , , p", arrays={"p": floats(1, 3 * HIDDEN)})
    assert prove(model, written(model)) is None


@pytest.mark.parametrize("steps", [1, 2])
def test_short_sequences(parse, prove, steps: int) -> None:
    for kind in GATES:
        model = layer(parse, kind, steps=steps)
        assert prove(model, written(model)) is None


def test_lengths_that_are_all_of_them(parse, run) -> None:
    lengths = np.full(2, STEPS, np.int32)
    model = layer(parse, "GRU", batch=2, operands=", lengths", arrays={"lengths": lengths})
    feeds = {"x": floats(STEPS, 2, INPUTS)}
    for want, got in zip(run(model, feeds), run(written(model), feeds), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_zeros_that_are_computed_are_no_state(parse, prove) -> None:
    model = shapes.infer(
        parse(
            f"""g (float[{STEPS},n,{INPUTS}] x) => (float[{STEPS},1,n,{HIDDEN}] y)
            <int64[1] one = {{1}}, int64[1] hidden = {{{HIDDEN}}}> {{
            size = Shape<start = 1, end = 2>(x)
            sizes = Concat<axis = 0>(one, size, hidden)
            h0 = ConstantOfShape(sizes)
            [layer] y = GRU<hidden_size = {HIDDEN}>(x, w, r, , , h0) }}""",
            {"w": floats(1, 3 * HIDDEN, INPUTS), "r": floats(1, 3 * HIDDEN, HIDDEN)},
        )
    )
    result = written(model)
    assert "layer/step0/gates/product" not in {node.name for node in result.graph}
    assert prove(model, result) is None


def test_layers_on_each_other_share_nothing_but_the_sequence(parse, prove) -> None:
    """The axis of one direction, which Squeeze takes away, is never made."""
    arrays = {
        f"{name}{i}": floats(1, 3 * HIDDEN, size)
        for i, sizes in enumerate(((INPUTS, HIDDEN), (HIDDEN, HIDDEN)))
        for name, size in zip("wr", sizes, strict=True)
    }
    model = shapes.infer(
        parse(
            f"""g (float[{STEPS},n,{INPUTS}] x) => (float[{STEPS},n,{HIDDEN}] z, float[1,n,{HIDDEN}] h)
            <int64[1] axis = {{1}}> {{
            [one] a = GRU<hidden_size = {HIDDEN}>(x, w0, r0)
            b = Squeeze(a, axis)
            [two] c, h = GRU<hidden_size = {HIDDEN}>(b, w1, r1)
            z = Squeeze(c, axis) }}""",
            arrays,
        )
    )
    result = apply_rules(model, ["unroll-recurrent"], prove)
    assert [rewrite.kept for rewrite in result.rewrites] == [True]
    counts = Counter(node.op_type for node in result.model.graph)
    assert counts["Squeeze"] == counts["Unsqueeze"] == counts["GRU"] == 0
    assert counts["Concat"] == 2
    assert prove(model, result.model) is None


@pytest.mark.parametrize("op_type", GATES)
def test_cases_of_the_standard(run, op_type: str) -> None:
    from onnx.backend.test.case.node import collect_testcases

    left = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)  # what is asked for first is all there is in a process
    cases = [c for c in found if c.model is not None and [n.op_type for n in c.model.graph.node] == [op_type]]
    for case in cases:
        assert case.model is not None and case.data_sets is not None
        model, (given, expected) = ir.from_proto(case.model), case.data_sets[0]
        feeds = {v.name or "": a for v, a in zip(model.graph.inputs, given, strict=True)}
        for value in list(model.graph.inputs)[1:]:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(feeds.pop(value.name or ""), name=value.name)
            model.graph.register_initializer(value)
        model.graph.opset_imports[""] = 21
        for node in model.graph:
            node.name = "layer"
        if not unroll_recurrent(shapes.infer(model)):
            left.append(case.name)
            continue
        model.ir_version = 10
        for want, got in zip(expected, run(shapes.infer(model), feeds), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-6, err_msg=case.name)
    assert len(cases) >= 4
    assert left == []


@pytest.mark.parametrize(
    "settings",
    [
        {"attributes": ", input_forget = 1"},
        {"attributes": ', activations = ["Sigmoid", "HardSigmoid", "Tanh"]'},
        {"operands": ", lengths", "inputs": ", int32[n] lengths"},
    ],
)
def test_left_alone(parse, settings: dict[str, str]) -> None:
    assert unroll_recurrent(layer(parse, "LSTM", **settings)) == 0


def test_left_alone_where_it_is_large_or_free(parse, monkeypatch: pytest.MonkeyPatch) -> None:
    model = layer(parse, "GRU")
    monkeypatch.setattr("deploy.graph.recurrent._MOST_STEPS", STEPS - 1)
    assert unroll_recurrent(model) == 0
    monkeypatch.undo()
    smaller = replace(KINDS["GRU"], most_copies=STEPS * 4 * 3 * HIDDEN * HIDDEN - 1)
    monkeypatch.setattr("deploy.graph.recurrent.KINDS", {"GRU": smaller})
    assert unroll_recurrent(model) == 0
    monkeypatch.undo()
    assert unroll_recurrent(layer(parse, "GRU", steps="t")) == 0
    assert unroll_recurrent(model) == 1


def test_one_constant_for_all_steps_and_two_blocks_for_a_layer(parse) -> None:
    model = layer(parse, "GRU", direction="bidirectional", attributes=", linear_before_reset = 1")
    result = written(model)
    products = Counter(
        node.inputs[1].name
        for node in result.graph
        if node.op_type == "MatMul" and "step" in (node.name or "")
    )
    assert products == {
        f"layer/{way}/r/{group}": STEPS - 1
        for way in ("forward", "backward")
        for group in ("gates", "hidden")
    }
    blocks = partition(result)
    assert [(block.id, block.kind) for block in blocks] == [("layer/inputs", "GRU"), ("layer/steps", "GRU")]
    assert {origin(node) for node in result.graph} == {("GRU", "layer")}
    assert written_out(result, {"layer"}) == {node.name for node in result.graph}
    assert written_out(result, {"layer/forward/step1/gates"}) == {"layer/forward/step1/gates"}
    assert partition(ir.from_proto(onnx.load_from_string(ir.to_proto(result).SerializeToString()))) == blocks


def test_only_what_a_rule_is_about_asks_for_it(parse) -> None:
    assert rules_for(layer(parse, "RNN"), ["unroll-recurrent"]) == ("unroll-recurrent",)
    assert rules_for(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"), ["unroll-recurrent"]) == ()
