"""The ONNX standard's own node cases at the pinned opset, against ONNX Runtime on the case as given.

About 1,900 one-operation models of opset 1 to 28. Each is read or refused with a clear error, and what both
can run gives the same.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from deploy.errors import DeployError
from deploy.frontend.onnx_file import read, to_bytes

RANDOM = ("bernoulli",)
# ONNX Runtime's own kernel differs from the standard's expected output here, the expanded operation does not.
WRONG_AS_GIVEN = (
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
)


def execute(content: bytes, feeds: dict[str, np.ndarray]) -> list[object] | None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        outputs: list[object] = session.run(None, feeds)
    except Exception:  # noqa: BLE001  what this runtime cannot run proves nothing
        return None
    return outputs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_node_case_keeps_its_meaning_or_is_refused(tmp_path: Path) -> None:
    from onnx.backend.test.case.node import collect_testcases

    seen: Counter[str] = Counter()
    for case in collect_testcases(None):
        assert case.model is not None and case.data_sets is not None
        path = tmp_path / "case.onnx"
        path.write_bytes(case.model.SerializeToString())
        try:
            model = read(path).model
        except DeployError as e:
            assert e.message and e.hint, case.name
            seen["refused"] += 1
            continue
        if any(word in case.name for word in RANDOM) or case.name in WRONG_AS_GIVEN:
            continue
        inputs = case.data_sets[0][0]
        feeds = {
            value.name: array
            for value, array in zip(case.model.graph.input, inputs, strict=False)
            if array is not None and not isinstance(array, onnx.TensorProto)
        }
        given, brought = execute(path.read_bytes(), feeds), execute(to_bytes(model), feeds)
        if given is None or brought is None:
            seen["not run"] += 1
            continue
        seen["same"] += 1
        for want, got in zip(given, brought, strict=True):
            if isinstance(want, np.ndarray) and isinstance(got, np.ndarray) and want.dtype.kind in "fciub":
                tolerance = 2e-3 if want.dtype == np.float16 else 1e-4
                np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=case.name)
    assert seen["same"] > 1200, seen
