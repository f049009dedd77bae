"""One pinned opset: whatever version a graph was written for, everything above reads only this one.

The way up is a table of our own rules (`opset_upgrades`), the way down a comparison of the operators' schemas
with a few rules (`opset_lowering`). The converters of onnx and onnxscript are not used: they silently change
Resize-10 linear, Upsample-9 linear and Hardmax-7.
"""

from __future__ import annotations

import logging

import onnx_ir as ir

from deploy.errors import UnsupportedError
from deploy.frontend.normalise import name_nodes
from deploy.frontend.opset_lowering import lower
from deploy.frontend.opset_upgrades import UPGRADES
from deploy.frontend.rewrite import Edit, NotExpressible
from deploy.frontend.wellformed import OLDEST_OPSET

logger = logging.getLogger(__name__)

OPSET = 21
"""The opset of every graph behind the frontend. 21 is the first with 4- and 16-bit and blocked Q/DQ, and ONNX
Runtime, OpenVINO and TensorRT 10 read it."""

OLDEST_TARGET = 17

IR_VERSION = 10
"""The file format's version that came with opset 21 (onnx/docs/Versioning.md)."""

_SMALL_BYTES = 1024
"""Constants up to this size may hold a shape, which inference wants to see."""

_IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


def upgrade(model: ir.Model) -> ir.Model:
    """The same computation at the pinned opset, as a new model; tensors are shared with ``model``.

    ``model`` is any graph of opset 7 or later without functions, its constants initializers. Names of values
    are kept. Raises UnsupportedError listing every node that the pinned opset cannot express.
    """
    version = model.opset_imports.get("", OPSET)
    if version < OLDEST_OPSET:
        raise UnsupportedError(f"opset {version} is older than {OLDEST_OPSET}", hint="export the model again")
    named = model.clone()
    name_nodes(named)
    if version == OPSET:
        named.ir_version = IR_VERSION
        return named
    upgraded, unsure = _bring(named, version, {})
    if unsure:  # later opsets infer more: with the ranks found there, the rules find shorter forms
        _infer_types(upgraded)
        upgraded, _ = _bring(named, version, _shapes(upgraded))
    return upgraded


def retarget(model: ir.Model, opset: int) -> ir.Model:
    """A graph of the pinned opset for a runtime that reads only up to ``opset`` (17 to 21), as a new model.

    Raises UnsupportedError listing every node that cannot be expressed there.
    """
    if not OLDEST_TARGET <= opset <= OPSET:
        raise UnsupportedError(
            f"graphs are written for opset {OLDEST_TARGET} to {OPSET}, not {opset}",
            hint="set onnx_opset of the runtime's profile within that range",
        )
    model = model.clone()
    if opset != OPSET:
        _infer_types(model)
        used = _used_initializers(model)
        edit = Edit(model)
        lower(edit, OPSET, opset, raise_nodes)
        edit.raise_refused(
            f"cannot be said in opset {opset}", "use a runtime version that reads a later opset"
        )
        _drop_orphans(model, used)
    model.opset_imports[""] = opset
    model.ir_version = _IR_VERSIONS[opset]
    return model


def _bring(source: ir.Model, version: int, shapes: dict[str, ir.Shape]) -> tuple[ir.Model, bool]:
    """``source`` at the pinned opset, and whether a rule lacked a rank. ``shapes`` are known beforehand."""
    model = source.clone()
    _infer_types(model)
    for value in (out for node in ir.traversal.RecursiveGraphIterator(model.graph) for out in node.outputs):
        if value.shape is None and value.name in shapes:
            value.shape = shapes[value.name]
    used = _used_initializers(model)
    edit = Edit(model)
    if version < OPSET:
        raise_nodes(edit, list(ir.traversal.RecursiveGraphIterator(model.graph)), version)
        what = f"cannot be brought from opset {version} to {OPSET}"
    else:
        lower(edit, version, OPSET, raise_nodes)
        what = f"of opset {version} cannot be said in opset {OPSET}"
    edit.raise_refused(what, f"export the model with opset_version={OPSET}, or without these operations")
    _drop_orphans(model, used)
    model.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION
    return model, edit.unsure


def raise_nodes(edit: Edit, nodes: list[ir.Node], version: int, opset: int = OPSET) -> None:
    """Bring ``nodes`` from ``version`` up to ``opset``, one opset after the other."""
    pending = [node for node in nodes if node.domain == ""]
    steps = sorted({at for _, at in UPGRADES if version < at <= opset})
    for at in steps:
        for node in pending:
            rule = UPGRADES.get((node.op_type, at))
            if rule is None:
                continue
            try:
                rule(node, edit)
            except NotExpressible as e:
                edit.refuse(node, str(e))


def _infer_types(model: ir.Model) -> None:
    """Types and ranks decide some rules. A graph that inference cannot follow keeps those it declares."""
    import onnx

    light = model.clone()
    for name, value in list(light.graph.initializers.items()):
        if value.const_value is None or value.const_value.nbytes > _SMALL_BYTES:
            del light.graph.initializers[name]  # its type is enough, and protobuf need not hold it
            light.graph.inputs.append(value)
    try:
        inferred = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(light)))
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as e:
        logger.debug("types of %s cannot be inferred: %s", model.graph.name, e)
        return
    for graph, known in zip(model.graphs(), inferred.graphs(), strict=True):
        found = {value.name: value for node in known for value in node.outputs}
        for value in (value for node in graph for value in node.outputs):
            if value.name in found:
                best = found[value.name]
                value.type = value.type if best.type is None else best.type
                value.shape = value.shape if best.shape is None else best.shape


def _shapes(model: ir.Model) -> dict[str, ir.Shape]:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    found = {value.name: value.shape for node in nodes for value in node.outputs}
    return {name: shape for name, shape in found.items() if name and shape is not None}


def _used_initializers(model: ir.Model) -> set[str]:
    return {name for name, value in model.graph.initializers.items() if value.uses()}


def _drop_orphans(model: ir.Model, used: set[str]) -> None:
    """Remove the constants that no rewritten node reads any more."""
    for name in used & model.graph.initializers.keys():
        value = model.graph.initializers[name]
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
