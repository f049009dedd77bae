"""ONNX's own node tests of the listed operations: they agree in LiteRT, or are refused with a reason."""

from __future__ import annotations

import pytest

pytest.importorskip("ai_edge_litert")
from node_cases import WRITERS, by_operation, outcomes

from backends.tflite import TFLite


@pytest.mark.filterwarnings("ignore")
def test_no_node_test_is_wrong_without_a_word() -> None:
    writer = WRITERS["tflite"]()
    found = list(outcomes(writer, writer.types))
    wrong = [(o.case, o.result, o.said) for o in found if o.result in ("differs", "fails")]
    assert [said for said in wrong if said[0] not in writer.known] == []
    assert [o.case for o in found if o.result == "refused" and not o.said] == []
    assert sum(o.result == "passes" for o in found) >= 640
    # What is shown to users is what comes of them today.
    shown = TFLite().conformance().operations
    assert {op: shown[op] for op in writer.types} == by_operation(writer, found)
