"""One operation at a time: a graph as text, run by the torch executor, by ONNX Runtime, by gradcheck."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from deploy.execute.ops import TABLE
from deploy.execute.program import Program
from deploy.graph.edit import constant


def model_of(text: str, constants: Mapping[str, np.ndarray], opset: int = 21) -> ir.Model:
    """The text of a graph, with ``constants`` as initializers; nodes are named by their places."""
    stubs = ", ".join(f"float[1] {name} = {{0}}" for name in constants)
    if stubs:
        cut = text.index("{")
        text = f"{text[:cut]} <{stubs}> {text[cut:]}"
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    for name, array in constants.items():
        value = model.graph.initializers[name]
        value.const_value = tensor = ir.tensor(array, name=name)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
    for index, node in enumerate(ir.traversal.RecursiveGraphIterator(model.graph)):
        node.name = f"n{index}"
    return model


def run_of(model: ir.Model, dtype: torch.dtype | None = None) -> Callable[..., list[object]]:
    """The graph as a function of its inputs in order; float constants as ``dtype`` where one is given."""
    program = Program(model.graph, TABLE, model.opset_imports[""])
    for name, value in model.graph.initializers.items():
        tensor = torch.from_numpy(np.array(constant(value)))
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        program.template[program.slots[name]] = tensor
    return lambda *given: program.run(given)


def _array(value: object) -> object:
    return [_array(part) for part in value] if isinstance(value, list) else value.detach().numpy()


def _compare(found: object, wanted: object, rtol: float, atol: float) -> None:
    if isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            _compare(one, other, rtol, atol)
    else:
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)


@pytest.fixture
def run() -> Callable[..., list[object]]:
    """``run(text, *inputs, constants)``: what the torch executor makes of numpy arrays."""

    def go(text: str, *inputs: np.ndarray | torch.Tensor, opset: int = 21, **constants: np.ndarray):
        given = [torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x for x in inputs]
        return run_of(model_of(text, constants, opset))(*given)

    return go


@pytest.fixture
def like_ort() -> Callable[..., list[np.ndarray]]:
    """Assert that the executor and ONNX Runtime, unoptimised, agree on a graph; return the outputs."""

    def go(text: str, *inputs: np.ndarray, rtol=1e-5, atol=1e-6, opset: int = 21, **constants: np.ndarray):
        model = model_of(text, constants, opset)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        proto = ir.serde.serialize_model(model).SerializeToString()
        session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in model.graph.inputs if value.name not in constants]
        wanted = session.run(None, dict(zip(names, inputs, strict=True)))
        with torch.no_grad():
            found = run_of(model)(*[torch.from_numpy(np.array(x)) for x in inputs])
        for one, other in zip(found, wanted, strict=True):
            _compare(_array(one), other, rtol, atol)
        return wanted

    return go


@pytest.fixture
def gradcheck() -> Callable[..., None]:
    """Assert in float64 that the gradients of all float inputs are right; fast: in random directions."""

    def go(
        text: str, *inputs: np.ndarray, fast: bool = False, opset: int = 21, **constants: np.ndarray
    ) -> None:
        model = model_of(text, constants, opset)
        function = run_of(model, torch.float64)
        given = [torch.from_numpy(np.array(x)) for x in inputs]
        given = [x.double().requires_grad_() if x.is_floating_point() else x for x in given]

        def floats(*tensors: torch.Tensor) -> Sequence[torch.Tensor]:
            flat = [part for out in function(*tensors) for part in (out if isinstance(out, list) else [out])]
            return tuple(t for t in flat if t.is_floating_point())

        tracked = [t.requires_grad for t in floats(*given)]  # gradcheck passes over those without
        assert tracked and all(tracked), "an output does not depend on what is fed"
        assert torch.autograd.gradcheck(floats, given, fast_mode=fast)

    return go
