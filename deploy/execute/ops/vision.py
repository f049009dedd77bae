"""Sampling at given places: grids, regions, and which boxes stay."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


@ops.kernel("GridSample")
def grid_sample(node: Node) -> Kernel:
    mode, padding = node.string("mode", "linear"), node.string("padding_mode", "zeros")
    name, corners = _GRID_MODES.get(mode, mode), node.flag("align_corners")

    def run(x: Tensor, grid: Tensor) -> Tensor:
        if x.ndim not in (4, 5) or (x.ndim == 5 and name == "bicubic"):
            raise node.unsupported(f"mode {mode} over {x.ndim - 2} spatial axes")
        return functional.grid_sample(x, grid.to(x.dtype), name, padding, corners)

    return run


@ops.kernel("AffineGrid")
def affine_grid(node: Node) -> Kernel:
    corners, constant = node.flag("align_corners"), node.constant(1)

    def run(theta: Tensor, size: Tensor) -> Tensor:
        wanted = size.tolist() if constant is None else constant.tolist()
        return functional.affine_grid(theta, wanted, corners)

    return run


@ops.kernel("RoiAlign")
def roi_align(node: Node) -> Kernel:
    rows, columns = node.integer("output_height", 1), node.integer("output_width", 1)
    samples, scale = node.integer("sampling_ratio"), node.real("spatial_scale", 1.0)
    aligned = node.string("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    largest = node.string("mode", "avg") == "max"

    def run(x: Tensor, rois: Tensor, images: Tensor) -> Tensor:
        corners = rois * scale - (0.5 if aligned else 0.0)
        pooled = x.new_zeros(rois.shape[0], x.shape[1], rows, columns)
        for image in range(x.shape[0]):
            mine = (images == image).nonzero().reshape(-1)
            if mine.numel():
                across = _Samples(corners[mine, 0], corners[mine, 2], columns, x.shape[3], samples, aligned)
                down = _Samples(corners[mine, 1], corners[mine, 3], rows, x.shape[2], samples, aligned)
                found = _largest(x[image], down, across) if largest else _mean(x[image], down, across)
                pooled = pooled.index_add(0, mine, found.to(x.dtype))
        return pooled

    return run


class _Samples:
    """Where the bins of regions are sampled along one axis, and between which elements that lies.

    Tensors of (regions, bins, samples): the elements ``low`` and ``high``, their shares, and whether the
    sample counts: regions take different numbers of them.
    """

    def __init__(self, begin: Tensor, end: Tensor, bins: int, size: int, samples: int, aligned: bool) -> None:
        extent = end - begin if aligned else (end - begin).clamp(min=1)
        width = (extent / bins).reshape(-1, 1, 1)
        counts = torch.full_like(width, samples) if samples > 0 else width.ceil().clamp(min=0)
        number = torch.arange(int(counts.max()), device=begin.device)
        step = width / counts.clamp(min=1)
        bin_begin = begin.reshape(-1, 1, 1) + torch.arange(bins, device=begin.device).reshape(-1, 1) * width
        at = bin_begin + (number + 0.5) * step
        self.counts, self.size = counts, size
        self.taken = (number < counts).expand_as(at)
        inside = self.taken & (at >= -1) & (at <= size)
        at = at.clamp(0, size - 1)
        self.low = at.detach().floor().long()
        self.high = (self.low + 1).clamp(max=size - 1)
        self.high_share = (at - self.low) * inside
        self.low_share = (1 - (at - self.low)) * inside

    def matrix(self) -> Tensor:
        """(regions, bins, size): the mean over the samples of a bin as a product."""
        shape = (*self.low.shape[:2], self.size)
        shares = self.low_share.new_zeros(shape).scatter_add(2, self.low, self.low_share)
        return shares.scatter_add(2, self.high, self.high_share) / self.counts.clamp(min=1)


def _mean(image: Tensor, down: _Samples, across: _Samples) -> Tensor:
    """Bilinear sampling and its mean are linear along each axis: two products."""
    wide = torch.einsum("chw,rqw->rchq", image, across.matrix().to(image.dtype))
    return torch.einsum("rph,rchq->rcpq", down.matrix().to(image.dtype), wide)


def _largest(image: Tensor, down: _Samples, across: _Samples) -> Tensor:
    """The largest share of a corner, as ONNX Runtime takes it too, not of interpolated values."""
    best: Tensor | None = None
    taken = down.taken[:, :, None, :, None] & across.taken[:, None, :, None, :]
    for row, row_share in ((down.low, down.low_share), (down.high, down.high_share)):
        for column, column_share in ((across.low, across.low_share), (across.high, across.high_share)):
            share = row_share[:, :, None, :, None] * column_share[:, None, :, None, :]
            value = image[:, row[:, :, None, :, None], column[:, None, :, None, :]] * share
            value = torch.where(taken, value, -torch.inf).flatten(-2).amax(-1)
            best = value if best is None else torch.maximum(best, value)
    assert best is not None
    return torch.where(torch.isneginf(best), 0, best).transpose(0, 1)


@ops.kernel("NonMaxSuppression")
def non_max_suppression(node: Node) -> Kernel:
    centred = node.flag("center_point_box")

    def run(
        boxes: Tensor,
        scores: Tensor,
        most: Tensor | None = None,
        overlap: Tensor | None = None,
        least: Tensor | None = None,
    ) -> Tensor:
        limit = 0 if most is None else int(most)
        threshold, floor = 0.0 if overlap is None else float(overlap), None if least is None else float(least)
        kept: list[tuple[int, int, int]] = []
        for image in range(scores.shape[0]) if limit > 0 else ():
            ious = _overlaps(boxes[image], centred)
            for label in range(scores.shape[1]):
                row = scores[image, label]
                order = row.argsort(descending=True, stable=True)
                order = order if floor is None else order[row[order] > floor]
                kept += [(image, label, box) for box in _greedy(ious, order.tolist(), threshold, limit)]
        return torch.tensor(kept, dtype=torch.int64, device=boxes.device).reshape(-1, 3)

    return run


def _greedy(ious: Tensor, order: list[int], threshold: float, limit: int) -> list[int]:
    chosen: list[int] = []
    free = torch.ones(len(ious), dtype=torch.bool)
    close = (ious > threshold).cpu()
    for box in order:
        if len(chosen) == limit:
            break
        if free[box]:
            chosen.append(box)
            free &= ~close[box]
    return chosen


def _overlaps(boxes: Tensor, centred: bool) -> Tensor:
    """Intersection over union of all pairs; corners may be given in either order."""
    if centred:  # x, y, width, height
        first, second = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    else:
        first, second = torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])
    both = torch.minimum(second[:, None], second) - torch.maximum(first[:, None], first)
    common = both.clamp(min=0).prod(-1)
    area = (second - first).prod(-1)
    union = area[:, None] + area - common
    return torch.where(union > 0, common / union, 0)
