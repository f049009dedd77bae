"""What an iPhone's accelerator would compute, by its profile, before and after a rewriting."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.graph.rules import RULES
from deploy.graph.shapes import infer
from deploy.spec.ends import Ends
from deploy.spec.profile import Runtime
from deploy.stages.residency import residencies


@pytest.fixture
def recurrent() -> ir.Model:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[4, 1, 3] x) => (float z)
    {
        [gru] y = GRU<hidden_size = 5>(x, w, r)
        [act] z = Relu(y)
    }"""
    arrays = {"w": np.ones((1, 15, 3), np.float32), "r": np.ones((1, 15, 5), np.float32)}
    model = ir.from_onnx_text(text, initializers=[ir.tensor(a, name=n) for n, a in arrays.items()])
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.type = ir.TensorType(value.const_value.dtype)
        value.shape = ir.Shape(value.const_value.numpy().shape)
    return infer(model)


def coreml() -> Runtime:
    return load_profile("iphone15").runtime_named("coreml")


def test_a_recurrent_layer_leaves_until_it_is_written_out(recurrent: ir.Model) -> None:
    (before,) = residencies(recurrent, coreml())
    assert before.unit == "Neural Engine" and before.otherwise == "GPU or CPU"
    assert [(b.id, b.state) for b in before.apart if b.state != "stays"] == [("gru", "leaves")]
    assert all(rule.remedies == () for rule in before.rules), "the runtime's own graph has been through them"
    assert before.macs["leaves"] == 4 * 15 * (3 + 5) and before.share == 0
    RULES["unroll-recurrent"](recurrent)
    (after,) = residencies(infer(recurrent), coreml())
    assert after.macs["leaves"] == 0
    assert {"recurrent", "gather"}.isdisjoint(rule.name for rule in after.rules)


def test_options_chosen_win_over_the_profile_s(recurrent: ir.Model) -> None:
    (found,) = residencies(recurrent, coreml(), {"compute": "float32", "labels": ["a"]})
    assert found.blocks["leaves"] == sum(found.blocks.values())
    assert "float32" in {rule.name for rule in found.rules}


def test_a_runtime_without_accelerators_says_nothing(recurrent: ir.Model) -> None:
    assert residencies(recurrent, load_profile("x86-vnni").runtime[0]) == ()


def test_listed_shapes_are_fixed_ones_and_a_range_is_none() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[1, 64, h, w] x) => (float[1, 64, h, w] y) {
        [act] y = Relu(x)
    }"""
    model = infer(ir.from_onnx_text(text))
    asked = {"list": ((1, 64, 32, 32), (1, 64, 32, 64)), "range": (1, 64, "32..64", "32..64")}
    rules = {}
    for name, sizes in asked.items():
        runtime = coreml().model_copy(update={"asked": Ends.model_validate({"sizes": {"x": sizes}})})
        (found,) = residencies(model, runtime)
        rules[name] = {rule.name for rule in found.rules}
    assert "free-sizes" in rules["range"] and "free-sizes" not in rules["list"]
