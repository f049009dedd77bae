"""deploy support: what backends take of the standard, and of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from deploy.adapter.conformance import conformances, read_conformance
from deploy.errors import ToolchainError

Deploy = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[3]
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2,3,3] x) => (float[2] y) <float[1] limit = {0.5}> {
    a = Relu(x)
    b = Det(a)
    y = Add(b, limit)
}"""


def test_every_backend_says_what_it_takes(deploy: Deploy) -> None:
    code, out, _ = deploy("support", "--json")
    found = json.loads(out)
    assert code == 0
    by_name = {backend["backend"]: backend for backend in found["backends"]}
    assert by_name.keys() == {"ort", "openvino", "tensorrt", "tflite", "coreml"}
    assert found["opsets"]["Conv"] == [1, 22]
    for conformance in conformances():
        assert conformance.operations["Conv"].taken > 0
        for name, cases in conformance.operations.items():
            assert cases.agree <= cases.taken <= cases.cases
            assert not conformance.ran or cases.taken - cases.agree == len(cases.differ), name
        assert conformance.ran or not any(cases.agree for cases in conformance.operations.values())


def test_names_are_those_of_the_standards_own_cases() -> None:
    standard = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    for conformance in conformances():
        assert conformance.operations.keys() <= standard, conformance.backend


def test_the_page_in_the_documents_is_what_the_command_writes(deploy: Deploy) -> None:
    """Stale after a new conformance.json: `make docs` writes both."""
    code, out, _ = deploy("support", "--markdown")
    written = (ROOT / "docs" / "pages" / "reference" / "operations.md").read_text(encoding="utf-8")
    assert code == 0
    assert written.partition("-->\n\n")[2] == out


def test_one_operation(deploy: Deploy) -> None:
    code, out, _ = deploy("support", "Det")
    assert code == 0 and out.startswith("Det  in the standard since opset 11")
    assert "it does not take this operation" in out
    shown = json.loads(deploy("support", "Det", "--json", "--target", "x86-cpu")[1])["backends"]
    assert all(backend["operations"].keys() <= {"Det"} for backend in shown)
    assert "coreml" not in {backend["backend"] for backend in shown}


def test_a_model_node_by_node(deploy: Deploy, here: Path) -> None:
    onnx.save(onnx.parser.parse_model(TEXT), here / "model.onnx")
    found = json.loads(deploy("support", here / "model.onnx", "--json")[1])
    assert [node["op"] for node in found["nodes"]][:3] == ["Relu", "Det", "Add"]
    det = found["nodes"][1]["runtimes"]
    assert det["ort"]["support"] == "supported"
    assert det["tensorrt"] == {
        "support": "unsupported",
        "reason": "TensorRT's ONNX parser does not support it",
    }
    assert det["tflite"]["support"] == det["coreml"]["support"] == "unsupported"
    assert det["tflite"]["reason"] and det["coreml"]["reason"]
    taken = {runtime["runtime"]: runtime["taken"] for runtime in found["runtimes"]}
    assert taken["ort"] == 3 and taken["tensorrt"] == 2
    code, out, _ = deploy("support", here / "model.onnx", "--target", "jetson")
    assert code == 0 and "tensorrt on jetson  does not take" in out and "android" not in out


def test_what_is_neither_model_nor_operation(deploy: Deploy, here: Path) -> None:
    assert deploy("support", "NoSuchThing")[0] == 3
    assert deploy("support", "Conv", "--markdown")[0] == 2


def test_a_document_that_is_missing_or_none(tmp_path: Path) -> None:
    for content in (None, "{}"):
        path = tmp_path / "conformance.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ToolchainError):
            read_conformance(path)
