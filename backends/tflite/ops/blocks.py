"""Channels that become blocks of pixels, and back: DEPTH_TO_SPACE, and what it cannot say by transposing.

TFLite reads a block's elements before the channels (ONNX's DCR). In the other order (CRD, PyTorch's
PixelShuffle) each pixel's channels are turned first, as a matrix: a transpose that XNNPACK takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES
from backends.tflite.layout import NHWC
from backends.tflite.network import NO_OPTIONS, Options
from backends.tflite.optable import OpTable
from backends.tflite.reading import quantize_of
from deploy.adapter.optable import Unsupported

ops = OpTable()


@ops.lower("DepthToSpace")
def depth_to_space(node: ir.Node, out: Emitter) -> None:
    value, result = node.inputs[0], node.outputs[0]
    size = node.attributes.get_int("blocksize", 0)
    params = out.moved(result, [value])
    source = out.read(value, NHWC, integer=params is not None)
    if node.attributes.get_string("mode", "DCR") == "CRD":
        source = elements_first(out, source, size * size)
    _blocks(out, "DEPTH_TO_SPACE", source, size, result)


@ops.lower("SpaceToDepth")
def space_to_depth(node: ir.Node, out: Emitter) -> None:
    value, result = node.inputs[0], node.outputs[0]
    params = out.moved(result, [value])
    source = out.read(value, NHWC, integer=params is not None)
    _blocks(out, "SPACE_TO_DEPTH", source, node.attributes.get_int("blocksize", 0), result)


def _blocks(out: Emitter, code: str, source: int, size: int, result: ir.Value) -> None:
    params = out.tensors[source].params
    if size == 1:
        shape = out.tensors[source].shape
        if shape.count(-1) > 1:
            raise Unsupported(f"more than one size of its result is free: {FIX_SIZES}")
        sizes = out.numbers(np.array(shape, np.int32), f"{out.node}/shape")
        out.emit("RESHAPE", [source, sizes], result, order=NHWC, params=params, version=1)
        return
    table = "DepthToSpaceOptions" if code == "DEPTH_TO_SPACE" else "SpaceToDepthOptions"
    out.emit(code, [source], result, (table, {"blockSize": size}), order=NHWC, params=params)


def elements_first(out: Emitter, index: int, count: int) -> int:
    """Channels stored (C, ``count``) are stored (``count``, C); nothing where one of them is 1."""
    tensor = out.tensors[index]
    *outer, channels = tensor.shape
    if channels < 0:
        raise Unsupported(f"free channels: {FIX_SIZES}")
    if count == 1 or channels == count:
        return index
    if outer.count(-1) > 1:
        raise Unsupported(f"more than one free size beside the channels that change their order: {FIX_SIZES}")
    pixels = -1 if -1 in outer else math.prod(outer)
    index = moved(out, "RESHAPE", index, (pixels, channels // count, count))
    index = moved(out, "TRANSPOSE", index, (pixels, count, channels // count), (0, 2, 1))
    return moved(out, "RESHAPE", index, tensor.shape)


def spread(out: Emitter, index: int, blocks: Sequence[int]) -> int:
    """Channels stored (block elements, C) over the spatial axes, each of which grows by its block."""
    tensor = out.tensors[index]
    batch, *sizes, channels = tensor.shape
    grown = [size if size < 0 else size * block for size, block in zip(sizes, blocks, strict=True)]
    deep = channels // math.prod(blocks)
    if len(blocks) == 2 and len(set(blocks)) == 1 and blocks[0] > 1:
        options: Options = ("DepthToSpaceOptions", {"blockSize": blocks[0]})
        version = 1 if tensor.params is None else 2
        return out.step(
            "DEPTH_TO_SPACE", [index], (batch, *grown, deep), options,
            dtype=tensor.dtype, order=tensor.order, params=tensor.params, version=version,
        )  # fmt: skip
    if [batch, *sizes].count(-1) > 1 and max(blocks) > 1:
        raise Unsupported(f"more than one free size of an image whose pixels are spread: {FIX_SIZES}")
    for place, block in enumerate(blocks):
        if block == 1:
            continue
        channels //= block
        before = [batch, *grown[:place], sizes[place]]
        after = sizes[place + 1 :]
        shape = [_product(before), _product(after), block, channels]
        if _product(after) != 1:
            index = moved(out, "RESHAPE", index, shape)
            index = moved(out, "TRANSPOSE", index, [shape[0], block, shape[1], channels], (0, 2, 1, 3))
        index = moved(out, "RESHAPE", index, [batch, *grown[: place + 1], *after, channels])
    out.tensors[index].order = tensor.order
    return index


def moved(
    out: Emitter, code: str, index: int, shape: Sequence[int], perm: Sequence[int] | None = None
) -> int:
    """A reshape or transpose on the way; type and parameters stay."""
    tensor = out.tensors[index]
    given = out.numbers(np.array(shape if perm is None else perm, np.int32), f"{out.node}/{code.lower()}")
    options = NO_OPTIONS if perm is None else ("TransposeOptions", {})
    version = 1 if tensor.params is None or perm is None else 2
    return out.step(
        code, [index, given], shape, options, dtype=tensor.dtype, params=tensor.params, version=version
    )


def carry(out: Emitter, index: int, result: ir.Value) -> None:
    """Let a tensor that was made on the way be the result's own."""
    params = out.tensors[index].params
    quantize = None if params is None else quantize_of(result)
    out.tensors[index].name = (quantize.outputs[0].name if quantize else result.name) or ""
    out.carried[result] = index


def _product(sizes: Sequence[int]) -> int:
    return -1 if -1 in sizes else math.prod(sizes)
