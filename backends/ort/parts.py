"""The kernels that ONNX Runtime makes of a file, each run alone.

ONNX Runtime writes out the graph that its passes leave; its nodes are the kernels that compute. Cut where
values of the file's own graph lie, each part runs with nothing rewritten any more. Passes that change the
layout are left out: what they leave has few values of the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from deploy.adapter.protocol import Arrays
from deploy.cache import scratch
from deploy.errors import BackendError
from deploy.execute.reference import Session, session_options
from deploy.graph.edit import is_constant

_DISABLED = "optimization.disable_specified_optimizers"
_LAYOUTS = ("NhwcTransformer", "NchwcTransformer")
"""Passes after which values lie in another order, under other names; what they change computes the same."""


@dataclass(frozen=True)
class KernelPart:
    """The kernels between the values ``reads`` and the value ``result``. Implements the Piece protocol."""

    node: str
    reads: tuple[str, ...]
    result: str
    model: ir.Model
    threads: int
    settings: Mapping[str, str]

    def run(self, feeds: Arrays) -> np.ndarray:
        values = {v.name: v for v in self.model.graph.inputs}
        values |= {out.name: out for node in self.model.graph for out in node.outputs}
        part = ir.convenience.extract(
            self.model.graph, [values[name] for name in self.reads], [values[self.result]]
        )
        for value in part.inputs:
            array = feeds[value.name or ""]
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            value.shape = ir.Shape(array.shape)
        model = ir.Model(part, ir_version=self.model.ir_version)
        part.opset_imports.update(self.model.opset_imports)
        content = ir.serde.serialize_model(model).SerializeToString()
        with Session(content, optimised=False, threads=self.threads, settings=self.settings) as session:
            return session.run({name: feeds[name] for name in self.reads})[self.result]


def parts(
    path: Path, known: Collection[str], *, threads: int, settings: Mapping[str, str]
) -> Iterator[KernelPart]:
    """The parts of a file in the order in which they run; ``known`` are values that can be fed.

    Raises BackendError where ONNX Runtime cannot open it.
    """
    model = _optimised(path, threads, settings)
    fed = {v for v in model.graph.inputs if v.name in known}
    fed |= {
        out
        for node in model.graph
        for out in node.outputs
        if out.name in known and any(not is_constant(value) for value in node.inputs if value is not None)
    }
    for node in model.graph:
        for out in node.outputs:
            if out in fed and (reads := _between(out, fed)):
                yield KernelPart("", reads, out.name or "", model, threads, settings)


def _between(result: ir.Value, fed: Collection[ir.Value]) -> tuple[str, ...]:
    """The fed values from which a result is computed."""
    reads: dict[str, None] = {}
    seen: set[ir.Node] = set()
    waiting = [result.producer()]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        captured = [v for inner in _bodies(node) for n in inner for v in n.inputs]
        for value in (*node.inputs, *captured):
            if value is None:
                continue
            if value in fed:
                reads[value.name or ""] = None
            else:
                waiting.append(value.producer())
    return tuple(sorted(reads))


def _bodies(node: ir.Node) -> list[ir.Graph]:
    graphs = (a for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH)
    return [attribute.as_graph() for attribute in graphs]


def _optimised(path: Path, threads: int, settings: Mapping[str, str]) -> ir.Model:
    import onnxruntime as ort

    with scratch("optimised") as folder:
        optimised = folder / "optimised.onnx"
        without = ";".join(filter(None, (settings.get(_DISABLED, ""), *_LAYOUTS)))
        options = session_options(threads=threads, settings={**settings, _DISABLED: without})
        options.optimized_model_filepath = str(optimised)
        try:
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as e:
            raise BackendError(
                f"ONNX Runtime cannot open {path.name}: {e}", hint="copy the whole bundle again"
            ) from e
        model = ir.load(optimised)
        for value in model.graph.initializers.values():  # the file is gone in a moment
            if value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    return model
