"""ONNX's own node tests of the listed operations: they agree in LiteRT, or are refused with a reason."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.errors import DeployError, UnsupportedError
from deploy.frontend.onnx_file import read
from deploy.frontend.opset import upgrade
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.plan import Plan

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from backends.tflite.ops import OPERATIONS

RUNTIME = load_profile("android").runtime_named("tflite")
PLAN = Plan(graph_sha256="", target="", runtime="tflite")

KNOWN: dict[str, str] = {}
"""What differs all the same: none."""


def constant_but_first(model: ir.Model, feeds: dict[str, np.ndarray]) -> ir.Model:
    """Sizes, axes and weights are constants in real models: every input but the first becomes one."""
    graph = model.graph
    for value in list(graph.inputs)[1:]:
        if value.name in feeds and feeds[value.name].dtype.kind in "fiub":
            value.const_value = ir.tensor(feeds[value.name], name=value.name)
            graph.inputs.remove(value)
            graph.register_initializer(value)
    return model


def agrees(want: np.ndarray, got: np.ndarray) -> bool:
    if want.shape != got.shape or want.dtype != got.dtype:
        return False
    if want.dtype.kind != "f":
        return np.array_equal(want, got)
    half = want.dtype == np.float16
    loose = max(2e-3 if half else 1e-5, 1e-6 * float(np.abs(want[np.isfinite(want)]).max(initial=0)))
    return np.allclose(got.astype(float), want.astype(float), rtol=1e-3, atol=loose, equal_nan=True)


@pytest.mark.filterwarnings("ignore")
def test_no_node_test_is_wrong_without_a_word(tmp_path):
    from onnx.backend.test.case.node import collect_testcases

    results: Counter[str] = Counter()
    wrong, unspoken = [], []
    for case in collect_testcases(None):
        if "_expanded" in case.name or not {n.op_type for n in case.model.graph.node} <= set(OPERATIONS):
            continue
        inputs, outputs = case.data_sets[0]
        if not all(isinstance(array, np.ndarray | np.generic) for array in (*inputs, *outputs)):
            continue
        try:
            onnx.save(case.model, tmp_path / "case.onnx")
            given = read(tmp_path / "case.onnx").model
            model = infer(upgrade(given))
        except (DeployError, ValueError):
            results["not ours"] += 1
            continue
        feeds = {v.name or "": np.asarray(a) for v, a in zip(given.graph.inputs, inputs, strict=False)}
        model = constant_but_first(model, feeds)
        try:
            artifact = TFLite().lower(model, PLAN, RUNTIME, tmp_path, SILENT)
        except UnsupportedError as e:
            results["refused"] += 1
            if not e.message.partition("': ")[2]:
                unspoken.append(case.name)
            continue
        with TFLite().open(artifact, TFLite().options(RUNTIME, 1)) as runner:
            got = runner.run({v.name or "": feeds[v.name or ""] for v in model.graph.inputs})
        names = [v.name or "" for v in model.graph.outputs]
        right = all(agrees(np.asarray(w), got[name]) for name, w in zip(names, outputs, strict=False))
        results["passes" if right else "differs"] += 1
        if not right and case.name not in KNOWN:
            wrong.append(case.name)
    print(dict(results))
    assert wrong == [] and unspoken == []
    assert results["passes"] >= 200
