"""Small graphs through the TFLite backend and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.execute.reference import open_graph
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from backends.tflite.runner import TFLiteOptions
from backends.tflite.write import read_file

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Ran:
    """What a graph gave in LiteRT and in ONNX Runtime, the operators of the file, what they fuse."""

    got: dict[str, np.ndarray]
    want: dict[str, np.ndarray]
    operators: list[str]
    fused: list[str]


def codes(artifact: Artifact) -> list[str]:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {code: name for name, code in vars(BuiltinOperator).items() if name.isupper()}
    model = read_file(artifact.main)
    return [names[model.operatorCodes[o.opcodeIndex].builtinCode] for o in model.subgraphs[0].operators]


def fused(artifact: Artifact) -> list[str]:
    """The activations that the file's operators have."""
    from ai_edge_litert.schema_py_generated import ActivationFunctionType

    names = {code: name for name, code in vars(ActivationFunctionType).items() if name.isupper()}
    options = [o.builtinOptions for o in read_file(artifact.main).subgraphs[0].operators]
    found = [names[getattr(given, "fusedActivationFunction", 0)] for given in options]
    return [name for name in found if name != "NONE"]


@pytest.fixture
def ran(tmp_path: Path) -> Callable[..., Ran]:
    """A graph as text, its inputs and constants, lowered for a device and run in both."""

    def run(
        text: str,
        feeds: Arrays,
        constants: Arrays | None = None,
        *,
        device: str = "android",
        delegate: bool = True,
        opset: int = 21,
    ) -> Ran:
        head = f'<ir_version: 10, opset_import: ["" : {opset}]> g '
        model = with_constants(ir.from_onnx_text(head + text), constants or {})
        runtime = load_profile(device).runtime_named("tflite")
        plan = Plan(graph_sha256="", target="", runtime="tflite")
        artifact = TFLite().lower(model, plan, runtime, tmp_path, SILENT)
        options = TFLiteOptions(threads=1, delegate="xnnpack" if delegate else "none")
        with TFLite().open(artifact, options) as runner:
            got = runner.run(feeds)
        with open_graph(model, optimised=False) as session:
            return Ran(got, session.run(feeds), codes(artifact), fused(artifact))

    return run


@pytest.fixture
def model_of() -> Callable[[str, Arrays], ir.Model]:
    """A graph as text, and constants in the place of inputs of their names."""
    return lambda text, constants: with_constants(
        ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 21]> g ' + text), constants
    )


def with_constants(model: ir.Model, constants: Arrays) -> ir.Model:
    """The constants in the place of inputs of their names."""
    for value in list(model.graph.inputs):
        if value.name in constants:
            array = constants[value.name or ""]
            value.const_value, value.shape = ir.tensor(array, name=value.name), ir.Shape(array.shape)
            value.dtype = ir.DataType.from_numpy(array.dtype)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}{number}"
    return infer(model)
