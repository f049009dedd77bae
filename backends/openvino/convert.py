"""A graph becomes an OpenVINO model through OpenVINO's own ONNX reader, with names that can be traced back.

The reader turns QuantizeLinear into FakeQuantize and Convert, DequantizeLinear into Convert, Subtract and
Multiply, keeping scales, zero points and integer weights as they are. It calls what it adds by a counter that
runs as long as the process (``Constant_19``); here it is called after the node that it is part of
(``conv1/Constant``), so that equal graphs give equal files.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from backends.openvino.sdk import core, reason, sdk
from backends.openvino.simplify import simplify
from deploy.cache import scratch
from deploy.errors import BackendError
from deploy.frontend.onnx_file import EXTERNAL_BEYOND, to_bytes, write
from deploy.graph.edit import weight_bytes
from deploy.graph.shapes import model_inputs

if TYPE_CHECKING:
    import openvino


def to_openvino(graph: ir.Model) -> openvino.Model:
    """The graph as OpenVINO reads it. Raises BackendError where it cannot."""
    if weight_bytes(graph) <= EXTERNAL_BEYOND // 16:
        model = _read(to_bytes(graph))
    else:
        with scratch("openvino") as folder:
            path = folder / "graph.onnx"
            write(graph, path, embed=0)
            model = _read(path)
    inputs = model_inputs(graph)
    ports = {port.get_node().get_friendly_name(): port for port in model.inputs}
    for value in inputs:
        if value.name in ports:
            ports[value.name].get_tensor().add_names({value.name})  # it may bear the name of an output only
    # The reader leaves out what nothing reads, and what it reads nothing of (the ratio of a Dropout).
    model.add_parameters([_parameter(value) for value in inputs if value.name not in ports])
    simplify(model)
    name_operations(model, graph.graph)
    return model


def _parameter(value: ir.Value) -> openvino.op.Parameter:
    """An input that nothing reads."""
    openvino = sdk()
    assert value.dtype is not None
    sizes = [size if isinstance(size, int) else -1 for size in value.shape or ()]
    made = openvino.op.Parameter(openvino.Type(value.dtype.numpy()), openvino.PartialShape(sizes))
    made.set_friendly_name(value.name or "")
    made.output(0).get_tensor().set_names({value.name or ""})
    return made


def save(model: openvino.Model, xml: Path, weights: Path) -> None:
    """Write the IR, numbers as they are, without the indentation that makes up a third of a small model."""
    sdk().serialize(model, xml, weights)
    xml.write_bytes(b"\n".join(line.lstrip(b"\t") for line in xml.read_bytes().split(b"\n")))


def _read(content: bytes | Path) -> openvino.Model:
    try:
        return core().read_model(content)
    except Exception as e:
        raise BackendError(
            f"OpenVINO cannot read the graph: {reason(e)}",
            hint="run `deploy inspect` on the model; if it is valid, report this graph",
        ) from e


def name_operations(model: openvino.Model, nodes: Iterable[ir.Node]) -> None:
    """Call every operation after the node it is part of; what makes a node's first result gets its name."""
    makers: dict[str, str] = {}
    for node in nodes:
        for index, value in enumerate(node.outputs):
            if value.name and node.name:
                makers[value.name] = node.name if index == 0 else f"{node.name}/{index}"
    operations = model.get_ordered_ops()
    owner: dict[str, str] = {}
    taken = {op.get_friendly_name() for op in operations if op.get_type_name() in ("Parameter", "Result")}
    unnamed = []
    for op in reversed(operations):
        if op.get_type_name() in ("Parameter", "Result"):
            continue
        names = sorted({name for out in op.outputs() for name in out.get_names()})
        made = [makers[name] for name in names if name in makers]
        readers = [target.get_node() for out in op.outputs() for target in out.get_target_inputs()]
        below = [owner[r.get_name()] for r in readers if r.get_name() in owner]
        own = min(made or below or [""], key=lambda name: (len(name), name))  # they come in no fixed order
        owner[op.get_name()] = own
        if made and own not in taken:
            _call(op, own, taken)
        elif names and not made and names[0] not in taken:
            _call(op, names[0], taken)  # a constant
        else:
            unnamed.append(op)
    for op in reversed(unnamed):
        stem = "/".join(part for part in (owner[op.get_name()], op.get_type_name()) if part)
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        _call(op, name, taken)


def _call(op: openvino.Node, name: str, taken: set[str]) -> None:
    op.set_friendly_name(name)
    taken.add(name)
