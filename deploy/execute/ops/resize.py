"""Resize, and the moves between depth, space and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deploy.execute.ops.conv import pad_spatial
from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

_TORCH_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


@ops.kernel("Resize")
def resize(node: Node) -> Kernel:
    mode, coordinates = (
        node.string("mode", "nearest"),
        node.string("coordinate_transformation_mode", "half_pixel"),
    )
    rounding, policy = (
        node.string("nearest_mode", "round_prefer_floor"),
        node.string("keep_aspect_ratio_policy", "stretch"),
    )
    antialias, exclude, a = (
        node.flag("antialias"),
        node.flag("exclude_outside"),
        node.real("cubic_coeff_a", -0.75),
    )
    outside, named = node.real("extrapolation_value"), node.integers("axes")
    crops = coordinates == "tf_crop_and_resize"
    constants = [node.constant(index) for index in range(4)]

    def read(index: int, given: Tensor | None) -> list[float]:
        constant = constants[index]
        if constant is not None:
            return [float(v) for v in constant.reshape(-1)]
        return [] if given is None else given.reshape(-1).tolist()

    def run(
        x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
    ) -> Tensor:
        axes = [axis % x.ndim for axis in named] or list(range(x.ndim))
        before = [x.shape[axis] for axis in axes]
        factors, after = read(2, scales), [int(v) for v in read(3, sizes)]
        if after:
            factors, after = _scales(before, after, policy)
        else:  # the product in float32, as ONNX's own shape inference has it
            after = [
                int(np.floor(np.float32(f) * np.float32(n))) for f, n in zip(factors, before, strict=True)
            ]
        window = read(1, roi) if crops else []
        if not crops and not exclude and not antialias:
            direct = by_torch(x, axes, factors, after)
            if direct is not None:
                return direct
        y = x
        for i, axis in enumerate(axes):
            region = (window[i], window[len(axes) + i]) if window else (0.0, 1.0)
            if factors[i] == 1 and after[i] == before[i] and region == (0.0, 1.0):
                continue
            y = along(y, axis, factors[i], after[i], region)
        if y.dtype != x.dtype:
            y = y if x.is_floating_point() else y.round().clamp(*_limits(x.dtype))
            y = y.to(x.dtype)
        return y

    def along(x: Tensor, axis: int, scale: float, size: int, region: tuple[float, float]) -> Tensor:
        at = _origins(coordinates, x.shape[axis], scale, size, region)
        if mode == "nearest":
            nearest = torch.from_numpy(_nearest(at, rounding).clip(0, x.shape[axis] - 1)).to(x.device)
            y = x.index_select(axis, nearest)
        else:
            width = min(scale, 1.0) if antialias else 1.0
            places, shares = _taps(tuple(at), x.shape[axis], mode, width, a, exclude)
            wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
            shape = [-1 if i == axis else 1 for i in range(x.ndim)]
            y = sum(
                (
                    wide.index_select(axis, torch.from_numpy(place).to(x.device))
                    * torch.from_numpy(share).to(x.device, wide.dtype).reshape(shape)
                    for place, share in zip(places, shares, strict=True)
                ),
                start=wide.new_zeros(()),
            )
        if crops:
            gone = torch.from_numpy((at < 0) | (at > x.shape[axis] - 1)).to(x.device)
            y = torch.where(gone.reshape([-1 if i == axis else 1 for i in range(x.ndim)]), outside, y).to(
                y.dtype
            )
        return y

    def by_torch(x: Tensor, axes: list[int], factors: list[float], after: list[int]) -> Tensor | None:
        """What torch's own interpolation computes, None where it means something else."""
        shape, scale = list(x.shape), [1.0] * x.ndim
        for axis, factor, size in zip(axes, factors, after, strict=True):
            if size != factor * shape[axis]:
                return None
            shape[axis], scale[axis] = size, factor
        if (
            x.ndim not in _TORCH_LINEAR
            or scale[:2] != [1.0, 1.0]
            or not x.is_floating_point()
            or not all(shape)
        ):
            return None
        whole = all(s.is_integer() for s in scale)
        if mode == "nearest":
            centred = coordinates == "half_pixel" and rounding.startswith("round")
            if whole and (centred or (coordinates == "asymmetric" and rounding == "floor")):
                return functional.interpolate(x, size=shape[2:], mode="nearest")
            return None
        corners = coordinates == "align_corners"
        centres = coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and min(shape[2:]) > 1)
        name = _TORCH_LINEAR[x.ndim] if mode == "linear" else "bicubic"
        if not (corners or centres) or (mode == "cubic" and (x.ndim != 4 or a != -0.75)):
            return None
        return functional.interpolate(x, size=shape[2:], mode=name, align_corners=corners)

    return run


def _scales(before: list[int], wanted: list[int], policy: str) -> tuple[list[float], list[int]]:
    factors = [w / b for w, b in zip(wanted, before, strict=True)]
    if policy == "stretch":
        return factors, wanted
    one = min(factors) if policy == "not_larger" else max(factors)
    return [one] * len(before), [int(one * size + 0.5) for size in before]


def _limits(dtype: torch.dtype) -> tuple[int, int]:
    return torch.iinfo(dtype).min, torch.iinfo(dtype).max


def _origins(mode: str, before: int, scale: float, after: int, region: tuple[float, float]) -> np.ndarray:
    """Where each of ``after`` elements lies among the ``before``; float32, so that ties fall as elsewhere."""
    x, step = np.arange(after, dtype=np.float32), np.float32(scale)
    if mode == "align_corners":
        # The whole size, as the specification and ONNX Runtime have it; two node cases take scale * before.
        return x * (before - 1) / (after - 1) if after > 1 else x * 0
    if mode == "asymmetric":
        return x / step
    if mode == "tf_crop_and_resize":
        start, end = region
        if after > 1:
            return start * (before - 1) + x * (end - start) * (before - 1) / (after - 1)
        return x + 0.5 * (start + end) * (before - 1)
    if mode == "pytorch_half_pixel" and after == 1:
        return x * 0
    offset = before / 2 * (1 - after / (step * before)) if mode == "half_pixel_symmetric" else 0.0
    return offset + (x + 0.5) / step - 0.5


def _nearest(at: np.ndarray, rounding: str) -> np.ndarray:
    if rounding == "round_prefer_floor":
        at = np.ceil(at - 0.5)
    elif rounding == "round_prefer_ceil":
        at = np.floor(at + 0.5)
    else:
        at = np.floor(at) if rounding == "floor" else np.ceil(at)
    return at.astype(np.int64)


@lru_cache(maxsize=256)
def _taps(
    at: tuple[float, ...], size: int, mode: str, width: float, a: float, exclude: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which elements each new one is made of and their shares, both (taps, new elements).

    ``width`` below one stretches the filter (antialias). Beyond the ends the last element goes on, or counts
    nothing where ``exclude``.
    """
    centre = np.asarray(at)
    half = math.ceil((1 if mode == "linear" else 2) / width)
    places = np.floor(centre).astype(np.int64) + np.arange(1 - half, half + 1)[:, None]
    d = np.abs(places - centre) * width
    if mode == "linear":
        shares = np.clip(1 - d, 0, 1)
    else:
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        shares = np.where(d <= 1, near, np.where(d < 2, far, 0))
    if exclude:
        shares = np.where((places < 0) | (places >= size), 0, shares)
    return places.clip(0, size - 1), shares / shares.sum(0)


@ops.kernel("DepthToSpace")
def depth_to_space(node: Node) -> Kernel:
    block, crd = node.integer("blocksize"), node.string("mode", "DCR") == "CRD"

    def run(x: Tensor) -> Tensor:
        if crd:
            return functional.pixel_shuffle(x, block)
        n, c, h, w = x.shape
        y = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(n, c // block**2, h * block, w * block)

    return run


@ops.kernel("SpaceToDepth")
def space_to_depth(node: Node) -> Kernel:
    block, crd = node.integer("blocksize"), node.string("mode", "DCR") == "CRD"

    def run(x: Tensor) -> Tensor:
        if crd:
            return functional.pixel_unshuffle(x, block)
        n, c, h, w = x.shape
        y = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return y.reshape(n, c * block**2, h // block, w // block)

    return run


@ops.kernel("CenterCropPad")
def center_crop_pad(node: Node) -> Kernel:
    named, constant = node.integers("axes"), node.constant(1)

    def run(x: Tensor, shape: Tensor) -> Tensor:
        wanted = shape.tolist() if constant is None else constant.tolist()
        axes = [axis % x.ndim for axis in named] or list(range(x.ndim))
        sides = [0] * 2 * x.ndim  # of the last axis first
        for axis, size in zip(axes, wanted, strict=True):
            more = size - x.shape[axis]
            begin = abs(more) // 2 * (1 if more > 0 else -1)
            last = 2 * (x.ndim - 1 - axis)
            sides[last], sides[last + 1] = begin, more - begin
        return functional.pad(x, sides) if any(sides) else x

    return run


@ops.kernel("Col2Im")
def col2im(node: Node) -> Kernel:
    strides, dilations, given = node.integers("strides"), node.integers("dilations"), node.integers("pads")
    constants = node.constant(1), node.constant(2)

    def run(x: Tensor, image: Tensor, block: Tensor) -> Tensor:
        sizes: list[int] = (image if constants[0] is None else constants[0]).tolist()
        kernel: list[int] = (block if constants[1] is None else constants[1]).tolist()
        half = len(sizes)
        pads = given or [0] * 2 * half
        padded = [n + pads[i] + pads[half + i] for i, n in enumerate(sizes)]
        place = _window_places(padded, kernel, strides or [1] * half, dilations or [1] * half, x.device)
        columns = x.reshape(x.shape[0], -1, place.numel())
        summed = x.new_zeros(*columns.shape[:2], math.prod(padded)).index_add(2, place.reshape(-1), columns)
        return pad_spatial(summed.reshape(*columns.shape[:2], *padded), [-p for p in pads])

    return run


def _window_places(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    device: torch.device,
) -> Tensor:
    """Flat places in an image that windows read: (elements of a window, windows)."""
    flat = torch.zeros(1, 1, dtype=torch.int64, device=device)
    for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        count = (size - (k - 1) * d - 1) // s + 1
        taps = torch.arange(k, device=device) * d
        at = taps.reshape(-1, 1) + torch.arange(count, device=device) * s  # (k, count)
        flat = flat[:, None, :, None] * size + at[None, :, None, :]
        flat = flat.reshape(flat.shape[0] * flat.shape[1], -1)
    return flat
