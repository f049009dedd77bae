"""Operations that the ONNX specification defines through others, replaced by that definition.

    Swish(x) {alpha}  ->  Mul(x, Sigmoid(Mul(x, alpha)))

The bodies come from the operators' schemas (onnx.defs), which is where their meaning is written down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from deploy.frontend.normalise import lift_constants
from deploy.frontend.rewrite import Edit, NotExpressible, owner

if TYPE_CHECKING:
    import onnx


class _Schema(Protocol):
    """What onnx's type stubs leave out of OpSchema."""

    has_function: bool
    has_context_dependent_function: bool
    function_opset_versions: list[int]
    context_dependent_function_opset_versions: list[int]
    since_version: int

    def get_function_with_opset_version(self, version: int, /) -> bytes: ...

    def get_context_dependent_function_with_opset_version(
        self, version: int, node: bytes, input_types: list[bytes], /
    ) -> bytes: ...


def expand(node: ir.Node, version: int, edit: Edit) -> dict[ir.Node, int]:
    """Put the body of ``node``'s operation in its place; the new nodes with the opset each is written for.

    Raises NotExpressible where the operation has no body, or one that depends on types that are not known.
    """
    import onnx

    schema = onnx.defs.get_schema(node.op_type, version, "")
    graph, model = owner(node), edit.model
    before = set(ir.traversal.RecursiveGraphIterator(model.graph))
    _write_out_defaults(node, schema)
    proto, body_version = _body(node, cast(_Schema, schema), version)
    _match_outputs(proto, len(node.outputs))
    body = ir.serde.deserialize_function(proto)
    _prefix_names(body, node, edit)
    body.opset_imports.clear()
    # A domain of its own per call: the body of one node need not be that of the next.
    body.domain, body.name, body.overload = "deploy.body", node.op_type, edit.fresh(f"{node.name}/body")
    node.domain, node.overload = body.domain, body.overload
    model.functions[body.identifier()] = body
    InlinePass()(model)
    lift_constants(graph)
    new = [n for n in ir.traversal.RecursiveGraphIterator(model.graph) if n not in before]
    for inner in new:
        _say_the_type(inner)
    dead = _drop_dead(new)
    return {n: body_version for n in new if n not in dead}


def _say_the_type(node: ir.Node) -> None:
    """CastLike > Cast where the type is known, since not every runtime knows the former."""
    like = node.inputs[1] if node.op_type == "CastLike" else None
    if like is not None and like.dtype is not None:
        node.op_type = "Cast"
        node.attributes["to"] = ir.AttrInt64("to", like.dtype)
        node.resize_inputs(1)


def _write_out_defaults(node: ir.Node, schema: onnx.defs.OpSchema) -> None:
    """A body refers to the node's attributes, which must therefore be there."""
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.name:
            node.attributes[name] = ir.serde.deserialize_attribute(attribute.default_value)


def _body(node: ir.Node, schema: _Schema, version: int) -> tuple[onnx.FunctionProto, int]:
    import onnx

    if schema.has_function:
        at = max(v for v in schema.function_opset_versions if v <= version)
        return onnx.FunctionProto.FromString(schema.get_function_with_opset_version(at)), at
    if not schema.has_context_dependent_function:
        raise NotExpressible(f"needs opset {schema.since_version}")
    at = max(v for v in schema.context_dependent_function_opset_versions if v <= version)
    types = []
    for value in node.inputs:
        if value is not None and value.type is None:
            raise NotExpressible(f"needs opset {schema.since_version}, its input types being unknown")
        types.append(_type_bytes(value))
    serialized = ir.serde.serialize_node(node).SerializeToString()
    body = schema.get_context_dependent_function_with_opset_version(at, serialized, types)
    return onnx.FunctionProto.FromString(body), at


def _match_outputs(proto: onnx.FunctionProto, count: int) -> None:
    """As many outputs as the node has. One that it leaves out in between, the body may not compute at all."""
    del proto.output[count:]
    computed = {name for node in proto.node for name in node.output}
    for name in proto.output:
        if name not in computed:
            proto.node.add(op_type="Identity", input=[proto.input[0]], output=[name])


def _type_bytes(value: ir.Value | None) -> bytes:
    return b"" if value is None else ir.serde.serialize_value(value).type.SerializeToString()


def _prefix_names(body: ir.Function, node: ir.Node, edit: Edit) -> None:
    """Names that tell where a node came from, and that nothing in the model bears yet."""
    for inner in ir.traversal.RecursiveGraphIterator(body.graph):
        inner.name = edit.fresh(f"{node.name}/{inner.op_type}")
        for value in inner.outputs:
            if value.name:
                value.name = edit.fresh(f"{node.name}/{value.name}")


def _drop_dead(nodes: list[ir.Node]) -> set[ir.Node]:
    """Remove, last first, what computed outputs that the expanded node did not have."""
    dead = set()
    for node in reversed(nodes):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            owner(node).remove(node, safe=True)
            dead.add(node)
    return dead
