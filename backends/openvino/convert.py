"""A graph becomes an OpenVINO model through OpenVINO's own ONNX reader, with names that can be traced back.

The reader turns QuantizeLinear into FakeQuantize and Convert, DequantizeLinear into Convert, Subtract and
Multiply, keeping scales, zero points and integer weights as they are. It calls what it adds by a counter that
runs as long as the process (``Constant_19``); here it is called after the node that it is part of
(``conv1/Constant``), so that equal graphs give equal files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    unread = _name_ports(model, inputs)
    # The reader leaves out what nothing reads, and what it reads nothing of (the ratio of a Dropout).
    model.add_parameters([_parameter(value) for value in unread])
    simplify(model)
    name_operations(model, graph.graph)
    return model


def _name_ports(model: openvino.Model, inputs: Sequence[ir.Value]) -> list[ir.Value]:
    """Give the model's inputs the names of the graph's; the values that it has no input for.

    One that is an output, too, bears the name of that alone: there it is told by its type and rank.
    """
    left = {value.name or "": value for value in inputs}
    strangers = []
    for port in model.inputs:
        value = left.pop(port.get_node().get_friendly_name(), None)
        if value is None:
            strangers.append(port)
        else:
            port.get_tensor().add_names({value.name or ""})
    for port in strangers:
        fitting = [name for name, value in left.items() if _fits(port, value)]
        if not fitting:
            raise BackendError(
                f"OpenVINO calls an input {port.get_node().get_friendly_name()}, which the graph has not",
                hint="give inputs and outputs names of their own",
            )
        port.get_tensor().add_names({left.pop(fitting[0]).name or ""})
    return list(left.values())


def _fits(port: openvino.Output, value: ir.Value) -> bool:
    rank = port.get_partial_shape().rank
    same_rank = rank.is_dynamic or value.shape is None or rank.get_length() == len(value.shape)
    return bool(
        same_rank and value.dtype is not None and port.get_element_type().to_dtype() == value.dtype.numpy()
    )


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
