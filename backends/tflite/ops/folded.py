"""Strided INT8 convolutions of few channels, of which neighbouring pixels are made one with more channels.

XNNPACK reads channels in fours or eights, so of an image with one channel seven of eight numbers that it
multiplies are padding. As many pixels of a row as the stride is wide become one pixel with all their
channels: image (H, W, C) > (H, W / s, s C) and filters (O, h, w, C) > (O, h, w / s, s C) are the same bytes,
once the row and the filters are widened with zeros to whole groups.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from backends.tflite.emitter import Emitter
from backends.tflite.ops.window import Window
from deploy.adapter.optable import Unsupported

_TILES = (4, 8)
"""Channels that XNNPACK's INT8 kernels read at once: with Arm's dot products; on x86 and with Arm's i8mm."""
_WORTH = 0.8
"""Of the numbers multiplied before, with wide tiles; what is laid anew costs a little."""


def folded(out: Emitter, source: int, kernel: int, found: Window) -> tuple[int, int, Window]:
    """Image, filters and windows, folded where that is less to multiply; else as they are.

    The image is stored (N, H, W, C), the filters (O, h, w, C).
    """
    if not _pays(out.tensors[source].shape, found):
        return source, kernel, found
    try:
        laid = found.by_pads()
    except Unsupported:
        return source, kernel, found
    image, filters = out.tensors[source], out.tensors[kernel]
    batch, height, width, channels = image.shape
    (top, left), (bottom, _), group = laid.begins, laid.ends, laid.strides[1]
    groups = -(-laid.kernel[1] // group)
    right = (laid.made[1] - 1 + groups) * group - width - left
    if right < 0 or filters.data is None:  # a row of which some pixels are not read
        return source, kernel, found
    shape = (batch, height + top + bottom, (width + left + right) // group, group * channels)
    widths = ((0, 0), (top, bottom), (left * channels, right * channels))
    if any(map(any, widths)):  # as a matrix, for XNNPACK pads single pixels one after another
        source = _reshaped(out, source, (batch, height, width * channels))
        padded = (batch, shape[1], shape[2] * shape[3])
        given = out.numbers(np.array(widths, np.int32), f"{image.name}/pads")
        source = out.step("PAD", [source, given], padded, dtype="int8", params=image.params, version=2)
    source = _reshaped(out, source, shape)
    more = groups * group - laid.kernel[1]
    data = np.pad(filters.data, ((0, 0), (0, 0), (0, more), (0, 0)))
    data = data.reshape(data.shape[0], data.shape[1], groups, group * channels)
    kernel = out.add(replace(filters, name=f"{filters.name}/folded", shape=data.shape, data=data))
    windows = replace(
        laid,
        kernel=(laid.kernel[0], groups),
        strides=(laid.strides[0], 1),
        sizes=(shape[1], shape[2]),
        begins=(0, 0),
        ends=(0, 0),
        declared=(0, 0),
    )
    return source, kernel, windows


def _pays(shape: tuple[int, ...], found: Window) -> bool:
    """Whether fewer numbers are multiplied, whatever the processor's tile."""
    group, wide, channels = found.strides[1], found.kernel[1], shape[3]
    if group == 1 or max(found.dilations) > 1 or min(shape[1:]) < 0 or min(found.made) < 0:
        return False
    shares = [
        -(-wide // group) * -(-channels * group // tile) / (wide * -(-channels // tile)) for tile in _TILES
    ]
    return max(shares) <= 1 and min(shares) <= _WORTH


def _reshaped(out: Emitter, index: int, shape: tuple[int, ...]) -> int:
    sizes = out.numbers(np.array(shape, np.int32), f"{out.node}/shape")
    return out.step(
        "RESHAPE", [index, sizes], shape, dtype="int8", params=out.tensors[index].params, version=1
    )
