"""Convolutions: patches as columns of a matrix, multiplied at once; a depthwise one place by place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Refused, sized
from backends.coreml.interpret.ops.activation import along_channels
from backends.coreml.interpret.ops.windows import padded, padding, per_axis, results, taps

_MOST_COLUMNS = 16 * 2**20
"""Bytes of patches that are laid out at a time."""


def conv(call: Call) -> np.ndarray:
    x, weight, bias = call.array("x"), call.array("weight"), call.maybe("bias")
    rank, groups = x.ndim - 2, call.integer("groups", 1)
    if rank < 1 or weight.ndim != x.ndim or groups < 1:
        raise Refused(f"weights {list(weight.shape)} for {list(x.shape)}")
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise Refused(f"weights {list(weight.shape)} in {groups} groups for {x.shape[1]} channels")
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    pads = padding(call, x.shape[2:], weight.shape[2:], strides, dilations)
    x = padded(x, pads)
    count = results(x.shape[2:], weight.shape[2:], strides, dilations)
    if math.prod(weight.shape[2:]) == 1 and groups == 1:
        step = tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(count, strides, strict=True))
        flat = x[(slice(None), slice(None), *step)].reshape(*x.shape[:2], -1)
        y = np.matmul(weight.reshape(weight.shape[:2]), flat).reshape(x.shape[0], weight.shape[0], *count)
    elif weight.shape[1] == 1 and groups > 1:
        y = _depthwise(x, weight, count, strides, dilations)
    else:
        y = _by_columns(x, weight, count, strides, dilations, groups)
    if bias is not None:
        y += along_channels(bias, y)
    return y


def _depthwise(
    x: np.ndarray, weight: np.ndarray, count: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> np.ndarray:
    """Every channel with kernels of its own.

    Without strides a plane is taken as one long row: a place of the kernel is then one shift of it, and what
    reaches over the edges of the plane lands in columns that are cut off.
    """
    n, channels, *sizes = x.shape
    each = weight.shape[0] // channels
    kernels = weight.reshape(channels, each, -1, 1)
    if all(stride == 1 for stride in strides):
        widths = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        reach = sum((c - 1) * w for c, w in zip(count, widths, strict=True)) + 1
        offsets = (
            sum(p * d * w for p, d, w in zip(place, dilations, widths, strict=True))
            for place in np.ndindex(*weight.shape[2:])
        )
        rows = x.reshape(n, channels, 1, -1)
        y = np.empty(sized((n, channels, each, widths[0] * count[0])), x.dtype)
        _accumulate(y[..., :reach], kernels, (rows[..., at : at + reach] for at in offsets))
        y = y.reshape(n, channels * each, count[0], *sizes[1:])
        return y[(slice(None), slice(None), *(slice(size) for size in count))]
    y = np.empty(sized((n, channels, each, *count)), x.dtype)
    kernels = kernels.reshape(channels, each, -1, *(1,) * len(count))
    windows = taps(weight.shape[2:], count, strides, dilations)
    _accumulate(y, kernels, (x[(slice(None), slice(None), None, *window)] for window in windows))
    return y.reshape(n, channels * each, *count)


def _accumulate(y: np.ndarray, kernels: np.ndarray, seen: Iterable[np.ndarray]) -> None:
    """Sum up into ``y`` what is ``seen`` at each place of the kernel, times its weight there."""
    part = np.empty_like(y)
    for index, values in enumerate(seen):
        np.multiply(values, kernels[:, :, index], out=part if index else y)
        if index:
            y += part


def _by_columns(
    x: np.ndarray,
    weight: np.ndarray,
    count: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> np.ndarray:
    """As a product of matrices, for as many samples, or rows of one, as `_MOST_COLUMNS` take."""
    n, channels = x.shape[:2]
    kernel, made = weight.shape[2:], weight.shape[0]
    places = math.prod(kernel)
    matrix = weight.reshape(groups, made // groups, -1)
    y = np.empty(sized((n, made, *count)), np.result_type(x, weight))
    row = channels * places * math.prod(count[1:]) * x.itemsize
    rows = max(1, min(count[0], _MOST_COLUMNS // max(row, 1)))
    samples = max(1, _MOST_COLUMNS // max(row * count[0], 1)) if rows == count[0] else 1
    for first in range(0, n, samples):
        some = x[first : first + samples]
        for top in range(0, count[0], rows):
            part = [min(rows, count[0] - top), *count[1:]]
            below = some[:, :, top * strides[0] :]
            columns = np.empty(sized((len(some), channels, places, *part)), x.dtype)
            for index, window in enumerate(taps(kernel, part, strides, dilations)):
                columns[:, :, index] = below[(slice(None), slice(None), *window)]
            flat = columns.reshape(len(some), groups, channels // groups * places, -1)
            done = np.matmul(matrix, flat).reshape(len(some), made, *part)
            y[first : first + samples, :, top : top + rows] = done
    return y


def conv_transpose(call: Call) -> np.ndarray:
    x, weight, bias = call.array("x"), call.array("weight"), call.maybe("bias")
    rank, groups = x.ndim - 2, call.integer("groups", 1)
    if (
        rank < 1
        or weight.ndim != x.ndim
        or groups < 1
        or x.shape[1] != weight.shape[0]
        or x.shape[1] % groups
    ):
        raise Refused(f"weights {list(weight.shape)} in {groups} groups for {list(x.shape)}")
    strides, dilations = per_axis(call, "strides", rank), per_axis(call, "dilations", rank)
    n, channels, sizes, kernel = x.shape[0], x.shape[1], x.shape[2:], weight.shape[2:]
    made, places = weight.shape[1] * groups, math.prod(kernel)
    full = [
        (i - 1) * s + (k - 1) * d + 1 for i, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)
    ]
    begin, wanted = _cut(call, full, sizes, strides)
    matrix = weight.reshape(groups, channels // groups, -1).transpose(0, 2, 1)
    columns = np.matmul(matrix, x.reshape(n, groups, channels // groups, -1))
    columns = columns.reshape(n, made, places, *sizes)
    whole = sized((n, made, *(max(f, b + w) for f, b, w in zip(full, begin, wanted, strict=True))))
    y = np.zeros(whole, columns.dtype)
    for index, window in enumerate(taps(kernel, sizes, strides, dilations)):
        y[(slice(None), slice(None), *window)] += columns[:, :, index]
    y = y[(slice(None), slice(None), *(slice(b, b + w) for b, w in zip(begin, wanted, strict=True)))]
    return y if bias is None else y + along_channels(bias, y)


def _cut(
    call: Call, full: Sequence[int], sizes: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Where the result begins in what all kernels reach, and its sizes.

    As the gradient of the convolution whose result has ``sizes``: of several sizes that ``same`` brings to
    these, ``output_shape`` says which, and what is padded depends on it.
    """
    kind = call.text("pad_type", "valid")
    pads = call.integers("pad", [0] * 2 * len(full))
    if len(pads) != 2 * len(full) or min(pads) < 0:
        raise Refused(f"pad {pads} for {len(full)} axes")
    given = call.integers("output_shape")[2:] if call.maybe("output_shape") is not None else None
    if given is not None and len(given) != len(full):
        raise Refused(f"output_shape of {len(given) + 2} sizes")
    if kind == "custom":
        begin = pads[::2]
        wanted = given or [f - b - e for f, b, e in zip(full, begin, pads[1::2], strict=True)]
    elif kind in ("same", "same_lower"):
        wanted = given or [i * s for i, s in zip(sizes, strides, strict=True)]
        spare = [max(f - w, 0) for f, w in zip(full, wanted, strict=True)]
        begin = [s // 2 if kind == "same" else s - s // 2 for s in spare]
    elif kind == "valid":
        begin, wanted = [0] * len(full), given or list(full)
    else:
        raise Refused(f"pad_type {kind}")
    if min(wanted) < 1:
        raise Refused(f"a result of {wanted}")
    return begin, wanted


KERNELS: Mapping[str, Kernel] = {"conv": conv, "conv_transpose": conv_transpose}
