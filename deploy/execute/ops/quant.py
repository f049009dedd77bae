"""Quantization: real integers where nothing is learned, float codes with a gradient where something is.

    codes = saturate(round_half_even(x / scale) + zero_point)
    dequantized = (codes - zero_point) * scale

Where a gradient is wanted QuantizeLinear puts out the codes as floats, which pass through any movement of
data to DequantizeLinear. With v = x / scale and codes from low to high, rounding is passed over straight:

    d codes / dx     =  1 / scale          where low - zero_point < v < high - zero_point, else 0
    d codes / dscale = -x / scale^2        there, else 0

so that after DequantizeLinear, by the product rule, the scale gets what Learned Step Size Quantization has it
get (Esser et al., ICLR 2020, equation 3): round(v) - v inside, low - zero_point at or below the range,
high - zero_point at or above it. Their factor 1 / sqrt(elements * high) is the optimizer's business.
"""

from __future__ import annotations

from typing import cast

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype
from torch import Tensor

from deploy.execute.ops.conv import conv
from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

_TYPES = {
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}

_NARROW = {
    ir.DataType.INT4: (torch.int8, -8, 7),
    ir.DataType.UINT4: (torch.uint8, 0, 15),
    ir.DataType.INT2: (torch.int8, -2, 1),
    ir.DataType.UINT2: (torch.uint8, 0, 3),
}
"""Types that torch lacks: their codes lie in bytes. Type of those, least and greatest code."""


class _Round(torch.autograd.Function):
    """Half to even, kept within bounds; the gradient passes straight through strictly inside of them."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, v: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward((v > low) & (v < high))
        return v.round().clamp(low, high)

    @staticmethod
    def backward(ctx: torch.autograd.function.BackwardCFunction, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        return grads[0] * inside, None, None


class _Float8(torch.autograd.Function):
    """Values of an eight bit float type, as wide floats; the gradient passes within its range."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, v: Tensor, kind: torch.dtype) -> Tensor:
        greatest = torch.finfo(kind).max
        ctx.save_for_backward(v.abs() < greatest)
        return v.clamp(-greatest, greatest).to(kind).to(v.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.BackwardCFunction, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        return grads[0] * inside, None


def quantized(
    v: Tensor, zero: Tensor | int, kind: torch.dtype, *, low: int, high: int, learn: bool
) -> Tensor:
    """The codes of ``v``, which is x / scale: floats with a gradient to ``learn``, else of type ``kind``."""
    wide = v if v.dtype in (torch.float32, torch.float64) else v.float()
    zeros = torch.as_tensor(zero, device=v.device).to(wide.dtype)
    if learn:
        return cast(Tensor, _Round.apply(wide, low - zeros, high - zeros)) + zeros  # type: ignore[no-untyped-call]
    codes = wide.round().add_(zeros).clamp_(low, high)
    return codes.to(torch.int64).to(kind) if kind == torch.uint16 else codes.to(kind)


def along(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point as it stands beside ``x``: a number, one each along an axis, or blocks there."""
    if parameter.numel() == 1 and not block:
        return parameter.reshape(())
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    sizes = [1] * x.ndim
    sizes[axis] = -1
    return parameter.reshape(sizes)


def _type(node: Node, index: int) -> ir.DataType | None:
    value = node.ir.inputs[index] if node.has(index) else None
    return None if value is None else value.dtype


@ops.kernel("QuantizeLinear")
def quantize_linear(node: Node) -> Kernel:
    axis, block, saturate = node.integer("axis", 1), node.integer("block_size"), node.integer("saturate", 1)
    wanted = node.integer("output_dtype")
    stated = ir.DataType(wanted) if wanted else _type(node, 2)
    if stated is None:
        stated = node.ir.outputs[0].dtype if node.has(2) else ir.DataType.UINT8
    if stated in _NARROW:
        kind, low, high = _NARROW[stated]
    elif stated in _TYPES:
        kind = _TYPES[stated]
        low, high = (0, 0) if kind.is_floating_point else (torch.iinfo(kind).min, torch.iinfo(kind).max)
    else:
        raise node.unsupported(f"codes of type {stated}, which torch lacks")

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        v = x / along(scale, x, axis, block)
        learn = v.requires_grad
        if kind.is_floating_point:
            if learn:
                return cast(Tensor, _Float8.apply(v, kind))  # type: ignore[no-untyped-call]
            greatest = torch.finfo(kind).max
            return (v.clamp(-greatest, greatest) if saturate else v).to(kind)
        zeros = 0 if zero is None else along(zero, x, axis, block)
        return quantized(v, zeros, kind, low=low, high=high, learn=learn)

    return run


@ops.kernel("DequantizeLinear")
def dequantize_linear(node: Node) -> Kernel:
    axis, block, wanted = node.integer("axis", 1), node.integer("block_size"), node.integer("output_dtype")
    kind, stored = to_torch_dtype(ir.DataType(wanted)) if wanted else None, _type(node, 0)
    if stored is not None and not (stored in _TYPES or stored in _NARROW):
        raise node.unsupported(f"codes of type {stored}, which torch lacks")

    def run(codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        wide = torch.promote_types(scale.dtype, torch.float32)
        y = codes.to(wide)
        if zero is not None:
            y = y - along(zero, codes, axis, block).to(wide)
        return (y * along(scale, codes, axis, block).to(wide)).to(kind or scale.dtype)

    return run


@ops.kernel("DynamicQuantizeLinear")
def dynamic_quantize_linear(_: Node) -> Kernel:
    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
        scale = torch.where(low == high, 1.0, (high - low) / 255)
        zero = (-low / scale).detach().round().clamp(0, 255)
        v = x / scale
        codes = quantized(v, zero, torch.uint8, low=0, high=255, learn=v.requires_grad)
        return codes, scale, zero.to(torch.uint8)

    return run


def _requantized(total: Tensor, multiplier: Tensor, zero: Tensor, y_zero: Tensor) -> Tensor:
    """Sums of products of codes, brought to the output's scale and type."""
    v = total.to(torch.promote_types(multiplier.dtype, torch.float32)) * multiplier
    bounds = torch.iinfo(y_zero.dtype)
    return quantized(v, zero, y_zero.dtype, low=bounds.min, high=bounds.max, learn=v.requires_grad)


@ops.kernel("QLinearMatMul")
def qlinear_matmul(_: Node) -> Kernel:
    def rows(parameter: Tensor) -> Tensor:
        return parameter.reshape(-1, 1) if parameter.ndim == 1 and parameter.numel() > 1 else parameter

    def run(
        a: Tensor, a_scale: Tensor, a_zero: Tensor,
        b: Tensor, b_scale: Tensor, b_zero: Tensor,
        y_scale: Tensor, y_zero: Tensor,
    ) -> Tensor:  # fmt: skip
        # In float64 sums of products are exact up to 2^53, on every device.
        total = torch.matmul(a.double() - rows(a_zero).double(), b.double() - b_zero.double())
        multiplier = rows(a_scale).float() * b_scale.float() / rows(y_scale).float()
        return _requantized(total, multiplier, rows(y_zero), y_zero)

    return run


@ops.kernel("QLinearConv")
def qlinear_conv(node: Node) -> Kernel:
    convolve = conv(node)

    def run(
        x: Tensor, x_scale: Tensor, x_zero: Tensor,
        w: Tensor, w_scale: Tensor, w_zero: Tensor,
        y_scale: Tensor, y_zero: Tensor, bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        weight = w.double() - along(w_zero, w, 0, 0).double()
        total = cast(Tensor, convolve(x.double() - x_zero.double(), weight, None))
        if bias is not None:
            total = total + along(bias, total, 1, 0).double()
        multiplier = along(x_scale.float() * w_scale.float() / y_scale.float(), total, 1, 0)
        return _requantized(total, multiplier, y_zero.reshape(()), y_zero)

    return run
