"""Small graphs for what backends write: text and arrays in, a graph out, and what it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from deploy.execute.reference import open_graph
from deploy.graph.edit import constant
from deploy.graph.shapes import infer


def drawn(shapes: Mapping[str, tuple[int, ...]], deviation: float = 0.3) -> dict[str, np.ndarray]:
    """Random weights of these shapes, the same ones each time."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, deviation, shape).astype(np.float32) for name, shape in shapes.items()}


def with_weights(text: str, arrays: Mapping[str, np.ndarray]) -> ir.Model:
    """The graph of a text whose undefined names are constants, its nodes named by their types and numbers."""
    model = ir.from_onnx_text(text)
    for name, array in arrays.items():
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype))
        value.shape = ir.Shape(array.shape)
        for user in model.graph:
            for index, read in enumerate(user.inputs):
                if read is not None and read.name == name:
                    user.replace_input_with(index, value)
        model.graph.register_initializer(value)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}{number}"
    return infer(model)


def reference(
    model: ir.Model, feeds: Mapping[str, np.ndarray], want: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes without rewriting anything."""
    with open_graph(model, optimised=False, expose=list(want)) as session:
        return session.run(feeds, want)


def weights_of(model: ir.Model, name: str) -> np.ndarray:
    """The numbers of a constant."""
    array = constant(model.graph.initializers[name])
    assert array is not None
    return array
