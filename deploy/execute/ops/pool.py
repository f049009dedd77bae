"""Pooling: over windows, over everything, over regions, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deploy.execute.ops.conv import pad_spatial, same_pads
from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

_MAX: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d,
}  # fmt: skip
_AVERAGE: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d,
}  # fmt: skip
_CONV: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d,
}  # fmt: skip


@dataclass(frozen=True)
class Windows:
    """Where windows lie on the spatial axes of an input of known size; ``pads`` begins, then ends."""

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    pads: list[int]
    ceil: bool

    @property
    def reach(self) -> list[int]:
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]

    def by_torch(self) -> bool:
        """Whether torch's own padding means the same: the same on both sides, at most half a window."""
        half = len(self.kernel)
        return self.pads[:half] == self.pads[half:] and all(
            2 * pad <= kernel for pad, kernel in zip(self.pads, self.kernel, strict=False)
        )

    def exact(self, sizes: Sequence[int]) -> list[int]:
        """Pads by which the windows cover the padded input exactly; ends below zero crop."""
        half, ends = len(self.kernel), []
        for i, (size, reach, step) in enumerate(zip(sizes, self.reach, self.stride, strict=True)):
            room = size + self.pads[i] + self.pads[half + i] - reach
            count = (-(-room // step) if self.ceil else room // step) + 1
            if self.ceil and (count - 1) * step >= size + self.pads[i]:
                count -= 1  # a window that would begin in the padding behind
            ends.append((count - 1) * step + reach - size - self.pads[i])
        return self.pads[:half] + ends


def _windows(node: Node) -> Callable[[Tensor], Windows]:
    """The windows as a function of the input."""
    kernel, given = (
        node.integers("kernel_shape"),
        node.integers("pads") or [0] * 2 * len(node.integers("kernel_shape")),
    )
    stride = node.integers("strides", [1] * len(kernel))
    dilation = node.integers("dilations", [1] * len(kernel))
    auto, ceil = node.string("auto_pad", "NOTSET"), node.flag("ceil_mode")
    if auto == "VALID":
        given = [0] * 2 * len(kernel)
    fixed = Windows(kernel, stride, dilation, given, ceil)
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        return lambda _: fixed

    def same(x: Tensor) -> Windows:
        pads = same_pads(x.shape[2:], fixed.reach, stride, lower=auto == "SAME_LOWER")
        return Windows(kernel, stride, dilation, pads, ceil=False)

    return same


@ops.kernel("MaxPool")
def max_pool(node: Node) -> Kernel:
    windows, indexed, columns = _windows(node), node.wants(1), node.flag("storage_order")

    def run(x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not x.is_floating_point():  # 8-bit integers, exact in float32
            many = pool(x.float())
            return (many[0].to(x.dtype), many[1]) if isinstance(many, tuple) else many.to(x.dtype)
        return pool(x)

    def pool(x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        over, half = windows(x), x.ndim - 2
        if over.by_torch():
            y = _MAX[half](
                x,
                over.kernel,
                over.stride,
                over.pads[:half],
                over.dilation,
                over.ceil,
                return_indices=indexed,
            )
            begins, sizes = [0] * half, list(x.shape[2:])
        else:
            padded = pad_spatial(x, over.exact(x.shape[2:]), -math.inf)
            y = _MAX[half](padded, over.kernel, over.stride, 0, over.dilation, return_indices=indexed)
            begins, sizes = over.pads[:half], list(padded.shape[2:])
        if not indexed:
            return y
        values, places = y
        return values, _flat(places, sizes, begins, list(x.shape))

    def _flat(places: Tensor, sizes: list[int], begins: list[int], shape: list[int]) -> Tensor:
        """Places in the plane of ``sizes`` as places in the whole unpadded tensor."""
        at: list[Tensor] = []
        for size, begin in zip(reversed(sizes), reversed(begins), strict=True):
            at.insert(0, places % size - begin)
            places = places // size
        spatial, flat = shape[2:], torch.zeros_like(places)
        for axis in reversed(range(len(spatial))) if columns else range(len(spatial)):
            flat = flat * spatial[axis] + at[axis]
        planes = torch.arange(shape[0] * shape[1], device=places.device) * math.prod(spatial)
        return flat + planes.reshape(shape[0], shape[1], *[1] * len(spatial))

    return run


@ops.kernel("AveragePool")
def average_pool(node: Node) -> Kernel:
    windows, include = _windows(node), node.flag("count_include_pad")

    def run(x: Tensor) -> Tensor:
        over, half = windows(x), x.ndim - 2
        if over.by_torch() and set(over.dilation) == {1}:
            return _AVERAGE[half](x, over.kernel, over.stride, over.pads[:half], over.ceil, include)
        exact, real = over.exact(x.shape[2:]), torch.ones_like(x[:1, :1])
        if include:  # counted is what was asked for; what only ceil_mode adds behind is not
            real = pad_spatial(real, over.pads, 1.0)
            exact_real = [0] * half + [e - p for e, p in zip(exact[half:], over.pads[half:], strict=True)]
            real = pad_spatial(real, exact_real)
        else:
            real = pad_spatial(real, exact)
        return _window_sums(pad_spatial(x, exact), over) / _window_sums(real, over)

    return run


@ops.kernel("LpPool")
def lp_pool(node: Node) -> Kernel:
    windows, p = _windows(node), node.integer("p", 2)

    def run(x: Tensor) -> Tensor:
        over = windows(x)
        sums = _window_sums(pad_spatial(x.abs().pow(p), over.exact(x.shape[2:])), over)
        some = sums > 0  # the root has no slope at nought
        return torch.where(some, sums, 1).pow(1 / p) * some

    return run


def _window_sums(padded: Tensor, over: Windows) -> Tensor:
    """Sum over each window: a convolution with ones, each channel for itself."""
    batch, channels, *sizes = padded.shape
    ones = padded.new_ones(1, 1, *over.kernel)
    flat = padded.reshape(batch * channels, 1, *sizes)
    sums = _CONV[len(sizes)](flat, ones, stride=over.stride, dilation=over.dilation)
    return sums.reshape(batch, channels, *sums.shape[2:])


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


ops.row("GlobalAveragePool", lambda x: x.mean(_spatial(x), keepdim=True))
ops.row("GlobalMaxPool", lambda x: x.amax(_spatial(x), keepdim=True))


@ops.kernel("GlobalLpPool")
def global_lp_pool(node: Node) -> Kernel:
    p = node.integer("p", 2)
    return lambda x: torch.linalg.vector_norm(x, p, _spatial(x), keepdim=True)


@ops.kernel("MaxUnpool")
def max_unpool(node: Node) -> Kernel:
    kernel = node.integers("kernel_shape")
    stride, pads = node.integers("strides", [1] * len(kernel)), node.integers("pads", [0] * 2 * len(kernel))

    def run(x: Tensor, places: Tensor, shape: Tensor | None = None) -> Tensor:
        half = len(kernel)
        sizes = [(x.shape[2 + i] - 1) * stride[i] + kernel[i] - pads[i] - pads[half + i] for i in range(half)]
        pooled = [*x.shape[:2], *sizes]
        flat = x.new_zeros(math.prod(pooled)).scatter(0, places.reshape(-1), x.reshape(-1))
        y = flat.reshape(pooled)
        if shape is None:
            return y
        # The indices are of the size that was inferred; a larger one asked for is filled behind.
        return pad_spatial(y, [0] * half + [n - s for n, s in zip(shape.tolist()[2:], sizes, strict=True)])

    return run


@ops.kernel("MaxRoiPool")
def max_roi_pool(node: Node) -> Kernel:
    (rows, columns), scale = node.integers("pooled_shape"), node.real("spatial_scale", 1.0)

    def run(x: Tensor, rois: Tensor) -> Tensor:
        corners = torch.floor(rois[:, 1:] * scale + 0.5).long()  # x1, y1, x2, y2; both ends inside
        down = _bins(corners[:, 1], corners[:, 3], rows, x.shape[2])
        across = _bins(corners[:, 0], corners[:, 2], columns, x.shape[3])
        least = x.new_tensor(-math.inf)
        pooled = []
        for index, image in enumerate(rois[:, 0].long().tolist()):
            wide = torch.where(across[index][:, None, None, :], x[image], least).amax(-1)  # bins, C, H
            high = torch.where(down[index][:, None, None, :], wide, least).amax(-1)  # rows, columns, C
            pooled.append(high.permute(2, 0, 1))
        y = torch.stack(pooled) if pooled else x.new_zeros(0, x.shape[1], rows, columns)
        return torch.where(torch.isneginf(y), 0, y)  # an empty bin

    return run


def _bins(first: Tensor, last: Tensor, bins: int, size: int) -> Tensor:
    """Which of ``size`` elements each bin of each region holds: (regions, bins, size)."""
    width = (last - first + 1).clamp(min=1).reshape(-1, 1)
    number = torch.arange(bins, device=first.device)
    begin = number * width // bins + first.reshape(-1, 1)
    end = -(-(number + 1) * width // bins) + first.reshape(-1, 1)
    at = torch.arange(size, device=first.device)
    return (at >= begin[..., None]) & (at < end[..., None])
