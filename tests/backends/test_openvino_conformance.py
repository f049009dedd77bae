"""ONNX's own node tests through lower, open and run: passed or refused, and never wrong without a word."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

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

pytest.importorskip("openvino")
from node_cases import agrees, constant_but_first

from backends.openvino import OpenVino

RUNTIME = load_profile("x86-vnni").runtime_named("openvino")
PLAN = Plan(graph_sha256="", target="", runtime="openvino")

MASKED = "the maximum of a row that is -inf throughout is -3.4e38, so that its softmax stays NaN"
KNOWN = {
    "test_bernoulli_seed": "other random numbers",
    "test_dynamicquantizelinear": "a tie is rounded the other way",
    "test_quantizelinear_uint16": "a range of 65536 levels in float32: 1 code off",
    "test_nonmaxsuppression_iou_threshold_boundary": "an overlap that is exactly the threshold",
    "test_reduce_max_empty_set": "the maximum of nothing",
    "test_reduce_min_empty_set": "the minimum of nothing",
    "test_attention_23_boolmask_fullymasked_row_nan_robustness": MASKED,
    "test_attention_23_fullymasked_qk_matmul_output_mode3_zero": MASKED,
    "test_attention_24_fullymasked_qk_matmul_output_mode3_zero": MASKED,
    "test_attention_24_qk_matmul_output_mode3_softmax_precision": MASKED,
    "test_attention_4d_causal_nonpad_negative_offset_structural_empty": MASKED,
    "test_attention_causal_boolmask_nan_robustness": MASKED,
    "test_attention_local_window_gqa_rank4_mask": MASKED,
}
"""What differs all the same, for data that no rule can see in the graph."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_node_test_is_wrong_without_a_word(tmp_path):
    from onnx.backend.test.case.node import collect_testcases

    results: Counter[str] = Counter()
    wrong = []
    for case in collect_testcases(None):
        if "_expanded" in case.name or {o.domain for o in case.model.opset_import} - {"", "ai.onnx"}:
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
        result = outcome(constant_but_first(model, feeds), feeds, outputs, tmp_path)
        results[result] += 1
        if result == "differs" and case.name not in KNOWN:
            wrong.append(case.name)
    print(dict(results))
    assert wrong == []
    assert results["passes"] > 1000


def outcome(model: ir.Model, feeds: dict[str, np.ndarray], outputs: list[np.ndarray], folder: Path) -> str:
    try:
        artifact = OpenVino().lower(model, PLAN, RUNTIME, folder, SILENT)
    except UnsupportedError:
        return "refused"
    with OpenVino().open(artifact, OpenVino().options(RUNTIME, 1)) as runner:
        got = runner.run({v.name or "": feeds[v.name or ""] for v in model.graph.inputs})
    names = [v.name or "" for v in model.graph.outputs]
    right = all(agrees(np.asarray(w), got[name]) for name, w in zip(names, outputs, strict=False))
    return "passes" if right else "differs"
