"""What OpenVINO can run. It says itself what it cannot; the rules are for what it takes and gets wrong.

Found with ONNX's own node tests (tests/backends/test_openvino_conformance.py), OpenVINO 2026.4.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir

from backends.openvino.convert import to_openvino
from backends.openvino.runner import OpenVinoOptions, settings
from backends.openvino.sdk import core, reason
from deploy.errors import BackendError
from deploy.graph.blocks import reads
from deploy.graph.edit import constant, is_constant
from deploy.spec.artifact import Verdict

if TYPE_CHECKING:
    import openvino

Support = Literal["supported", "unsupported", "unknown"]


def verdicts(graph: ir.Model) -> list[Verdict]:
    """One for every node: the whole graph is tried first, then each node alone."""
    wrong = {node.name or "": misread(node) for node in graph.graph}
    said, misshapen = _tried(graph)
    if not said:
        return [
            _verdict(node, wrong[node.name or ""] or misshapen.get(node.name or "", ""))
            for node in graph.graph
        ]
    return [_alone(graph, node, wrong[node.name or ""]) for node in graph.graph]


def misread(node: ir.Node) -> str:
    """In what OpenVINO's reader departs from ONNX for this node; empty where it is not known to."""
    rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    return rule(node) if rule is not None else ""


def _resize(node: ir.Node) -> str:
    attributes = node.attributes
    if attributes.get_int("antialias", 0):
        return "OpenVINO ignores antialias"
    if attributes.get_int("exclude_outside", 0):
        return "OpenVINO ignores exclude_outside"
    if attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "OpenVINO ignores keep_aspect_ratio_policy"
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    aligned = attributes.get_string("coordinate_transformation_mode", "") == "align_corners"
    if aligned and scales is None and len(node.inputs) > 2 and node.inputs[2] is not None:
        return "OpenVINO rounds the size, which computed scales give, before it aligns the corners"
    if aligned and scales is not None:
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        for axis, scale in enumerate(scales.tolist()):
            size = shape[axis] if shape is not None else None
            grown = scale * size if isinstance(size, int) else scale
            if grown != round(grown):
                return "OpenVINO rounds the size before it aligns the corners"
    return ""


def _recurrent(node: ir.Node) -> str:
    if node.attributes.get_int("layout", 0):
        return "OpenVINO ignores layout=1 (batch first)"
    if node.op_type == "LSTM" and len(node.inputs) > 7 and node.inputs[7] is not None:
        return "OpenVINO ignores peepholes"
    return ""


def _pool(node: ir.Node) -> str:
    """With ceil_mode, ONNX leaves out a last window that lies in the padding altogether."""
    attributes = node.attributes
    source = node.inputs[0]
    if not attributes.get_int("ceil_mode", 0) or source is None or source.shape is None:
        return ""
    kernel = attributes.get_ints("kernel_shape", ())
    strides = attributes.get_ints("strides", ()) or [1] * len(kernel)
    dilations = attributes.get_ints("dilations", ()) or [1] * len(kernel)
    pads = attributes.get_ints("pads", ()) or [0] * (2 * len(kernel))
    for axis, (width, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        size = source.shape[axis + 2]
        if isinstance(size, int):
            padded = size + pads[axis] + pads[axis + len(kernel)]
            last = -(-(padded - (width - 1) * dilation - 1) // stride) * stride
            if last >= size + pads[axis]:
                return "OpenVINO counts a last window that lies in the padding"
    return ""


def _tile(node: ir.Node) -> str:
    """Of four and more axes: with repeats 2, 2, 2, 2 of 2 x 3 x 4 x 5 numbers most are whatever lay there."""
    source = node.inputs[0]
    many = source is None or source.shape is None or len(source.shape) >= 4
    if many and not is_constant(node.inputs[1]):
        return "with computed repeats OpenVINO leaves numbers of the result unwritten"
    return ""


def _roi_align(node: ir.Node) -> str:
    maximum = node.attributes.get_string("mode", "avg") == "max"
    return "OpenVINO takes the maximum after interpolating, ONNX before" if maximum else ""


_RULES: dict[str, Callable[[ir.Node], str]] = {
    "Resize": _resize,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "RNN": _recurrent,
    "RoiAlign": _roi_align,
    "Tile": _tile,
    "DFT": lambda _: "OpenVINO misreads its axis and its one-sided and inverse forms",
}


def _tried(graph: ir.Model) -> tuple[str, dict[str, str]]:
    """Why OpenVINO does not take a graph, and the nodes to whose results it gives another shape than ONNX."""
    try:
        model = to_openvino(graph)
    except BackendError as e:
        return e.message.partition(": ")[2], {}
    misshapen = _misshapen(model, graph)
    try:
        core().compile_model(model, "CPU", settings(OpenVinoOptions(), "CPU"))
    except Exception as e:  # noqa: BLE001 (whatever it is, it is OpenVINO's answer)
        return reason(e), misshapen
    return "", misshapen


def _misshapen(model: openvino.Model, graph: ir.Model) -> dict[str, str]:
    shapes = {
        name: out.get_partial_shape()
        for op in model.get_ops()
        for out in op.outputs()
        for name in out.get_names()
    }
    found = {}
    for node in graph.graph:
        for value in node.outputs:
            theirs = shapes.get(value.name or "")
            if theirs is None or value.shape is None or theirs.rank.is_dynamic:
                continue
            sizes = [size.get_length() if size.is_static else None for size in theirs]
            unlike = any(
                isinstance(ours, int) and size is not None and ours != size
                for ours, size in zip(value.shape, sizes, strict=False)
            )
            if len(sizes) != len(value.shape) or unlike:
                found[node.name or ""] = f"OpenVINO makes its result {theirs}, ONNX {value.shape}"
    return found


def _alone(model: ir.Model, node: ir.Node, wrong: str) -> Verdict:
    """What OpenVINO says of one node by itself, fed with all that it reads, in bodies too."""
    if wrong:
        return _verdict(node, wrong)
    inputs = [value for value in reads(node) if not is_constant(value)]
    if any(value.type is None for value in inputs):
        return Verdict(
            node=node.name or "",
            op=node.op_type,
            support="unknown",
            reason="the type of its input is unknown",
        )
    outputs = [value for value in node.outputs if value.name]
    part = ir.convenience.extract(model.graph, inputs, outputs or node.outputs)
    said, misshapen = _tried(ir.Model(part, ir_version=model.ir_version))
    return _verdict(node, said or misshapen.get(node.name or "", ""))


def _verdict(node: ir.Node, wrong: str) -> Verdict:
    support: Support = "unsupported" if wrong else "supported"
    return Verdict(node=node.name or "", op=node.op_type, support=support, reason=wrong)
