"""ONNX's own node tests through lower, open and run: passed or refused, and never wrong without a word."""

from __future__ import annotations

import pytest

pytest.importorskip("openvino")
from node_cases import WRITERS, outcomes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["openvino", "ort"])
def test_no_node_test_is_wrong_without_a_word(name: str) -> None:
    writer = WRITERS[name]()
    found = list(outcomes(writer))
    wrong = [(o.case, o.result, o.said) for o in found if o.result in ("differs", "fails")]
    assert [said for said in wrong if said[0] not in writer.known] == []
    assert sum(o.result == "passes" for o in found) > 1000
