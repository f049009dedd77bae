"""Saying a node of a later opset in an earlier one, by comparing the operator's two schemas.

A node may be written as it is where the earlier schema has its attributes, inputs and types; a new attribute
at its default is dropped. What changed its form has a rule here, an operation that does not exist
earlier is replaced by the body that the ONNX specification defines for it, and the rest is refused, all of it
together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploy.frontend.function_body import expand
from deploy.frontend.opset_upgrades import REDUCTIONS
from deploy.frontend.rewrite import (
    Edit,
    NotExpressible,
    Rule,
    become,
    constant_array,
    given,
    rank,
    required,
    set_attribute,
    set_inputs,
    size,
)

if TYPE_CHECKING:
    import onnx

Raise = Callable[[Edit, list[ir.Node], int, int], None]
"""Brings nodes up from one opset to a later one."""

# Values of old attributes that came later, though the schema did not change.
_LATER_VALUES = {
    ("Pad", "mode", "wrap"): 19,
    ("Resize", "coordinate_transformation_mode", "half_pixel_symmetric"): 19,
    ("ScatterElements", "reduction", "max"): 18,
    ("ScatterElements", "reduction", "min"): 18,
    ("ScatterND", "reduction", "max"): 18,
    ("ScatterND", "reduction", "min"): 18,
}


def lower(edit: Edit, version: int, opset: int, raise_nodes: Raise) -> None:
    """Rewrite all nodes from ``version`` to the earlier ``opset``; what cannot be is refused in ``edit``."""
    pending = dict.fromkeys(ir.traversal.RecursiveGraphIterator(edit.model.graph), version)
    while pending:
        absent = []
        for node, at in pending.items():
            if node.domain != "":
                continue
            if at <= opset:
                raise_nodes(edit, [node], at, opset)
                continue
            try:
                if not _lower_node(node, edit, at, opset):
                    absent.append((node, at))
            except NotExpressible as e:
                edit.refuse(node, str(e))
        pending = {}
        for node, at in absent:
            try:
                pending.update(expand(node, at, edit))
            except NotExpressible as e:
                edit.refuse(node, str(e))


def _lower_node(node: ir.Node, edit: Edit, version: int, opset: int) -> bool:
    """False where the operation does not exist in the earlier opset."""
    import onnx

    for (op, at), rule in LOWERINGS.items():
        if op == node.op_type and opset < at <= version:
            rule(node, edit)
    later = onnx.defs.get_schema(node.op_type, version, "")
    try:
        earlier = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    if earlier.deprecated:
        return False
    if later.since_version != earlier.since_version:
        _fit(node, later, earlier)
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.STRING:
            since = _LATER_VALUES.get((node.op_type, name, attribute.as_string()), 0)
            if since > opset:
                raise NotExpressible(f"{name}={attribute.as_string()} needs opset {since}")
    return True


def _fit(node: ir.Node, later: onnx.defs.OpSchema, earlier: onnx.defs.OpSchema) -> None:
    """Raises NotExpressible where the earlier schema lacks something that the node uses."""
    for name in list(node.attributes):
        if name in earlier.attributes:
            continue
        if not _at_default(node.attributes[name], later.attributes[name]):
            raise NotExpressible(f"{name} needs opset {later.since_version}")
        node.attributes.pop(name)
    for name, new in later.attributes.items():
        old = earlier.attributes.get(name)
        if name in node.attributes or old is None or not new.default_value.name:
            continue
        if old.default_value != new.default_value:
            node.attributes[name] = ir.serde.deserialize_attribute(new.default_value)
    if len(node.inputs) > earlier.max_input or len(node.inputs) < earlier.min_input:
        raise NotExpressible(f"{len(node.inputs)} inputs need opset {later.since_version}")
    if len(node.outputs) > earlier.max_output:
        raise NotExpressible(f"{len(node.outputs)} outputs need opset {later.since_version}")
    for values, formals in ((node.inputs, earlier.inputs), (node.outputs, earlier.outputs)):
        for index, value in enumerate(values):
            formal = formals[min(index, len(formals) - 1)]
            if value is None or not isinstance(value.type, ir.TensorType):
                continue
            if f"tensor({value.type.dtype.name.lower()})" not in formal.types:
                raise NotExpressible(f"{value.type.dtype.name.lower()} needs opset {later.since_version}")


def _at_default(attribute: ir.Attr, schema: onnx.defs.OpSchema.Attribute) -> bool:
    if not schema.default_value.name:
        return False
    return bool(ir.serde.deserialize_attribute(schema.default_value).value == attribute.value)


# --------------------------------------------------------------------------------------------- rules


def axes_to_attribute(node: ir.Node, _: Edit) -> None:
    """Reductions before 18: the axes are an attribute, so they must be known."""
    axes = given(node, 1)
    known = constant_array(axes)
    if axes is not None and known is None:
        raise NotExpressible("its axes are computed")
    if node.attributes.get_int("noop_with_empty_axes", 0) and (known is None or not known.size):
        raise NotExpressible("noop_with_empty_axes needs opset 18")
    node.attributes.pop("noop_with_empty_axes", None)
    set_inputs(node, [required(node, 0)])
    if known is not None and known.size:
        set_attribute(node, "axes", [int(axis) for axis in known])


def split_without_number(node: ir.Node, edit: Edit) -> None:
    """Split before 18 knows no ``num_outputs``: the parts are written out, the last one smaller."""
    number = node.attributes.pop("num_outputs", None)
    if number is None or given(node, 1) is not None:
        return
    x, parts = required(node, 0), number.as_int()
    length = None if x.shape is None else size(x, node.attributes.get_int("axis", 0))
    if length is None:
        raise NotExpressible("the length of its axis is not known")
    part = -(-length // parts)
    sizes = [part] * (parts - 1) + [length - part * (parts - 1)]
    set_inputs(node, [x, edit.integers(sizes, node, "split")])


def pad_all_axes(node: ir.Node, edit: Edit) -> None:
    """Pad before 18 pads every axis: those not named get 0."""
    named = given(node, 3)
    if named is None:
        return
    x = required(node, 0)
    axes, pads, axes_of_x = constant_array(named), constant_array(given(node, 1)), rank(x)
    if axes is None or pads is None or axes_of_x is None:
        raise NotExpressible("its axes or pads are computed")
    every = np.zeros((2, axes_of_x), np.int64)
    every[:, axes] = pads.reshape(2, -1)
    set_inputs(node, [x, edit.integers([int(p) for p in every.flat], node, "pads"), given(node, 2)])


def resize_all_axes(node: ir.Node, edit: Edit) -> None:
    """Resize before 18 scales every axis: those not named get 1."""
    named = node.attributes.get("axes")
    if named is None:
        return
    x = required(node, 0)
    scales, axes_of_x = constant_array(given(node, 2)), rank(x)
    if scales is None or axes_of_x is None or given(node, 1) is not None:
        raise NotExpressible("axes without constant scales need opset 18")
    every = np.ones(axes_of_x, np.float32)
    every[list(named.as_ints())] = scales
    node.attributes.pop("axes")
    set_inputs(node, [x, None, edit.constant(every, node, "scales")])


def drop_unit_dilations(node: ir.Node, _: Edit) -> None:
    """LpPool before 18 and AveragePool before 19 have no dilations; 1 is what they do."""
    dilations = node.attributes.get("dilations")
    if dilations is not None and all(d == 1 for d in dilations.as_ints()):
        node.attributes.pop("dilations")


def dft_axis_to_attribute(node: ir.Node, _: Edit) -> None:
    """DFT before 20. The last axis holds real and imaginary part; the default is the one before."""
    named, axes = given(node, 2), rank(required(node, 0))
    axis = -2 if named is None else constant_array(named)
    if axis is None or axes is None:
        raise NotExpressible("its axis is computed or the rank unknown")
    set_attribute(node, "axis", int(axis) % axes)
    set_inputs(node, [required(node, 0), given(node, 1)])


def grid_sample_old_names(node: ir.Node, _: Edit) -> None:
    """GridSample before 20: other names, and images only."""
    mode = node.attributes.get_string("mode", "linear")
    if rank(required(node, 0)) not in (4, None):
        raise NotExpressible("other than two spatial axes need opset 20")
    set_attribute(node, "mode", {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode))


def quantize_output_type(node: ir.Node, edit: Edit) -> None:
    """QuantizeLinear before 21 knows its type from the zero point alone."""
    if not node.attributes.get_int("output_dtype", 0):
        return
    dtype = ir.DataType(node.attributes.get_int("output_dtype", 0))
    node.attributes.pop("output_dtype")
    if given(node, 2) is not None:
        return
    scale = required(node, 1)
    known = constant_array(scale)
    if known is None:
        raise NotExpressible("its scale is computed and it has no zero point")
    zero = edit.constant(np.zeros(known.shape, dtype.numpy()), node, "zero_point")
    become(node, "QuantizeLinear", [required(node, 0), scale, zero])


def dequantize_output_type(node: ir.Node, _: Edit) -> None:
    """DequantizeLinear before 23 answers in the type of its scale."""
    named = node.attributes.get_int("output_dtype", 0)
    if named and required(node, 1).dtype == ir.DataType(named):
        node.attributes.pop("output_dtype")


def cast_rounding(node: ir.Node, _: Edit) -> None:
    """Cast before 24: how float8e8m0 is rounded, a type that it does not have."""
    node.attributes.pop("round_mode", None)


LOWERINGS: dict[tuple[str, int], Rule] = {
    ("Cast", 24): cast_rounding,
    ("CastLike", 24): cast_rounding,
    ("DequantizeLinear", 23): dequantize_output_type,
    ("QuantizeLinear", 21): quantize_output_type,
    ("DFT", 20): dft_axis_to_attribute,
    ("GridSample", 20): grid_sample_old_names,
    ("AveragePool", 19): drop_unit_dilations,
    ("LpPool", 18): drop_unit_dilations,
    ("Pad", 18): pad_all_axes,
    ("Resize", 18): resize_all_axes,
    ("Split", 18): split_without_number,
    **{(op, 18): axes_to_attribute for op in REDUCTIONS},
}
"""(operation, opset that changed its form) -> the rule that goes back behind that opset, latest first."""
