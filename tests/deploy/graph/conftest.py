"""Graphs as text, and the proof that two compute the same: ONNX Runtime without its optimizations."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest


def _parse(text: str, arrays: Mapping[str, np.ndarray] | None = None) -> ir.Model:
    """``g (inputs) => (outputs) <initializers> { nodes }``; ``arrays`` become further initializers."""
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    tensors = [ir.tensor(a, name=n) for n, a in (arrays or {}).items()]
    model = ir.from_onnx_text(f"{head} {text}", initializers=tensors)
    for value in model.graph.initializers.values():  # the text knows nothing of those given as arrays
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)
    for i, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{i}"
    return model


def _run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feeds)))


def _random_feeds(model: ir.Model, free: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else free for d in value.shape]
        feeds[value.name] = rng.standard_normal(shape).astype(value.dtype.numpy())
    return feeds


def _differs(before: ir.Model, after: ir.Model, tolerance: float = 1e-5) -> str | None:
    """Two batch sizes, every output; relative to the output's magnitude."""
    for free in (1, 3):
        feeds = _random_feeds(before, free)
        for value, a, b in zip(before.graph.outputs, _run(before, feeds), _run(after, feeds), strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{value.name}: {a.dtype}{a.shape} became {b.dtype}{b.shape}"
            error = np.abs(np.float64(a) - np.float64(b)).max(initial=0) / max(
                np.abs(np.float64(a)).max(initial=0), 1e-9
            )
            if not error <= tolerance:
                return f"{value.name}: relative difference {error:.3g}"
    return None


@pytest.fixture
def parse():
    return _parse


@pytest.fixture
def run():
    return _run


@pytest.fixture
def prove():
    return _differs
