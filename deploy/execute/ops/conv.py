"""Convolutions: Conv, ConvTranspose."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


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
