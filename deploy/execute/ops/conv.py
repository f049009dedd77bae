"""Convolutions: Conv, ConvTranspose, DeformConv, ConvInteger, CausalConvWithState."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

_CONV: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d,
}  # fmt: skip
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d,
}  # fmt: skip


@ops.kernel("Conv")
def conv(node: Node) -> Kernel:
    group, given = node.integer("group", 1), node.integers("pads")
    strides, dilations, auto = (
        node.integers("strides"),
        node.integers("dilations"),
        node.string("auto_pad", "NOTSET"),
    )

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        spatial = x.ndim - 2
        stride, dilation = strides or [1] * spatial, dilations or [1] * spatial
        pads = given or [0] * (2 * spatial)
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
            pads = same_pads(x.shape[2:], reach, stride, lower=auto == "SAME_LOWER")
        begin, end = pads[:spatial], pads[spatial:]
        if begin != end:
            x, begin = pad_spatial(x, pads), [0] * spatial
        return _CONV[spatial](x, weight, bias, stride, begin, dilation, group)

    return run


@ops.kernel("ConvTranspose")
def conv_transpose(node: Node) -> Kernel:
    group, given = node.integer("group", 1), node.integers("pads")
    strides, dilations = node.integers("strides"), node.integers("dilations")
    auto, extra, wanted = (
        node.string("auto_pad", "NOTSET"),
        node.integers("output_padding"),
        node.integers("output_shape"),
    )

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        spatial = x.ndim - 2
        stride, dilation = strides or [1] * spatial, dilations or [1] * spatial
        more = extra or [0] * spatial
        begin, end = (given[:spatial], given[spatial:]) if given else ([0] * spatial, [0] * spatial)
        if wanted or auto in ("SAME_UPPER", "SAME_LOWER"):
            sizes = wanted[-spatial:] or [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
            for i, size in enumerate(sizes):
                full = (
                    stride[i] * (x.shape[2 + i] - 1) + more[i] + (weight.shape[2 + i] - 1) * dilation[i] + 1
                )
                total = full - size
                half = max(total, 0) // 2
                begin[i] = half if auto == "SAME_UPPER" else max(total, 0) - half
                end[i] = total - begin[i]  # below zero: rows that no element reaches
        # torch crops the same from both sides and adds behind; so what the end crops less is added behind.
        behind = [m + b - e for m, b, e in zip(more, begin, end, strict=True)]
        if all(0 <= b < max(s, d) for b, s, d in zip(behind, stride, dilation, strict=True)):
            return _TRANSPOSED[spatial](x, weight, bias, stride, begin, behind, group, dilation)
        y = _TRANSPOSED[spatial](x, weight, None, stride, 0, 0, group, dilation)
        y = pad_spatial(y, [-b for b in begin] + [m - e for m, e in zip(more, end, strict=True)])
        return y if bias is None else y + bias.reshape(-1, *[1] * spatial)

    return run


@ops.kernel("DeformConv")
def deform_conv(node: Node) -> Kernel:
    group, parts = node.integer("group", 1), node.integer("offset_group", 1)
    stride, dilation = node.integers("strides", (1, 1)), node.integers("dilations", (1, 1))
    pads = node.integers("pads", (0, 0, 0, 0))

    def run(
        x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        if x.ndim != 4:
            raise node.unsupported(f"only two spatial axes, found {x.ndim - 2}")
        (batch, channels, *size), (kh, kw), (oh, ow) = x.shape, weight.shape[2:], offset.shape[2:]
        where = offset.reshape(batch * parts, kh, kw, 2, oh, ow)
        grid = []
        for axis, (kernel, out) in enumerate(((kh, oh), (kw, ow))):
            taps = torch.arange(kernel, device=x.device) * dilation[axis] - pads[axis]
            starts = torch.arange(out, device=x.device) * stride[axis]
            fixed = (
                taps.reshape(-1, 1, 1, 1) + starts.reshape(-1, 1)
                if axis == 0
                else taps.reshape(-1, 1, 1) + starts
            )
            at = where[:, :, :, axis] + fixed.to(offset.dtype)
            grid.append((2 * at + 1) / size[axis] - 1)  # grid_sample counts -1..1 from edge to edge
        sampled = functional.grid_sample(
            x.reshape(batch * parts, channels // parts, *size),
            torch.stack(grid[::-1], -1).reshape(batch * parts, kh * kw * oh, ow, 2),
            padding_mode="zeros",
            align_corners=False,
        ).reshape(batch, parts, channels // parts, kh * kw, oh * ow)
        if mask is not None:
            sampled = sampled * mask.reshape(batch, parts, 1, kh * kw, oh * ow)
        columns = sampled.reshape(batch, group, -1, oh * ow)
        y = torch.matmul(weight.reshape(group, weight.shape[0] // group, -1), columns)
        y = y.reshape(batch, -1, oh, ow)
        return y if bias is None else y + bias.reshape(-1, 1, 1)

    return run


@ops.kernel("ConvInteger")
def conv_integer(node: Node) -> Kernel:
    float_conv = conv(node)

    def run(
        x: Tensor, weight: Tensor, x_zero: Tensor | None = None, weight_zero: Tensor | None = None
    ) -> Tensor:
        # In float64, which is exact up to 2^53 and which every device can convolve.
        a, w = x.double(), weight.double()
        if x_zero is not None:
            a = a - x_zero.double()
        if weight_zero is not None:
            w = w - weight_zero.double().reshape(-1, *[1] * (w.ndim - 1))
        y = float_conv(a, w)
        assert isinstance(y, Tensor)
        return y.to(torch.int32)

    return run


@ops.kernel("CausalConvWithState")
def causal_conv(node: Node) -> Kernel:
    activation = node.string("activation", "none")
    if activation not in ("none", "silu", "swish"):
        raise node.unsupported(f"activation '{activation}'")

    def run(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, past: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        before = weight.shape[2] - 1
        padded = functional.pad(x, (before, 0)) if past is None else torch.cat([past, x], 2)
        y = functional.conv1d(padded, weight, bias, groups=x.shape[1])
        state = padded[:, :, padded.shape[2] - before :]
        return (y if activation == "none" else functional.silu(y)), state

    return run


def same_pads(sizes: Sequence[int], reach: Sequence[int], stride: Sequence[int], *, lower: bool) -> list[int]:
    """ONNX pads (begins, then ends) by which the output has ceil(size / stride) elements."""
    begins, ends = [], []
    for size, kernel, step in zip(sizes, reach, stride, strict=True):
        total = max(0, (-(-size // step) - 1) * step + kernel - size)
        begins.append(total - total // 2 if lower else total // 2)
        ends.append(total - begins[-1])
    return begins + ends


def pad_spatial(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """``x`` padded by ONNX pads of its spatial axes; negative ones crop."""
    half = len(pads) // 2
    both = [side for axis in reversed(range(half)) for side in (pads[axis], pads[half + axis])]
    return functional.pad(x, both, value=value) if any(both) else x
