"""ONNX's own node tests of the listed operations: they agree in LiteRT, or are refused with a reason."""

from __future__ import annotations

import pytest

pytest.importorskip("ai_edge_litert")
from node_cases import WRITERS, outcomes


@pytest.mark.filterwarnings("ignore")
def test_no_node_test_is_wrong_without_a_word() -> None:
    found = list(outcomes(WRITERS["tflite"]()))
    assert [(o.case, o.result, o.said) for o in found if o.result in ("differs", "fails")] == []
    assert [o.case for o in found if o.result == "refused" and not o.said] == []
    assert sum(o.result == "passes" for o in found) >= 640
