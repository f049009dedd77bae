"""Rounding to integers and back while running, and the forms in which weights are stored.

The forms (``constexpr_*``) have one name and other parameters since iOS 18; both are told by what is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Ready, Refused, axis_of, sized

_BOUNDS = {
    name: (np.float32(np.iinfo(name).min), np.float32(np.iinfo(name).max)) for name in ("int8", "uint8")
}
_PACKED = (1, 2, 4, 6, 8)
"""Bits of the indices that lie in plain bytes, until iOS 17."""


def _along(call: Call, name: str, x: np.ndarray) -> float | np.ndarray:
    """A scale or zero point beside ``x``: one, or one for each place of ``axis``."""
    vector = call.array(name)
    if vector.size == 1:
        return call.number(name)
    axis = axis_of(call.integer("axis"), x.ndim)
    if vector.ndim != 1 or vector.size != x.shape[axis]:
        raise Refused(f"{vector.size} scales or zero points for {x.shape[axis]}")
    return vector.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def _codes(
    x: np.ndarray, scale: float | np.ndarray, zero: float | np.ndarray | None, name: str
) -> np.ndarray:
    """clip(round(x / scale) + zero), ties to even, divided in float32 also where x is float16."""
    codes = np.asarray(x / scale)
    np.rint(codes, out=codes)
    if zero is not None:
        codes += zero
    low, high = _BOUNDS[name]
    np.maximum(codes, low, out=codes)
    np.minimum(codes, high, out=codes)
    return codes.astype(name)


def _meant(x: np.ndarray, scale: float | np.ndarray, zero: float | np.ndarray | None) -> np.ndarray:
    """(codes - zero) * scale."""
    found = x.astype(np.float32)
    if zero is not None:
        found -= zero
    found *= scale
    return found


def _output_dtype(call: Call) -> str:
    name = call.text("output_dtype")
    if name not in _BOUNDS:
        raise Refused(f"output_dtype {name}")
    return name


def quantize(call: Call) -> np.ndarray:
    x = call.array("input")
    zero = _along(call, "zero_point", x) if call.has("zero_point") else None
    return _codes(x, _along(call, "scale", x), zero, _output_dtype(call))


def dequantize(call: Call) -> np.ndarray:
    x = call.array("input")
    zero = _along(call, "zero_point", x) if call.has("zero_point") else None
    return _meant(x, _along(call, "scale", x), zero)


def _ready(call: Call) -> tuple[tuple[str, ...], Callable[..., np.ndarray]]:
    """With one scale for all, which is a number then."""
    scale, name = call.number("scale"), _output_dtype(call) if call.type == "quantize" else ""
    zero = call.number("zero_point") if call.has("zero_point") else None
    if name:
        return ("input",), lambda x: _codes(x, scale, zero, name)
    return ("input",), lambda x: _meant(x, scale, zero)


def affine_dequantize(call: Call) -> np.ndarray:
    """scale * (codes - zero point) along an axis."""
    x = call.array("quantized_data")
    codes = x.astype(np.float32)
    codes -= _along(call, "zero_point", x)
    codes *= _along(call, "scale", x)
    return codes


def spread(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A number of each block for each place in it."""
    if blocks.ndim != len(shape) or any(b < 1 or n % b for b, n in zip(blocks.shape, shape, strict=True)):
        raise Refused(f"blocks {list(blocks.shape)} of {list(shape)}")
    for axis, size in enumerate(shape):
        if blocks.shape[axis] not in (1, size):
            blocks = np.repeat(blocks, size // blocks.shape[axis], axis)
    return blocks


def _shift_scale(data: np.ndarray, call: Call) -> np.ndarray:
    """scale * (data - offset), both by block."""
    codes = data.astype(np.float32)
    offset = call.maybe("offset")
    if offset is not None:
        codes = codes - spread(offset, data.shape).astype(np.float32)
    return codes * spread(call.array("scale"), data.shape)


def blockwise_shift_scale(call: Call) -> np.ndarray:
    return _shift_scale(call.array("data"), call)


def looked_up(indices: np.ndarray, table: np.ndarray, axis: int | None) -> np.ndarray:
    """Entries of a table for each block, of vectors along ``axis`` where they are longer than 1."""
    if table.ndim != indices.ndim + 2:
        raise Refused(f"a table {list(table.shape)} for indices {list(indices.shape)}")
    count, length = table.shape[-2:]
    if indices.dtype.kind != "u":
        raise Refused(f"indices of {indices.dtype}")
    if indices.size and int(indices.max()) >= count:
        raise Refused(f"index {int(indices.max())} of a table of {count}")
    tables = math.prod(table.shape[:-2])
    if length > 1:
        axis = axis_of(_required(axis), indices.ndim)
    sized([*indices.shape, length])
    if tables == 1:
        found = table.reshape(count, length)[indices]
    else:
        number = spread(np.arange(tables, dtype=np.int32).reshape(table.shape[:-2]), indices.shape)
        found = table.reshape(tables, count, length)[number, indices]
    if length == 1 or axis is None:
        return found.reshape(indices.shape)
    shape = [n * length if i == axis else n for i, n in enumerate(indices.shape)]
    return np.moveaxis(found, -1, axis + 1).reshape(shape)


def _required(axis: int | None) -> int:
    if axis is None:
        raise Refused("'vector_axis' is missing")
    return axis


def _vector_axis(call: Call) -> int | None:
    return call.integer("vector_axis") if call.has("vector_axis") else None


def lut_to_dense(call: Call) -> np.ndarray:
    indices, table = call.array("indices"), call.array("lut")
    if not call.has("shape"):
        return looked_up(indices, table, _vector_axis(call))
    return packed_lut(indices, table, call.integers("shape"))


def packed_lut(indices: np.ndarray, table: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Entries of a table for indices of as few bits as it needs, that lie one behind the other."""
    bits = max(table.size - 1, 1).bit_length()
    if table.ndim != 1 or table.size != 1 << bits or bits not in _PACKED:
        raise Refused(f"a table of {table.size}; there are those of 2, 4, 16, 64 and 256")
    return table[unpacked(indices, sized(shape), bits)]


def unpacked(packed: np.ndarray, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """Numbers of a few bits each, that lie in bytes beginning at the lowest."""
    count = math.prod(shape)
    if packed.ndim != 1 or packed.dtype != np.uint8 or packed.size != math.ceil(count * bits / 8):
        raise Refused(f"{packed.size} bytes for {count} numbers of {bits} bits")
    rows = np.unpackbits(packed, bitorder="little", count=count * bits).reshape(count, bits)
    return np.packbits(rows, axis=1, bitorder="little").reshape(shape)


def placed(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``values`` where the mask is set, else zeros."""
    kept = mask != 0
    if values.ndim != 1 or values.size != int(kept.sum()):
        raise Refused(f"{values.size} values for {int(kept.sum())} places")
    found = np.zeros(mask.shape, values.dtype)
    found[kept] = values
    return found


def sparse_to_dense(call: Call) -> np.ndarray:
    values, mask = call.array("nonzero_data"), call.array("mask")
    return placed(values, unpacked(mask, sized(call.integers("shape")), 1) if call.has("shape") else mask)


def lut_to_sparse(call: Call) -> tuple[np.ndarray, ...]:
    mask, table = call.array("indices_mask"), call.array("lut")
    axis = _vector_axis(call)
    dense = looked_up(placed(call.array("indices_nonzero_data"), mask), table, axis)
    if table.shape[-1] > 1:
        mask = np.repeat(mask, table.shape[-1], axis=axis_of(_required(axis), mask.ndim))
    return mask, dense[mask != 0]


def sparse_blockwise_shift_scale(call: Call) -> tuple[np.ndarray, ...]:
    mask = call.array("data_mask")
    dense = _shift_scale(placed(call.array("nonzero_data"), mask), call)
    return mask, dense[mask != 0]


def constexpr_cast(call: Call) -> np.ndarray:
    if call.text("output_dtype") not in ("fp32", "fp16"):
        raise Refused(f"a cast to {call.text('output_dtype')}")
    return call.array("source_val").astype(np.float32)


KERNELS: Mapping[str, Kernel] = {
    "quantize": quantize, "dequantize": dequantize,
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale, "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_sparse_to_dense": sparse_to_dense, "constexpr_lut_to_sparse": lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": sparse_blockwise_shift_scale, "constexpr_cast": constexpr_cast,
}  # fmt: skip
READY: Mapping[str, Ready] = {"quantize": _ready, "dequantize": _ready}
