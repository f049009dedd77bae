"""Images read at computed places: a sum of gathered pixels, each with its share."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES, integers
from backends.tflite.layout import channels_last, plain
from backends.tflite.network import Options
from backends.tflite.optable import OpTable
from backends.tflite.terms import Term
from deploy.adapter.optable import Unsupported

ops = OpTable()

_WHOLE = 2**24
"""Up to here float32 holds every whole number: places are computed in it."""
_CUBIC = -0.75

Tap = tuple[Term, Term | None]
"""A whole place and its share; None for all of it."""


@ops.lower("GridSample")
def grid_sample(node: ir.Node, out: Emitter) -> None:
    """The places are (N, H, W, 2), x before y, from -1 to 1; of volumes (N, D, H, W, 3)."""
    image, grid, result = node.inputs[0], node.inputs[1], node.outputs[0]
    shape, places = out.shape(image), out.shape(grid)
    if not 4 <= len(shape) <= 5:
        raise Unsupported("only images and volumes are sampled: four or five axes")
    batch, channels, *sizes = shape
    if -1 in (channels, *sizes, *places[1:]) or (batch < 0) != (places[0] < 0):
        raise Unsupported(f"sampling of what has a free size: {FIX_SIZES}")
    if math.prod(sizes) >= _WHOLE:
        raise Unsupported(f"{math.prod(sizes)} pixels, more than float32 can count")
    points, laid = math.prod(places[1:-1]), channels_last(len(shape))
    pixels = Term(out, out.read(image, laid)).reshaped((batch, math.prod(sizes), channels))
    read = Term(out, out.read(grid, plain(len(shape)))).reshaped((batch, points, len(sizes)))
    along = [
        _taps(node, _coordinate(node, _column(read, len(sizes) - 1 - axis), size), size)
        for axis, size in enumerate(sizes)
    ]
    total: Term | None = None
    for corner in itertools.product(*along):
        place = corner[0][0]
        for size, (further, _) in zip(sizes[1:], corner[1:], strict=True):
            place = place * float(size) + further
        index = place.reshaped((batch, points)).cast("int32")
        options: Options = ("GatherOptions", {"axis": 1, "batchDims": 1})
        made = (batch, points, channels)
        value = Term(out, out.step("GATHER", [pixels.index, index.index], made, options, version=5))
        for _, share in corner:
            value = value if share is None else value * share
        total = value if total is None else total + value
    assert total is not None
    wanted = out.numbers(np.array((batch, *places[1:-1], channels), np.int32), f"{out.node}/shape")
    out.emit("RESHAPE", [total.index, wanted], result, order=laid, version=1)


def _column(read: Term, place: int) -> Term:
    """(N, points, 1)."""
    out = read.out
    bounds = ([0, 0, place], [0, 0, place + 1], [1, 1, 1])
    given = [out.numbers(np.array(bound, np.int32), f"{out.node}/column") for bound in bounds]
    options: Options = ("StridedSliceOptions", {"beginMask": 3, "endMask": 3})
    return Term(out, out.step("STRIDED_SLICE", [read.index, *given], (*read.shape[:2], 1), options))


def _coordinate(node: ir.Node, at: Term, size: int) -> Term:
    """From -1 to 1 becomes a place among the pixels, inside of them where the mode says so."""
    corners = bool(node.attributes.get_int("align_corners", 0))
    place = at * ((size - 1 if corners else size) / 2) + (size - 1) / 2
    cubic = node.attributes.get_string("mode", "linear") in ("cubic", "bicubic")
    return place if cubic else _inside(node, place, size)


def _inside(node: ir.Node, place: Term, size: int) -> Term:
    padding = node.attributes.get_string("padding_mode", "zeros")
    if padding == "zeros":
        return place
    if padding == "reflection":
        corners = bool(node.attributes.get_int("align_corners", 0))
        low, span = (0.0, float(size - 1)) if corners else (-0.5, float(size))
        if span == 0:
            return place * 0.0
        turned = (place - low).apply("FLOOR_MOD", 2 * span)
        place = (turned - span).abs() * -1.0 + (span + low)
    return place.at_least(0.0).at_most(float(size - 1))


def _taps(node: ir.Node, place: Term, size: int) -> list[Tap]:
    """Pixels along one axis that make the one at ``place``."""
    mode = node.attributes.get_string("mode", "linear")
    taps: list[Tap]
    if mode == "nearest":
        taps = [(place.apply("ROUND"), None)]
    elif mode in ("linear", "bilinear"):
        low = place.apply("FLOOR")
        high = place - low
        taps = [(low, 1.0 - high), (low + 1.0, high)]
    else:
        low = place.apply("FLOOR")
        part = place - low
        rest = 1.0 - part
        shares = (_far(part + 1.0), _near(part), _near(rest), _far(rest + 1.0))
        taps = [
            (_inside(node, low + float(step), size), share)
            for step, share in zip((-1, 0, 1, 2), shares, strict=True)
        ]
    return [_known_pixel(node, *tap, size) for tap in taps]


def _known_pixel(node: ir.Node, place: Term, share: Term | None, size: int) -> Tap:
    """A place outside is moved to the edge, and counts nothing where zeros lie outside."""
    inside = place.at_least(0.0).at_most(float(size - 1))
    if node.attributes.get_string("padding_mode", "zeros") != "zeros":
        return inside, share
    counts = 1.0 - (place - inside).abs().at_most(1.0)
    return inside, counts if share is None else share * counts


def _near(distance: Term) -> Term:
    return (distance * (_CUBIC + 2) - (_CUBIC + 3)) * distance * distance + 1.0


def _far(distance: Term) -> Term:
    return ((distance * _CUBIC - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC


@ops.lower("AffineGrid")
def affine_grid(node: ir.Node, out: Emitter) -> None:
    """Places of an upright grid times the matrices (N, 2, 3), or (N, 3, 4) of volumes."""
    theta, result = node.inputs[0], node.outputs[0]
    sizes = integers(out, node, 1, "sizes")
    assert sizes is not None
    corners = bool(node.attributes.get_int("align_corners", 0))
    axes = np.meshgrid(*(_upright(size, corners=corners) for size in sizes[2:]), indexing="ij")
    columns = [*reversed(axes), np.ones_like(axes[0])]
    base = np.stack(columns, -1).reshape(1, -1, len(columns)).astype(np.float32)
    batch = out.shape(theta)[0]
    read = [out.numbers(base, f"{out.node}/grid"), out.read(theta, plain(3))]
    options: Options = ("BatchMatMulOptions", {"adjY": True})
    made = out.step("BATCH_MATMUL", read, (batch, base.shape[1], len(axes)), options)
    shape = out.numbers(np.array((batch, *sizes[2:], len(axes)), np.int32), f"{out.node}/shape")
    out.emit("RESHAPE", [made, shape], result, version=1)


def _upright(size: int, *, corners: bool) -> np.ndarray:
    if corners:
        return np.linspace(-1, 1, size) if size > 1 else np.zeros(1)
    return (2 * np.arange(size) + 1) / size - 1
