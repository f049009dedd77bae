"""The one form in which a graph goes on: no functions, no Constant nodes, no nameless node, sorted.

    old file:  inputs (x, w), initializers (w), Constant -> c, f(x), unnamed nodes in any order
    here:      inputs (x), initializers (w, c), the body of f, Relu_0, Conv_1 ... each after what it reads

Names of values are kept: the plan, the artifact and the user's data know them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftSubgraphInitializersToMainGraphPass

from deploy.errors import ModelError, UnsupportedError

MAX_NODES = 1_000_000
"""Nodes after inlining; functions that call functions can multiply a small file beyond any memory."""

_EXPORTER_METADATA = "pkg."
"""Prefix under which PyTorch's exporter leaves stack traces and paths of the machine it ran on."""


def flatten(model: ir.Model, path: Path) -> None:
    """Inline the functions of ``model``, read from ``path``, name its nodes, map its external data; in place.

    Raises ModelError where functions call themselves or grow beyond `MAX_NODES`.
    """
    _standard_domain(model)
    _inline(model, path)
    _own_tensors(model, path.parent.resolve())
    name_nodes(model)
    _drop_exporter_metadata(model)


def settle(model: ir.Model) -> None:
    """The rest of the form above, in place, for a flat model whose operations are known to be sound."""
    for graph in list(model.graphs()):
        graph.inputs[:] = [value for value in graph.inputs if value.name not in graph.initializers]
        lift_constants(graph)
    LiftSubgraphInitializersToMainGraphPass()(model)
    model.graph.sort()
    for value in model.graph.initializers.values():
        tensor = _constant(value)
        value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    name_nodes(model)
    _free_negative_sizes(model)


def name_nodes(model: ir.Model) -> None:
    """Give each node that has no name or another's one of its own: ``Conv_3`` is the Conv at position 3."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    used = {node.name for node in nodes if node.name}
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        if not node.name or node.name in seen:
            node.name = fresh(node.name or f"{node.op_type}_{index}", used)
        seen.add(node.name)
        used.add(node.name)


def fresh(wanted: str, used: set[str]) -> str:
    """``wanted``, with the first free number behind it where it is taken."""
    name, number = wanted, 1
    while name in used:
        name, number = f"{wanted}_{number}", number + 1
    return name


def lift_constants(graph: ir.Graph) -> None:
    """Turn the Constant nodes of ``graph`` itself into initializers of the same name.

    One that is an output of the graph keeps its name there, behind an Identity.
    """
    for node in list(graph):
        if node.op_type != "Constant" or node.domain:
            continue
        output = node.outputs[0]
        name = output.name or fresh("constant", set(graph.initializers))
        tensor = _constant_tensor(node)
        shown = output.is_graph_output()
        value = ir.Value(
            name=fresh(f"{name}_value", set(graph.initializers)) if shown else name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        tensor.name = value.name
        if shown:
            graph.insert_after(node, copy := ir.node("Identity", [value], name=node.name))
            ir.convenience.replace_all_uses_with(output, copy.outputs[0], replace_graph_outputs=True)
            copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = name, value.type, value.shape
        else:
            ir.convenience.replace_all_uses_with(output, value)
        graph.remove(node, safe=True)
        graph.register_initializer(value)


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol:
    """The value of a Constant node, whichever of its attributes holds it (Constant-12)."""
    if len(node.attributes) != 1:
        raise ModelError(f"Constant '{node.name}' has {len(node.attributes)} values", hint="export it again")
    name, attribute = next(iter(node.attributes.items()))
    match name:
        case "value":
            return attribute.as_tensor()
        case "value_float":
            return ir.tensor(np.array(attribute.as_float(), np.float32))
        case "value_floats":
            return ir.tensor(np.array(attribute.as_floats(), np.float32))
        case "value_int":
            return ir.tensor(np.array(attribute.as_int(), np.int64))
        case "value_ints":
            return ir.tensor(np.array(attribute.as_ints(), np.int64))
        case "value_string":
            return ir.StringTensor([attribute.as_string().encode()], shape=ir.Shape([]))
        case "value_strings":
            texts = [text.encode() for text in attribute.as_strings()]
            return ir.StringTensor(texts, shape=ir.Shape([len(texts)]))
    raise UnsupportedError(
        f"Constant '{node.name or node.outputs[0].name}' holds its data in '{name}'",
        hint="export the constant as a dense tensor",
    )


def _standard_domain(model: ir.Model) -> None:
    """``ai.onnx`` is another spelling of the standard domain."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for imports in [model.opset_imports, *(f.opset_imports for f in model.functions.values())]:
        if "ai.onnx" in imports:
            imports.setdefault("", imports["ai.onnx"])
            del imports["ai.onnx"]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            if node.domain == "ai.onnx":
                node.domain = ""


def _inline(model: ir.Model, path: Path) -> None:
    if not model.functions:
        return
    sizes: dict[ir.OperatorIdentifier, int] = {}

    def size(identifier: ir.OperatorIdentifier, callers: tuple[ir.OperatorIdentifier, ...]) -> int:
        if identifier in callers:
            raise ModelError(
                f"{path}: function '{identifier[1]}' calls itself", hint="export the model again"
            )
        if identifier not in sizes:
            sizes[identifier] = total(model.functions[identifier].graph, (*callers, identifier))
        return sizes[identifier]

    def total(graph: ir.Graph, callers: tuple[ir.OperatorIdentifier, ...]) -> int:
        count = 0
        for node in ir.traversal.RecursiveGraphIterator(graph):
            called = node.op_identifier()
            count += size(called, callers) if called in model.functions else 1
        return count

    try:
        nodes = total(model.graph, ())
    except RecursionError as e:
        raise ModelError(f"{path}: its functions are nested too deep", hint="export the model again") from e
    if nodes > MAX_NODES:
        raise ModelError(
            f"{path}: its functions expand to {nodes} operations, more than {MAX_NODES}",
            hint="export the model without nested functions",
        )
    try:
        InlinePass()(model)
    except (ValueError, ir.passes.InvariantError, ir.passes.PassError) as e:
        reason = str(e.__cause__ or e)
        raise ModelError(
            f"{path}: its functions cannot be inlined: {reason}", hint="export the model without functions"
        ) from e
    model.functions.clear()


def _own_tensors(model: ir.Model, folder: Path) -> None:
    """Take the tensors out of the file's message, which is freed with the last of them; map external ones."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            value.const_value = _owned(_constant(value), folder)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.AttrTensor(name, _owned(attribute.as_tensor(), folder))


def _owned(tensor: ir.TensorProtocol, folder: Path) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor):
        tensor.base_dir = folder
        return tensor
    if isinstance(tensor, ir.StringTensor):
        return ir.StringTensor(
            list(tensor.string_data()), shape=ir.Shape(tensor.shape.numpy()), name=tensor.name
        )
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def _constant(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise ValueError(f"initializer {value.name} has no data")
    return value.const_value


def _drop_exporter_metadata(model: ir.Model) -> None:
    """Prose and stack traces go; what the user attached to the model as a whole stays."""
    model.doc_string = model.graph.doc_string = None
    for graph in model.graphs():
        values: Counter[ir.Value] = Counter([*graph.inputs, *graph.initializers.values()])
        for node in graph:
            values.update(node.outputs)
            node.doc_string = None
            _drop_prefixed(node.metadata_props)
        for value in values:
            value.doc_string = None
            _drop_prefixed(value.metadata_props)


def _free_negative_sizes(model: ir.Model) -> None:
    """Some exporters write -1 for a size that is free, which ONNX has another word for."""
    for graph in model.graphs():
        values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
        for value in values:
            shape = value.shape
            if shape is not None and any(isinstance(dim, int) and dim < 0 for dim in shape):
                value.shape = ir.Shape([None if isinstance(d, int) and d < 0 else d for d in shape])


def _drop_prefixed(metadata: dict[str, str]) -> None:
    for key in [key for key in metadata if key.startswith(_EXPORTER_METADATA)]:
        del metadata[key]
