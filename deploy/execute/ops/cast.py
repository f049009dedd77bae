"""Types: Cast, CastLike, BitCast, Identity; and what ONNX's element types are in torch.

Integers of four and two bits are int8 and uint8 that keep to their range. What torch cannot hold at all, text
and floats of four bits, stays a numpy array: it can be cast from and to, and handed on, little else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

TORCH_TYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ir.DataType.FLOAT8E8M0: torch.float8_e8m0fnu,
}

_NARROW = {
    ir.DataType.INT4: (torch.int8, 16, -8),
    ir.DataType.UINT4: (torch.uint8, 16, 0),
    ir.DataType.INT2: (torch.int8, 4, -2),
    ir.DataType.UINT2: (torch.uint8, 4, 0),
}
"""Integers of less than a byte: what holds them, how many there are, the lowest."""

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_ROUNDS_AWAY = {
    torch.float8_e4m3fn: 464.0,
    torch.float8_e4m3fnuz: 248.0,
    torch.float8_e5m2: 61440.0,
    torch.float8_e5m2fnuz: 61440.0,
}
"""Halfway between the largest number and what would follow it: from there on rounding leaves the range."""


def torch_type(node: Node, name: str, default: ir.DataType | None = None) -> torch.dtype | None:
    """The type that the attribute ``name`` asks for; raises UnsupportedError where torch has none."""
    number = node.integer(name)
    kind = ir.DataType(number) if number else default
    if kind is None:
        return None
    if kind not in TORCH_TYPES:
        raise node.unsupported(f"torch has no type {kind.name}")
    return TORCH_TYPES[kind]


def _to_narrow(x: Tensor, kind: ir.DataType) -> Tensor:
    dtype, count, lowest = _NARROW[kind]
    return (torch.remainder(to_type(x, torch.int64) - lowest, count) + lowest).to(dtype)


def to_type(x: Tensor, dtype: torch.dtype, *, saturate: bool = True, round_mode: str = "up") -> Tensor:
    """``x`` as ONNX's Cast converts it: integers wrap, float8 saturates unless told otherwise."""
    if dtype in _ROUNDS_AWAY:
        return _to_float8(x, dtype, saturate=saturate)
    if dtype == torch.float8_e8m0fnu:
        return _to_power(x, saturate=saturate, round_mode=round_mode)
    if x.is_floating_point() and not dtype.is_floating_point and not dtype.is_complex:
        if dtype == torch.bool:
            return x.to(torch.float32) != 0 if x.element_size() == 1 else x != 0
        return x.to(torch.int64).to(dtype)  # straight to a narrow type is undefined beyond its range
    return x.to(dtype)


def _to_float8(x: Tensor, dtype: torch.dtype, *, saturate: bool) -> Tensor:
    x = x if x.dtype in _FLOATS else x.to(torch.float32)
    wide = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    largest = torch.finfo(dtype).max
    codes = wide.clamp(-largest, largest).to(dtype)
    if saturate:
        return codes
    limit = _ROUNDS_AWAY[dtype]
    # 448 ends in an even digit and draws its half upwards back; the others have an odd last digit.
    beyond = wide.abs() > limit if dtype == torch.float8_e4m3fn else wide.abs() >= limit
    if dtype == torch.float8_e5m2:
        return torch.where(beyond, wide.sign() * torch.inf, codes.to(wide.dtype)).to(dtype)
    return torch.where(beyond, torch.nan, codes.to(wide.dtype)).to(dtype)


def _to_power(x: Tensor, *, saturate: bool, round_mode: str) -> Tensor:
    """To the float8 that has an exponent only: 2^-127 to 2^127, code 255 is not a number."""
    fraction, exponent = torch.frexp(x.to(torch.float64))  # x = fraction 2^exponent, 0.5 <= fraction < 1
    up = {"up": 0.5, "down": 1.0, "nearest": 0.75}[round_mode]
    more = fraction >= up if round_mode == "nearest" else fraction > up
    code = exponent.to(torch.int64) + 126 + more.to(torch.int64)
    outside = (code < 0) | (code > 254) | (x == 0)
    code = torch.where(x == 0, 0, code).clamp(0, 254)
    bad = torch.isnan(x) if saturate else torch.isnan(x) | outside
    code = torch.where(torch.isinf(x), 254 if saturate else 255, code)
    return torch.where(bad, 255, code).to(torch.uint8).view(torch.float8_e8m0fnu)


def _from_array(x: np.ndarray) -> Tensor:
    """Numbers, in float64, of what torch has no type for."""
    if x.dtype != object:
        return torch.from_numpy(x.astype(np.float64))
    numbers = [float(word.decode() if isinstance(word, bytes) else str(word)) for word in x.ravel()]
    return torch.tensor(numbers, dtype=torch.float64).reshape(x.shape)


def _to_array(x: Tensor, kind: ir.DataType) -> np.ndarray:
    """To what torch has no type for, in numpy."""
    tensor = x.detach().cpu()
    numbers: np.ndarray = (
        tensor.to(torch.float32) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
    ).numpy()
    if kind != ir.DataType.STRING:
        return numbers.astype(kind.numpy())
    return np.array([str(number) for number in numbers.ravel()], object).reshape(numbers.shape)


def _conversion(kind: ir.DataType, saturate: bool, round_mode: str) -> Kernel:
    dtype = TORCH_TYPES.get(kind)
    if dtype in _FLOATS:

        def to_float(x: Tensor | np.ndarray) -> Tensor:
            return (x if isinstance(x, Tensor) else _from_array(x)).to(dtype)

        return to_float

    def run(x: Tensor | np.ndarray) -> Tensor | np.ndarray:
        if isinstance(x, np.ndarray):
            if kind in _ARRAYS:
                return x if x.dtype == kind.numpy() else _to_array(_from_array(x), kind)
            x = _from_array(x)
        if kind in _NARROW:
            return _to_narrow(x, kind)
        if dtype is None:
            return _to_array(x, kind)
        return to_type(x, dtype, saturate=saturate, round_mode=round_mode)

    return run


_ARRAYS = (ir.DataType.STRING, ir.DataType.FLOAT4E2M1)
"""Types that torch has not, and numpy arrays hold."""


@ops.kernel("Cast")
def cast(node: Node) -> Kernel:
    kind = ir.DataType(node.integer("to"))
    if kind not in TORCH_TYPES and kind not in _NARROW and kind not in _ARRAYS:
        raise node.unsupported(f"neither torch nor numpy has a type {kind.name}")
    return _conversion(kind, node.integer("saturate", 1) != 0, node.string("round_mode", "up"))


@ops.kernel("CastLike")
def cast_like(node: Node) -> Kernel:
    saturate, round_mode = node.integer("saturate", 1) != 0, node.string("round_mode", "up")
    like = node.ir.inputs[1]
    known = None if like is None else like.dtype
    if known is not None:
        kernel = _conversion(known, saturate, round_mode)
        return lambda x, _: kernel(x)

    def run(x: Tensor | np.ndarray, like: Tensor | np.ndarray) -> object:
        if isinstance(like, Tensor):
            kind = _ONNX_TYPES[like.dtype]
        else:
            kind = ir.DataType.STRING if like.dtype == object else ir.DataType.from_numpy(like.dtype)
        return _conversion(kind, saturate, round_mode)(x)

    return run


_ONNX_TYPES = {dtype: kind for kind, dtype in TORCH_TYPES.items()}


@ops.kernel("BitCast")
def bit_cast(node: Node) -> Kernel:
    dtype = torch_type(node, "to")
    if dtype is None:
        raise node.unsupported("no type to cast to")

    def run(x: Tensor) -> Tensor:
        if x.element_size() != dtype.itemsize:
            raise node.unsupported(f"{x.dtype} and {dtype} differ in width")
        return x.view(dtype)

    return run


ops.row("Identity", lambda x: x)


UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Types that torch can hold but hardly computes with."""

_UNSIGNED_KINDS = (ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64)


def widened(function: Callable[..., Tensor]) -> Callable[[Node], Kernel]:
    """A kernel of ``function`` that computes unsigned integers in int64 and goes back, modulo their width.

    Where the graph says that the inputs are of another type, it is the function itself.
    """

    def run(x: Tensor, *others: Tensor | None) -> Tensor:
        if x.dtype not in UNSIGNED:
            return function(x, *others)
        wide = [y if y is None else y.to(torch.int64) for y in others]
        return function(x.to(torch.int64), *wide).to(x.dtype)

    def build(node: Node) -> Kernel:
        kinds = [None if value is None else value.dtype for value in node.ir.inputs]
        sure = all(kind is not None and kind not in _UNSIGNED_KINDS for kind in kinds)
        return function if sure else run

    return build
