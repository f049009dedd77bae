"""Every operation whose form or meaning changed between opset 7 and 21, and how to say it anew.

Read from the ONNX changelog (onnx/docs/Changelog.md) and from ONNX Runtime's kernels where the old text is
silent (Upsample and Resize-10). Changes not listed here added types or optional parts and need nothing; a
test compares all schemas and holds the list of those.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.frontend.rewrite import (
    Edit,
    NotExpressible,
    Rule,
    become,
    constant_array,
    float_type,
    given,
    rank,
    required,
    set_attribute,
    set_inputs,
    size,
)

REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSumSquare"),
)


# ------------------------------------------------------------------------------ attributes that became inputs


def axes_to_input(node: ir.Node, edit: Edit) -> None:
    """Squeeze, Unsqueeze, ReduceSum (13), the other reductions (18): f(x) {axes} -> f(x, axes)."""
    axes = node.attributes.pop("axes", None)
    if axes is not None:
        set_inputs(node, [required(node, 0), edit.integers(list(axes.as_ints()), node, "axes")])


def split_to_input(node: ir.Node, edit: Edit) -> None:
    """Split-13."""
    sizes = node.attributes.pop("split", None)
    if sizes is not None:
        set_inputs(node, [required(node, 0), edit.integers(list(sizes.as_ints()), node, "split")])


def split_num_outputs(node: ir.Node, _: Edit) -> None:
    """Split-18: equal parts are asked for by their number."""
    if given(node, 1) is None:
        set_attribute(node, "num_outputs", len(node.outputs))


def clip_limits(node: ir.Node, edit: Edit) -> None:
    """Clip-11: limits are scalar inputs of the data's type."""
    x = required(node, 0)
    limits: list[ir.Value | None] = []
    for name in ("min", "max"):
        limit = node.attributes.pop(name, None)
        limits.append(
            None if limit is None else edit.constant(np.array(limit.as_float(), float_type(x)), node, name)
        )
    set_inputs(node, [x, *limits])


def slice_to_inputs(node: ir.Node, edit: Edit) -> None:
    """Slice-10."""
    parts = [node.attributes.pop(name, None) for name in ("starts", "ends", "axes")]
    names = ("starts", "ends", "axes")
    set_inputs(
        node,
        [required(node, 0)]
        + [
            None if p is None else edit.integers(list(p.as_ints()), node, n)
            for p, n in zip(parts, names, strict=True)
        ],
    )


def pad_to_inputs(node: ir.Node, edit: Edit) -> None:
    """Pad-11. The value matters in constant mode alone."""
    x = required(node, 0)
    pads = node.attributes.pop("pads").as_ints()
    value = node.attributes.pop("value", None)
    fill = None
    if value is not None and value.as_float() != 0:
        fill = edit.constant(np.array(value.as_float(), float_type(x)), node, "value")
    set_inputs(node, [x, edit.integers(list(pads), node, "pads"), fill])


def topk_to_input(node: ir.Node, edit: Edit) -> None:
    """TopK-10."""
    k = node.attributes.pop("k").as_int()
    set_inputs(node, [required(node, 0), edit.integers([k], node, "k")])


def dropout_to_input(node: ir.Node, edit: Edit) -> None:
    """Dropout-12. Without training_mode it is the identity, as Dropout-7 to 10 are in inference."""
    ratio = node.attributes.pop("ratio", None)
    if ratio is not None:
        set_inputs(
            node, [required(node, 0), edit.constant(np.array(ratio.as_float(), np.float32), node, "ratio")]
        )


def dropout_mask(node: ir.Node, _: Edit) -> None:
    """Dropout-10: the mask became boolean. Nobody reads it in inference."""
    if len(node.outputs) > 1:
        if node.outputs[1].uses() or node.outputs[1].is_graph_output():
            raise NotExpressible("its mask is read, which has a meaning in training alone")
        node.resize_outputs(1)


def dft_axis(node: ir.Node, edit: Edit) -> None:
    """DFT-20: the axis became an input, and its default moved from 1 to -2."""
    axis = node.attributes.get_int("axis", 1)
    node.attributes.pop("axis", None)
    set_inputs(node, [required(node, 0), given(node, 1), edit.integers(axis, node, "axis")])


# -------------------------------------------------------------------------------------------- changed meaning


def softmax_axis(node: ir.Node, edit: Edit) -> None:
    """Softmax-13, LogSoftmax-13, Hardmax-13: before, the input was flattened to two axes at ``axis``.

    On the last axis both mean the same. Elsewhere: x -> Flatten(axis) -> f(axis=-1) -> Reshape(shape of x).
    """
    x = required(node, 0)
    axis = node.attributes.get_int("axis", 1)
    axes = rank(x)
    if axis == -1 or (axes is not None and axis % max(axes, 1) == axes - 1):
        set_attribute(node, "axis", -1)
        return
    edit.unsure |= axes is None
    shape = edit.before(node, "Shape", [x])
    flat = edit.before(node, "Flatten", [x], {"axis": axis})
    result = edit.before(node, node.op_type, [flat], {"axis": -1})
    become(node, "Reshape", [result, shape], {})


def batch_norm_spatial(node: ir.Node, edit: Edit) -> None:
    """BatchNormalization-9 lost ``spatial``: 0 meant statistics per element, scale (C, D1, ...) and so on."""
    spatial = node.attributes.pop("spatial", None)
    if spatial is None or spatial.as_int():
        return
    _refuse_training(node)
    x, scale, bias, mean, variance = (required(node, i) for i in range(5))
    epsilon = np.array(node.attributes.get_float("epsilon", 1e-5), float_type(x))
    shifted = edit.before(node, "Sub", [x, mean])
    steady = edit.before(node, "Add", [variance, edit.constant(epsilon, node, "epsilon")])
    deviation = edit.before(node, "Sqrt", [steady])
    scaled = edit.before(node, "Mul", [edit.before(node, "Div", [shifted, deviation]), scale])
    become(node, "Add", [scaled, bias], {})


def batch_norm_training(node: ir.Node, _: Edit) -> None:
    """BatchNormalization-14: training is asked for by an attribute, before by asking for more outputs."""
    _refuse_training(node)
    node.resize_outputs(1)


def _refuse_training(node: ir.Node) -> None:
    """Listing the outputs is enough, read or not: Y then comes from the statistics of the batch."""
    if any(value.name for value in node.outputs[1:]):
        raise NotExpressible("in training mode: export with model.eval()")


def group_norm_per_channel(node: ir.Node, edit: Edit) -> None:
    """GroupNormalization-21: scale and bias have one element per channel, before one per group."""
    x, groups = required(node, 0), node.attributes.get_int("num_groups", 1)
    channels = size(x, 1)
    per_group: ir.Value | None = None
    inputs = [x]
    for index, what in ((1, "scale"), (2, "bias")):
        value = required(node, index)
        known = constant_array(value)
        if known is not None and channels is not None:
            inputs.append(edit.constant(np.repeat(known, channels // groups), node, what))
            continue
        if per_group is None:
            count = edit.before(node, "Shape", [x], {"start": 1, "end": 2})
            share = edit.before(node, "Div", [count, edit.integers([groups], node, "groups")])
            per_group = edit.before(node, "Concat", [edit.integers([1], node, "one"), share], {"axis": 0})
        column = edit.before(node, "Unsqueeze", [value, edit.integers([1], node, "axis")])
        spread = edit.before(node, "Expand", [column, per_group])
        inputs.append(edit.before(node, "Reshape", [spread, edit.integers([-1], node, "flat")]))
    set_inputs(node, inputs)


def roi_align_half_pixel(node: ir.Node, _: Edit) -> None:
    """RoiAlign-16: the default moved; before there was no half-pixel shift."""
    set_attribute(node, "coordinate_transformation_mode", "output_half_pixel")


def grid_sample_names(node: ir.Node, _: Edit) -> None:
    """GridSample-20 renamed its modes."""
    mode = node.attributes.get_string("mode", "bilinear")
    set_attribute(node, "mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def scatter_elements(node: ir.Node, _: Edit) -> None:
    """Scatter-11 is called ScatterElements."""
    node.op_type = "ScatterElements"


def scan_without_batch(node: ir.Node, edit: Edit) -> None:
    """Scan-8 looped over a leading batch axis by itself; Scan-9 does not, so a second Scan loops over it.

    Scan8(states (B, ...), scanned (B, S, ...)) -> Scan over axis 0 of all { Scan9(states, scanned) }
    """
    if given(node, 0) is not None:
        raise NotExpressible("Scan-8 with sequence lengths")
    inputs = [required(node, i) for i in range(1, len(node.inputs))]
    scanned = node.attributes.get_int("num_scan_inputs", 1)
    directions = node.attributes.pop("directions", None)
    states = len(inputs) - scanned
    rows = [ir.Value(name=edit.fresh(f"{node.name}/row_{i}"), type=v.type) for i, v in enumerate(inputs)]
    results = [
        ir.Value(name=edit.fresh(f"{node.name}/result_{i}"), type=v.type) for i, v in enumerate(node.outputs)
    ]
    body = node.attributes.pop("body")
    attributes = [body, ir.AttrInt64("num_scan_inputs", scanned)]
    if directions is not None:
        attributes.append(ir.AttrInt64s("scan_input_directions", list(directions.as_ints())))
    inner = ir.Node("", "Scan", rows, attributes, outputs=results, name=edit.fresh(f"{node.name}/Scan"))
    batch = ir.Graph(rows, results, nodes=[inner], name=edit.fresh(f"{node.name}/batch"))
    set_inputs(node, inputs)
    node.attributes.clear()
    node.attributes["body"] = ir.AttrGraph("body", batch)
    set_attribute(node, "num_scan_inputs", states + scanned)


# --------------------------------------------------------------------------------------------- resizing


def upsample_to_input(node: ir.Node, edit: Edit) -> None:
    """Upsample-9: scales became an input."""
    scales = np.array(node.attributes.pop("scales").as_floats(), np.float32)
    set_inputs(node, [required(node, 0), edit.constant(scales, node, "scales")])


def upsample_to_resize(node: ir.Node, _: Edit) -> None:
    """Upsample-10 is deprecated; Resize-10 computes the same."""
    node.op_type = "Resize"


def resize_coordinates(node: ir.Node, edit: Edit) -> None:
    """Resize-11 names what Resize-10 did: asymmetric coordinates; nearest rounds down where an axis grows and
    up where it shrinks (ONNX Runtime, ResizeNearestMode::SIMPLE)."""
    x, scales = required(node, 0), required(node, 1)
    mode = node.attributes.get_string("mode", "nearest")
    fixed = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
    roi = edit.constant(np.zeros(0, np.float32), node, "roi")
    known = constant_array(scales)
    if mode != "nearest":
        become(node, "Resize", [x, roi, scales], fixed)
        return
    if known is not None and ((known >= 1).all() or (known <= 1).all()):
        rounding = "floor" if (known >= 1).all() else "ceil"
        become(node, "Resize", [x, roi, scales], {**fixed, "nearest_mode": rounding})
        return
    one = edit.constant(np.ones(1, np.float32), node, "one")
    larger = edit.before(node, "Max", [scales, one])
    smaller = edit.before(node, "Min", [scales, one])
    grown = edit.before(node, "Resize", [x, roi, larger], {**fixed, "nearest_mode": "floor"})
    become(node, "Resize", [grown, roi, smaller], {**fixed, "nearest_mode": "ceil"})


# Resize-13 dropped tf_half_pixel_for_nn, x = (i + 0.5) / s. As half_pixel, x - 0.5, its rounding is called:
_HALF_PIXEL_ROUNDING = {"floor": "round_prefer_ceil", "round_prefer_floor": "ceil"}


def resize_optional_inputs(node: ir.Node, _: Edit) -> None:
    """Resize-13: what is not used is left out, before it was an empty tensor."""
    inputs = [required(node, 0)]
    rest = [given(node, index) for index in (1, 2, 3)]
    set_inputs(node, inputs + [None if v is None or _is_empty(v) else v for v in rest])
    if node.attributes.get_string("coordinate_transformation_mode", "") != "tf_half_pixel_for_nn":
        return
    rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    if node.attributes.get_string("mode", "nearest") != "nearest" or rounding not in _HALF_PIXEL_ROUNDING:
        raise NotExpressible(f"tf_half_pixel_for_nn with {rounding}")
    set_attribute(node, "coordinate_transformation_mode", "half_pixel")
    set_attribute(node, "nearest_mode", _HALF_PIXEL_ROUNDING[rounding])


def _is_empty(value: ir.Value) -> bool:
    known = constant_array(value)
    return known is not None and known.size == 0


UPGRADES: dict[tuple[str, int], Rule] = {
    ("Upsample", 9): upsample_to_input,
    ("BatchNormalization", 9): batch_norm_spatial,
    ("Scan", 9): scan_without_batch,
    ("Dropout", 10): dropout_mask,
    ("Slice", 10): slice_to_inputs,
    ("TopK", 10): topk_to_input,
    ("Upsample", 10): upsample_to_resize,
    ("Clip", 11): clip_limits,
    ("Pad", 11): pad_to_inputs,
    ("Resize", 11): resize_coordinates,
    ("Scatter", 11): scatter_elements,
    ("Dropout", 12): dropout_to_input,
    ("Hardmax", 13): softmax_axis,
    ("LogSoftmax", 13): softmax_axis,
    ("ReduceSum", 13): axes_to_input,
    ("Resize", 13): resize_optional_inputs,
    ("Softmax", 13): softmax_axis,
    ("Split", 13): split_to_input,
    ("Squeeze", 13): axes_to_input,
    ("Unsqueeze", 13): axes_to_input,
    ("BatchNormalization", 14): batch_norm_training,
    ("RoiAlign", 16): roi_align_half_pixel,
    ("Split", 18): split_num_outputs,
    **{(op, 18): axes_to_input for op in REDUCTIONS},
    ("DFT", 20): dft_axis,
    ("GridSample", 20): grid_sample_names,
    ("GroupNormalization", 21): group_norm_per_channel,
}
"""(operation, opset that changed it) -> the rule that brings a node from the opset before to that one."""
