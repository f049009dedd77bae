"""The forms in which weights lie in a package, smaller than the floats that they stand for.

    palette   a codebook and indices; one codebook from iOS 16 on, one for each group of channels from iOS 18
    sparse    a bit for each number, and those that are not 0; of floats from iOS 16, of integers from iOS 18
    affine    integers with a scale for each channel (iOS 16) or for each block (iOS 18); from iOS 18 on
              without zeros, or as indices of a palette of integers, where that is smaller

Each is an operation of MIL called ``constexpr_``..., which a device expands when it loads the package or
while it computes. What is left out is 0: every form stands for the same numbers, of which only the sign of
a zero may be lost.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter
from backends.coreml.ops.matmul import by_outputs
from backends.coreml.sdk import mil
from deploy.adapter.optable import Unsupported
from deploy.graph.edit import constant
from deploy.graph.palette import Palette, PaletteForms, palette_of, without_zeros
from deploy.graph.weights import large_weights
from deploy.spec.plan import PalettePlan, Plan, QuantParams

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Var

_OLD_BITS, _BITS = (1, 2, 4, 6, 8), (1, 2, 3, 4, 6, 8)
"""Widths of an index until iOS 17 and since iOS 18."""
_BLOB = 64
"""A blob has so many bytes in front of it, and fills as many."""
_WORTH = 0.9
"""Zeros are left out where that leaves this part of the bytes at most: they have to be put back again."""
_WORTH_SHARING = 0.75
"""Integers are looked up where that leaves this part of the bytes at most."""
_MOST_SHARED, _LOOKED_AT = 64, 1 << 14
"""Of more values nothing is won; the first numbers tell most weights that have more."""
BYTES = {"int8": np.int8, "uint8": np.uint8}
"""Integers of one byte, as NumPy has them: all that activations can be."""


def palette_forms(level: int, half: bool) -> PaletteForms:
    """The palettes that a package for that release stores."""
    if level >= 18:
        return PaletteForms(_BITS, "equal", half, "palettes", integers=True)
    return PaletteForms(_OLD_BITS, "none", half, "floats")


def store_floats(graph: ir.Model, plan: Plan, out: Emitter) -> list[str]:
    """Large float weights in the smallest form that says them exactly; those that have none stay as they are.

    Says of palettes of the plan that this release cannot store why not.
    """
    wrong = []
    for name in large_weights(graph):
        value = graph.graph.initializers[name]
        array = constant(value)
        assert array is not None
        turned = array.ndim == 2 and by_outputs(value)
        try:
            made = _floats(array, plan.palettes.get(name), turned, name, out)
        except Unsupported as e:
            wrong.append(f"weight '{name}': {e}")
            continue
        if made is not None:
            out.give(value, made)
            out.weights[name] = made
            if turned:
                out.stored_by_outputs.add(value)
    return wrong


def _floats(array: np.ndarray, plan: PalettePlan | None, turned: bool, name: str, out: Emitter) -> Var | None:
    if out.half:
        with np.errstate(over="ignore"):
            array = array.astype(np.float16)
    axis = None if plan is None else plan.axis
    if turned:
        array, axis = np.ascontiguousarray(array.T), None if axis is None else 1 - axis
    if plan is not None:
        palette = palette_of(array, axis, plan.size)
        if palette is None or palette.codebook.shape[1] > plan.values:
            raise Unsupported(f"it has more values than the {plan.values} of its palette in the plan")
        return _palette(palette, plan, name, out)
    return _sparse(array, name, out) if np.isfinite(array).all() else None


def _palette(palette: Palette, plan: PalettePlan, name: str, out: Emitter) -> Var:
    """Codebooks are filled up by their last value."""
    if palette.axis is not None:
        out.need(18, f"a palette for each {palette.size} channels")
        if (channels := palette.indices.shape[palette.axis]) % palette.size:
            raise Unsupported(f"a palette for each {palette.size} of {channels} channels, the last fewer")
    if plan.masked:
        out.need(18, "a palette without zeros")
    numbers = palette.values()
    kept = numbers.view(f"u{numbers.itemsize}") != 0  # -0 is a number
    told = without_zeros(palette) if plan.masked else palette
    allowed = palette_forms(out.level, out.half).bits
    if plan.bits not in allowed or told.codebook.shape[1] > 1 << plan.bits:
        if plan.bits in _BITS:
            out.need(18, f"a palette of {plan.bits} bits")
        raise Unsupported(f"a palette of {plan.bits} bits; Core ML has {', '.join(map(str, allowed))}")
    groups, values = told.codebook.shape
    filled = np.repeat(told.codebook[:, -1:], (1 << plan.bits) - values, axis=1)
    book = np.concatenate([told.codebook, filled], axis=1).astype(np.float32)
    out.forms["as palettes without zeros" if plan.masked else "as palettes"] += 1
    if out.level < 18:
        return out.op(
            "constexpr_lut_to_dense",
            name,
            indices=_packed(told.indices, plan.bits),
            lut=book.reshape(-1),
            shape=np.array(told.indices.shape, np.uint32),
        )
    along = [groups if at == palette.axis else 1 for at in range(told.indices.ndim)]
    table = book.reshape(*along, 1 << plan.bits, 1)
    if not plan.masked:
        indices = _narrow(told.indices, f"uint{plan.bits}")
        return out.op("constexpr_lut_to_dense", name, indices=indices, lut=table)
    mask, entries = out.op(
        "constexpr_lut_to_sparse",
        f"{name}_sparse",
        indices_mask=_narrow(kept, "uint1"),
        indices_nonzero_data=_narrow(told.indices[kept], f"uint{plan.bits}"),
        lut=table,
    )
    return out.op("constexpr_sparse_to_dense", name, nonzero_data=entries, mask=mask)


def _sparse(array: np.ndarray, name: str, out: Emitter) -> Var | None:
    """Floats without their zeros, where that is smaller."""
    kept = array != 0
    if not _saves(array.size, int(kept.sum()), 8 * array.itemsize):
        return None
    values = array[kept].astype(np.float32)
    out.forms["without zeros"] += 1
    if out.level < 18:
        shape = np.array(array.shape, np.uint32)
        mask = _packed(kept, 1)
        return out.op("constexpr_sparse_to_dense", name, nonzero_data=values, mask=mask, shape=shape)
    return out.op("constexpr_sparse_to_dense", name, nonzero_data=values, mask=_narrow(kept, "uint1"))


def integers(array: np.ndarray, params: QuantParams, result: ir.Value, out: Emitter) -> None:
    """Integers at rest; single numbers and biases of int32 are stored as the floats that they stand for."""
    if params.type == "int32" or array.ndim == 0:
        return  # whoever reads it takes the floats
    scale, zero = _beside(array.shape, params)
    if array.ndim == 2 and by_outputs(result):
        array, scale, zero = array.T, scale.T, zero.T
        out.stored_by_outputs.add(result)
    name, small = result.name or "", params.type.endswith("int4")
    if not small and params.group is None and out.level < 18:
        axis = max(range(array.ndim), key=lambda at: scale.shape[at])
        single = scale.size == 1
        made = out.op(
            "constexpr_affine_dequantize",
            name,
            quantized_data=np.ascontiguousarray(array.astype(BYTES[params.type])),
            scale=scale.reshape(()) if single else scale.reshape(-1),
            zero_point=(zero.reshape(()) if single else zero.reshape(-1)).astype(BYTES[params.type]),
            axis=np.int32(axis),
        )
    else:
        out.need(18, "weights of 4 bits" if small else "weights with a scale for each block")
        made = _in_blocks(array, scale, zero, params, name, out)
    out.give(result, made)
    out.planned.append((name, made, False))


def _beside(shape: tuple[int, ...], params: QuantParams) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points with as many axes as the tensor, 1 where they do not vary."""
    along = list((1,) * len(shape))
    if params.axis is not None and params.group is None:
        along[params.axis % len(shape)] = -1
    elif params.group is not None:
        along = list(params.scale_shape(shape))
    return (
        np.array(params.scale, np.float32).reshape(along),
        np.array(params.zero_point, np.int64).reshape(along),
    )


def _in_blocks(
    array: np.ndarray, scale: np.ndarray, zero: np.ndarray, params: QuantParams, name: str, out: Emitter
) -> Var:
    if any(size % count for size, count in zip(array.shape, scale.shape, strict=True)):
        raise Unsupported(f"blocks of {params.group} that do not go into its sizes {list(array.shape)}")
    codes = np.ascontiguousarray(array)
    given = {"scale": scale}
    if zero.any():
        given["offset"] = _narrow(zero, params.type)
    kept = codes != _spread(zero, codes.shape)
    bits = 4 if params.type.endswith("int4") else 8
    palette = _shared_codes(codes, scale) if bits == 8 else None
    if palette is not None and _book_bytes(palette) <= min(
        _WORTH_SHARING * _bytes(codes.size, bits), _masked_bytes(codes.size, int(kept.sum()), bits)
    ):
        return _looked_up(palette, given, params.type, name, out)
    if not _saves(codes.size, int(kept.sum()), bits):
        return out.op("constexpr_blockwise_shift_scale", name, data=_narrow(codes, params.type), **given)
    out.forms["without zeros"] += 1
    mask, values = out.op(
        "constexpr_sparse_blockwise_shift_scale",
        f"{name}_sparse",
        data_mask=_narrow(kept, "uint1"),
        nonzero_data=_narrow(codes[kept], params.type),
        **given,
    )
    return out.op("constexpr_sparse_to_dense", name, nonzero_data=values, mask=mask)


def _shared_codes(codes: np.ndarray, scale: np.ndarray) -> Palette | None:
    """A palette of integers for each scale; None where scales vary along several axes: a codebook cannot."""
    if sum(size > 1 for size in scale.shape) > 1:
        return None
    axis = max(range(codes.ndim), key=lambda at: scale.shape[at])
    if scale.size == 1:
        return palette_of(codes) if len(np.unique(codes.reshape(-1)[:_LOOKED_AT])) <= _MOST_SHARED else None
    few = (len(np.unique(np.take(codes, at, axis))) <= _MOST_SHARED for at in range(codes.shape[axis]))
    return palette_of(codes, axis, 1) if all(few) else None


def _book_bytes(palette: Palette) -> int:
    """Of a palette of integers as it is stored."""
    bits = _width(palette)
    return _bytes(len(palette.codebook) << bits, 8) + _bytes(palette.indices.size, bits)


def _width(palette: Palette) -> int:
    """The least bits of an index."""
    return next(bits for bits in _BITS if palette.codebook.shape[1] <= 1 << bits)  # of a byte at most


def _looked_up(palette: Palette, given: dict[str, np.ndarray], kind: str, name: str, out: Emitter) -> Var:
    """Integers that are looked up. Their codebook is scaled, not what comes of it: until iOS 26 the other
    order is one that coremltools turns round."""
    out.forms["as palettes of INT8"] += 1
    bits, (groups, values) = _width(palette), palette.codebook.shape
    along = [groups if at == palette.axis else 1 for at in range(palette.indices.ndim)]
    book = np.pad(palette.codebook, ((0, 0), (0, (1 << bits) - values)), "edge")
    table = _narrow(book.reshape(*along, 1 << bits, 1), kind)
    beside = {which: array[..., None, None] for which, array in given.items()}
    scaled = out.op("constexpr_blockwise_shift_scale", f"{name}_book", data=table, **beside)
    indices = _narrow(palette.indices, f"uint{bits}")
    return out.op("constexpr_lut_to_dense", name, indices=indices, lut=scaled)


def _spread(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A number of each block for each place in it."""
    for axis, size in enumerate(shape):
        blocks = np.repeat(blocks, size // blocks.shape[axis], axis)
    return blocks


def _saves(numbers: int, kept: int, bits: int) -> bool:
    """Whether a mask and what is not 0 take less than all numbers of so many bits."""
    return kept > 0 and _masked_bytes(numbers, kept, bits) <= _WORTH * _bytes(numbers, bits)


def _masked_bytes(numbers: int, kept: int, bits: int) -> int:
    return _bytes(numbers, 1) + _bytes(kept, bits)


def _bytes(numbers: int, bits: int) -> int:
    """Of a blob, with what describes it.

    >>> _bytes(1000, 4)
    576
    """
    return _BLOB + math.ceil(numbers * bits / 8 / _BLOB) * _BLOB


def _narrow(array: np.ndarray, kind: str) -> np.ndarray:
    """In coremltools' type for integers of that kind, several of which share a byte in the file."""
    types = mil().types
    plain = array.astype(np.int8 if kind.startswith("int") else np.uint8)
    return np.ascontiguousarray(plain).astype(types.nptype_from_builtin(types.string_to_builtin(kind)))


def _packed(array: np.ndarray, bits: int) -> np.ndarray:
    """Small numbers in row order, their lowest bit first, one behind the other through the bytes.

    >>> _packed(np.array([0, 3, 2, 1, 3], np.uint8), 2).tolist()
    [108, 3]
    """
    rows = np.unpackbits(array.astype(np.uint8).reshape(-1, 1), axis=1, bitorder="little", count=bits)
    return np.packbits(rows.reshape(-1), bitorder="little")
