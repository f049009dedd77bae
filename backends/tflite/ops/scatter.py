"""Elements put at indices: SCATTER_ND adds what it gets to zeros, a mask tells where."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES
from backends.tflite.layout import plain
from backends.tflite.network import Options
from backends.tflite.ops.index import coordinates, element_coordinates, whole_shape
from backends.tflite.optable import ANY, OpTable
from deploy.adapter.optable import Unsupported

ops = OpTable()

_COMBINED = {
    "add": ("ADD", "AddOptions"),
    "mul": ("MUL", "MulOptions"),
    "max": ("MAXIMUM", "MaximumMinimumOptions"),
    "min": ("MINIMUM", "MaximumMinimumOptions"),
}
_NUMBERS = ("float32", "int32", "int64")


@ops.lower("ScatterND", types=ANY)
def scatter_nd(node: ir.Node, out: Emitter) -> None:
    shape = out.shape(node.inputs[0])
    where = coordinates(out, node.inputs[1], shape, "ScatterND")
    _scattered(node, out, where)


@ops.lower("ScatterElements", "Scatter", types=ANY)
def scatter_elements(node: ir.Node, out: Emitter) -> None:
    shape = out.shape(node.inputs[0])
    axis = node.attributes.get_int("axis", 0) % len(shape)
    where = element_coordinates(out, node.inputs[1], shape, axis)
    _scattered(node, out, where)


def _scattered(node: ir.Node, out: Emitter, where: int) -> None:
    """``where`` holds coordinates. Where they may name an element twice, updates can only be added."""
    value, result = node.inputs[0], node.outputs[0]
    reduction = node.attributes.get_string("reduction", "none")
    shape = out.shape(value)
    source = out.read(value, plain(len(shape)))
    updates = out.read(node.inputs[2], plain(len(out.shape(node.inputs[2]))))
    dtype = out.tensors[source].dtype
    target = whole_shape(out, value, source)
    options: Options = ("ScatterNdOptions", {})
    if reduction == "add" and dtype in _NUMBERS:
        added = out.step("SCATTER_ND", [where, updates, target], shape, options, dtype=dtype)
        out.emit("ADD", [source, added], result, ("AddOptions", {}))
        return
    if reduction != "none":
        if reduction not in _COMBINED or dtype not in _NUMBERS:
            raise Unsupported(f"reduction {reduction} of {dtype}: cast to float32 before it")
        found = out.tensors[where].data
        if found is None or len(np.unique(found.reshape(-1, found.shape[-1]), axis=0)) < found[..., 0].size:
            raise Unsupported(
                f"reduction {reduction} of an element that may be met twice: TFLite can only add"
            )
        code, table = _COMBINED[reduction]
        like = out.tensors[updates].shape
        old = out.step("GATHER_ND", [source, where], like, ("GatherNdOptions", {}), dtype=dtype)
        updates = out.step(code, [old, updates], like, (table, {}), dtype=dtype)
    placed = out.step("SCATTER_ND", [where, updates, target], shape, options, dtype=dtype)
    mask = _mask(out, where, updates, target, shape)
    out.emit("SELECT_V2", [mask, placed, source], result, ("SelectV2Options", {}))


def _mask(out: Emitter, where: int, updates: int, target: int, shape: tuple[int, ...]) -> int:
    """Where something is put."""
    found = out.tensors[where].data
    if found is not None and -1 not in shape:
        mask = np.zeros(shape, bool)
        mask[tuple(np.moveaxis(found, -1, 0))] = True
        return out.numbers(mask, f"{out.node}/mask")
    like = out.tensors[updates].shape
    if -1 in like:
        raise Unsupported(f"updates of a free size: {FIX_SIZES}")
    ones = out.numbers(np.ones(like, np.int32), f"{out.node}/ones")
    options: Options = ("ScatterNdOptions", {})
    counted = out.step("SCATTER_ND", [where, ones, target], shape, options, dtype="int32")
    zero = out.numbers(np.zeros((), np.int32), f"{out.node}/zero")
    return out.step("GREATER", [counted, zero], shape, ("GreaterOptions", {}), dtype="bool")
