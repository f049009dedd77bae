"""ONNX's own node tests of the listed operations: they agree in the interpreter, or are refused."""

from __future__ import annotations

import pytest

pytest.importorskip("coremltools")
from node_cases import WRITERS, by_operation, outcomes

from backends.coreml import CoreML


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_node_test_is_wrong_without_a_word() -> None:
    writer = WRITERS["coreml"]()
    found = list(outcomes(writer, writer.types))
    assert [(o.case, o.result, o.said) for o in found if o.result in ("differs", "fails")] == []
    assert [o.case for o in found if o.result == "refused" and not o.said] == []
    assert sum(o.result == "passes" for o in found) >= 400
    # What is shown to users is what comes of them today.
    shown = CoreML().conformance().operations
    assert {op: shown[op] for op in writer.types} == by_operation(writer, found)
