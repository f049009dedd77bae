"""Types: Cast, CastLike, BitCast, Identity; and what ONNX's element types are in torch.

Types that torch has not (text, and integers and floats of four bits or fewer) stay numpy arrays: they can be
cast from and to, and handed on, nothing else.
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


def _from_array(x: np.ndarray, kind: ir.DataType) -> Tensor | np.ndarray:
    """From what torch has no type for, in numpy."""
    if kind not in TORCH_TYPES:
        return x.astype(kind.numpy())
    if x.dtype == object:
        wide = np.array([_number(text) for text in x.ravel()], np.float64).reshape(x.shape)
    else:
        wide = x.astype(np.float64)
    return to_type(torch.from_numpy(wide), TORCH_TYPES[kind])


def _number(text: object) -> float:
    return float(text.decode() if isinstance(text, bytes) else str(text))


def _to_array(x: Tensor, kind: ir.DataType) -> np.ndarray:
    """To what torch has no type for, in numpy."""
    array = x.detach().cpu()
    if kind == ir.DataType.STRING:
        said = (array.to(torch.float32) if array.dtype == torch.bfloat16 else array).numpy()
        return np.array([str(number) for number in said.ravel()], object).reshape(said.shape)
    codes: np.ndarray = (array.to(torch.float32) if array.is_floating_point() else array).numpy()
    return codes.astype(kind.numpy())


@ops.kernel("Cast")
def cast(node: Node) -> Kernel:
    kind = ir.DataType(node.integer("to"))
    dtype, saturate = TORCH_TYPES.get(kind), node.integer("saturate", 1) != 0
    round_mode = node.string("round_mode", "up")
    if kind not in TORCH_TYPES and not _has_array(kind):
        raise node.unsupported(f"neither torch nor numpy has a type {kind.name}")

    def run(x: Tensor | np.ndarray) -> Tensor | np.ndarray:
        if isinstance(x, np.ndarray):
            return _from_array(x, kind)
        if dtype is None:
            return _to_array(x, kind)
        if dtype in _FLOATS:
            return x.to(dtype)
        return to_type(x, dtype, saturate=saturate, round_mode=round_mode)

    return run


def _has_array(kind: ir.DataType) -> bool:
    try:
        kind.numpy()
    except TypeError:
        return False
    return True


@ops.kernel("CastLike")
def cast_like(node: Node) -> Kernel:
    saturate, round_mode = node.integer("saturate", 1) != 0, node.string("round_mode", "up")

    def run(x: Tensor | np.ndarray, like: Tensor | np.ndarray) -> Tensor | np.ndarray:
        if isinstance(like, np.ndarray):
            kind = ir.DataType.STRING if like.dtype == object else ir.DataType.from_numpy(like.dtype)
            return _from_array(x, kind) if isinstance(x, np.ndarray) else _to_array(x, kind)
        if isinstance(x, np.ndarray):
            return _from_array(x, _ONNX_TYPES[like.dtype])
        return to_type(x, like.dtype, saturate=saturate, round_mode=round_mode)

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

    def run(*inputs: Tensor) -> Tensor:
        kind = inputs[0].dtype
        if kind not in UNSIGNED:
            return function(*inputs)
        return function(*[x.to(torch.int64) if x.dtype in UNSIGNED else x for x in inputs]).to(kind)

    def build(node: Node) -> Kernel:
        kinds = [None if value is None else value.dtype for value in node.ir.inputs]
        sure = all(kind is not None and kind not in _UNSIGNED_KINDS for kind in kinds)
        return function if sure else run

    return build
