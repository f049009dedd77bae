"""Convolutions of one to three axes, forth and back. MIL lays them out as ONNX does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter, ends
from backends.coreml.optable import OpTable
from deploy.adapter.optable import Unsupported

ops = OpTable()


def window(node: ir.Node, rank: int, key: str, default: int) -> list[int]:
    """An attribute with a number for each spatial axis."""
    return list(node.attributes.get_ints(key, ()) or [default] * rank)


def paddings(node: ir.Node, sizes: Sequence[int | None], kernel: Sequence[int]) -> list[int]:
    """ONNX's pads, beginnings before ends, also where ``auto_pad`` says them.

    Raises Unsupported where they depend on a size that is free.
    """
    rank, how = len(kernel), node.attributes.get_string("auto_pad", "NOTSET")
    if how == "NOTSET":
        return window(node, 2 * rank, "pads", 0)
    if how == "VALID":
        return [0] * (2 * rank)
    strides, dilations = window(node, rank, "strides", 1), window(node, rank, "dilations", 1)
    begins, after = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        if size is None:
            raise Unsupported("auto_pad of a free size: fix the sizes of the model's inputs (--shape)")
        total = max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        small = total // 2
        begins.append(total - small if how == "SAME_LOWER" else small)
        after.append(small if how == "SAME_LOWER" else total - small)
    return begins + after


@ops.lower("Conv")
def conv(node: ir.Node, out: Emitter) -> None:
    """MIL's ``conv`` with its padding said."""
    x, weight, bias = node.inputs[0], node.inputs[1], out.operand(node, 2)
    kernel = out.fixed(weight)[2:]
    rank = len(kernel)
    if not 1 <= rank <= 3:
        raise Unsupported(f"over {rank} axes; Core ML has one to three")
    given: dict[str, object] = {} if bias is None else {"bias": out.numbers(bias, "bias").astype(np.float32)}
    out.emit(
        node,
        "conv",
        x=out.read(x),
        weight=out.read(weight),
        strides=np.array(window(node, rank, "strides", 1), np.int32),
        pad_type="custom",
        pad=np.array(ends(paddings(node, out.shape(x)[2:], kernel)), np.int32),
        dilations=np.array(window(node, rank, "dilations", 1), np.int32),
        groups=np.int32(node.attributes.get_int("group", 1)),
        **given,
    )


@ops.lower("ConvTranspose")
def conv_transpose(node: ir.Node, out: Emitter) -> None:
    """MIL's ``conv_transpose``; what ``output_padding`` adds is said by the shape of the result."""
    x, weight, bias = node.inputs[0], node.inputs[1], out.operand(node, 2)
    kernel = out.fixed(weight)[2:]
    rank = len(kernel)
    strides, dilations = window(node, rank, "strides", 1), window(node, rank, "dilations", 1)
    more = window(node, rank, "output_padding", 0)
    if not 1 <= rank <= 3:
        raise Unsupported(f"over {rank} axes; Core ML has one to three")
    sizes, result = out.fixed(x)[2:], out.fixed(node.outputs[0])[2:]
    full = [
        (size - 1) * stride + (k - 1) * dilation + 1
        for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    pads = window(node, 2 * rank, "pads", 0)
    how = node.attributes.get_string("auto_pad", "NOTSET")
    if how.startswith("SAME") or "output_shape" in node.attributes:
        lower = how == "SAME_LOWER"
        total = [max(0, f + m - r) for f, m, r in zip(full, more, result, strict=True)]
        small = [t // 2 for t in total]
        large = [t - s for t, s in zip(total, small, strict=True)]
        pads = large + small if lower else small + large
    given: dict[str, object] = {} if bias is None else {"bias": out.numbers(bias, "bias").astype(np.float32)}
    if any(r > f - b - e for r, f, b, e in zip(result, full, pads[:rank], pads[rank:], strict=True)):
        channels = out.fixed(node.outputs[0])
        given["output_shape"] = np.array(channels, np.int32)
    out.emit(
        node,
        "conv_transpose",
        x=out.read(x),
        weight=out.read(weight),
        strides=np.array(strides, np.int32),
        pad_type="custom",
        pad=np.array(ends(pads), np.int32),
        dilations=np.array(dilations, np.int32),
        groups=np.int32(node.attributes.get_int("group", 1)),
        **given,
    )
