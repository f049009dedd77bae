"""What is measured by PyTorch on an accelerator: classes of kernels at sizes of real networks.

Nothing here needs PyTorch. Counts are those of `deploy/spec/overlay.py`, in elements first, as bytes follow
from the precision.
"""

from __future__ import annotations

from dataclasses import dataclass

from deploy.spec.overlay import KernelClass
from deploy.spec.tensors import Precision

BYTES: dict[Precision, int] = {"float": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
"""Of one element, in the precisions that are measured."""
_FLOATS: tuple[Precision, ...] = ("float", "fp16", "bf16")
_LARGEST_ALIGN = 64
_QUICK = 3
"""A quick survey takes the first sizes of each class: the lists begin small, large, in between."""


@dataclass(frozen=True)
class Point:
    """One kernel at one size. ``sizes`` are the arguments of the function that made the point, ``moved`` the
    elements that it reads and writes."""

    op: KernelClass
    sizes: tuple[int, ...]
    shape: str
    macs: int
    moved: int
    depth: int
    align: int

    def bytes(self, precision: Precision) -> int:
        """What it reads and writes in that precision; outputs that are wider are counted as if they were not,
        as the kernels of a network would round them."""
        return self.moved * BYTES[precision]


def conv(op: KernelClass, batch: int, channels: int, side: int) -> Point:
    """A convolution that keeps its shape: 3x3, 1x1 (``pointwise``) or 3x3 on each channel (``depthwise``).

    >>> conv("pointwise", 1, 64, 8).macs
    262144
    """
    kernel = 1 if op == "pointwise" else 3
    per_group = 1 if op == "depthwise" else channels
    pixels = batch * side * side
    depth = per_group * kernel * kernel
    return Point(
        op=op,
        sizes=(batch, channels, side),
        shape=f"{kernel}x{kernel}, {batch} x {channels} channels, {side}x{side}",
        macs=pixels * channels * depth,
        moved=2 * pixels * channels + channels * depth,
        depth=depth,
        align=_align(channels),
    )


def gemm(rows: int, depth: int, columns: int) -> Point:
    """A product with a constant matrix."""
    return Point(
        op="gemm",
        sizes=(rows, depth, columns),
        shape=f"{rows}x{depth} by {depth}x{columns}",
        macs=rows * depth * columns,
        moved=rows * depth + depth * columns + rows * columns,
        depth=depth,
        align=_align(depth, columns),
    )


def batched(batch: int, rows: int, depth: int, columns: int) -> Point:
    """Products of two activations, as in attention."""
    return Point(
        op="batched",
        sizes=(batch, rows, depth, columns),
        shape=f"{batch} of {rows}x{depth} by {depth}x{columns}",
        macs=batch * rows * depth * columns,
        moved=batch * (rows * depth + depth * columns + rows * columns),
        depth=depth,
        align=_align(depth, columns),
    )


def elementwise(count: int) -> Point:
    """The sum of two tensors."""
    return Point("elementwise", (count,), f"add {count}", 0, 3 * count, 1, 1)


def softmax(rows: int, columns: int) -> Point:
    """Over rows."""
    return Point("softmax", (rows, columns), f"{rows}x{columns}", 0, 2 * rows * columns, columns, 1)


def norm(rows: int, columns: int) -> Point:
    """Layer normalisation of rows, with scale and bias."""
    moved = 2 * rows * columns + 2 * columns
    return Point("norm", (rows, columns), f"layer norm {rows}x{columns}", 0, moved, columns, 1)


def _align(*channels: int) -> int:
    return min(_LARGEST_ALIGN, *(size & -size for size in channels))


# fmt: off
_CONV = [
    (1, 64, 56), (16, 256, 14), (1, 256, 14), (1, 16, 32), (1, 32, 112), (1, 128, 28), (1, 512, 7),
    (1, 60, 56), (16, 64, 56), (64, 128, 28), (16, 512, 7),
]
_POINTWISE = [
    (1, 64, 56), (16, 256, 28), (1, 512, 14), (1, 16, 32), (1, 256, 28), (1, 1024, 7), (1, 60, 28),
    (16, 64, 56), (64, 512, 14),
]
_DEPTHWISE = [
    (1, 32, 112), (16, 144, 56), (1, 384, 14), (1, 16, 32), (1, 144, 56), (1, 960, 7), (64, 384, 14),
]
_GEMM = [
    (32, 768, 768), (2048, 2048, 2048), (197, 768, 3072), (1, 1024, 1024), (1, 4096, 4096), (32, 128, 128),
    (196, 100, 100), (197, 3072, 768), (512, 1024, 4096), (4096, 4096, 4096),
]
_BATCHED = [
    (12, 64, 64, 64), (96, 197, 64, 197), (12, 197, 64, 197), (12, 197, 197, 64), (3, 99, 64, 99),
    (128, 512, 64, 512), (128, 512, 512, 64),
]
# fmt: on
_ELEMENTWISE = [2**16, 2**24, 2**20, 2**12, 2**18, 2**22, 2**26]
_SOFTMAX = [(12 * 64, 64), (128 * 512, 512), (12 * 197, 197), (1, 1000), (96 * 197, 197)]
_NORM = [(197, 768), (64 * 512, 1024), (64, 192), (16 * 197, 768), (1, 1024)]


def points(*, quick: bool, most: int | None = None) -> list[tuple[Point, Precision]]:
    """Everything to measure, in order. ``most`` leaves out what takes a slow device too long: points of more
    MACs, or that move more elements."""
    return [
        (point, precision)
        for sizes in _sizes()
        for point in [p for p in sizes if most is None or max(p.macs, p.moved) <= most][
            : _QUICK if quick else None
        ]
        for precision in ((*_FLOATS, "int8", "fp8") if point.op == "gemm" else _FLOATS)
    ]


def _sizes() -> list[list[Point]]:
    """By class."""
    return [
        [conv("conv", *size) for size in _CONV],
        [conv("pointwise", *size) for size in _POINTWISE],
        [conv("depthwise", *size) for size in _DEPTHWISE],
        [gemm(*size) for size in _GEMM],
        [batched(*size) for size in _BATCHED],
        [elementwise(size) for size in _ELEMENTWISE],
        [softmax(*size) for size in _SOFTMAX],
        [norm(*size) for size in _NORM],
    ]
