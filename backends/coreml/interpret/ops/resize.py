"""Images in other sizes: interpolation along one axis after the other, or at any places."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Refused, sized


def grid(size: int, wanted: int, mode: str) -> np.ndarray:
    """Where results lie on an axis of ``size`` pixels, by the formulas of ``resize_bilinear``'s page."""
    steps = np.arange(wanted, dtype=np.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if wanted == 1:
            found = np.array([0.0 if mode.startswith("STRICT") else (size - 1) / 2])
        else:
            found = steps * (size - 1) / (wanted - 1)
    elif mode == "DEFAULT":
        found = steps * size / wanted
    elif mode == "OFFSET_CORNERS":
        found = (steps + 0.5) * max(1, size - 1) / wanted
    elif mode == "UNALIGN_CORNERS":
        found = (steps + 0.5) * size / wanted - 0.5
    else:
        raise Refused(f"sampling mode {mode}")
    return np.clip(found, 0, size - 1)


def interpolated(x: np.ndarray, axis: int, places: np.ndarray) -> np.ndarray:
    """``x`` between its two pixels next to each of ``places`` on an axis."""
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    weight = (places - low).astype(np.float32).reshape(shape)
    first = x.take(low, axis)
    return first + (x.take(high, axis) - first) * weight


def _image(call: Call) -> np.ndarray:
    x = call.array("x")
    if x.ndim < 2 or 0 in x.shape:
        raise Refused(f"an image {list(x.shape)}")
    return x


def _linear(x: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    sized([*x.shape[:-2], height, width])
    sized([*x.shape[:-2], height, x.shape[-1]])
    x = interpolated(x, x.ndim - 2, grid(x.shape[-2], height, mode))
    return interpolated(x, x.ndim - 1, grid(x.shape[-1], width, mode))


def _nearest(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixel floor(i * size / wanted)."""
    sized([*x.shape[:-2], height, width])
    rows = np.arange(height) * x.shape[-2] // max(height, 1)
    columns = np.arange(width) * x.shape[-1] // max(width, 1)
    return x.take(rows, -2).take(columns, -1)


def _scaled(call: Call, x: np.ndarray) -> tuple[int, int]:
    found = []
    for name, size in zip(("height", "width"), x.shape[-2:], strict=True):
        factor = call.number(f"scale_factor_{name}", 1)
        if not 0 < factor < 2**20:
            raise Refused(f"a factor of {factor}")
        found.append(math.floor(size * factor + 1e-9 * size))
    return found[0], found[1]


def _targets(call: Call) -> tuple[int, int]:
    return call.integer("target_size_height", 1), call.integer("target_size_width", 1)


def upsample_nearest_neighbor(call: Call) -> np.ndarray:
    x = _image(call)
    return _nearest(x, *_scaled(call, x))


def resize_nearest_neighbor(call: Call) -> np.ndarray:
    return _nearest(_image(call), *_targets(call))


def upsample_bilinear(call: Call) -> np.ndarray:
    x = _image(call)
    aligned = call.flag("align_corners", True)
    half = call.flag("half_pixel_centers", not aligned)
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if half else "DEFAULT"
    return _linear(x, *_scaled(call, x), mode)


def resize_bilinear(call: Call) -> np.ndarray:
    return _linear(_image(call), *_targets(call), call.text("sampling_mode", "DEFAULT"))


def resize(call: Call) -> np.ndarray:
    """Of the last axes, by iOS 17's operation; a wanted size of 0 keeps what is there.

    The nearest pixel is that, unlike in the older operations (coremltools' tests: 2 pixels become a, b, b).
    """
    x, wanted, count = _image(call), call.integers("shape"), call.integer("resized_dims")
    if not 0 <= count <= min(len(wanted), x.ndim):
        raise Refused(f"{count} axes of {x.ndim} to {wanted}")
    mode, kind = call.text("sampling_mode", "DEFAULT"), call.text("interpolation_mode", "LINEAR")
    for axis, target in zip(range(x.ndim - count, x.ndim), wanted[len(wanted) - count :], strict=True):
        size = x.shape[axis] if target == 0 else target
        sized([*x.shape[:axis], size, *x.shape[axis + 1 :]])
        places = grid(x.shape[axis], size, mode)
        if kind == "LINEAR":
            x = interpolated(x, axis, places)
        elif kind == "NEAREST_NEIGHBOR":
            x = x.take(np.floor(places + 0.5).astype(np.int64), axis)
        else:
            raise Refused(f"interpolation {kind}")
    return x


def _bilinear(x: np.ndarray, rows: np.ndarray, columns: np.ndarray, fill: float | None) -> np.ndarray:
    """Samples of images [n, c, h, w] at places [n, ...], maybe between pixels.

    What lies outside is ``fill``, of single pixels; the border's without one.
    """
    low_row, low_column = np.floor(rows), np.floor(columns)
    down, right = (rows - low_row).astype(np.float32), (columns - low_column).astype(np.float32)
    total = np.zeros((*rows.shape, x.shape[1]), np.float32)
    for row, by_row in ((low_row, 1 - down), (low_row + 1, down)):
        for column, by_column in ((low_column, 1 - right), (low_column + 1, right)):
            total += _picked(x, row, column, fill) * (by_row * by_column)[..., None]
    return np.moveaxis(total, -1, 1)


def _picked(x: np.ndarray, rows: np.ndarray, columns: np.ndarray, fill: float | None) -> np.ndarray:
    """Pixels of images [n, c, h, w] at whole places [n, ...], with channels last."""
    height, width = x.shape[2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    row, column = (np.clip(p, 0, n - 1).astype(np.int64) for p, n in ((rows, height), (columns, width)))
    image = np.arange(len(x)).reshape(-1, *(1,) * (rows.ndim - 1))
    found: np.ndarray = np.moveaxis(x, 1, -1)[image, row, column]
    return found if fill is None else np.where(inside[..., None], found, np.float32(fill))


def _reflected(places: np.ndarray, low: float, high: float) -> np.ndarray:
    """Places mirrored at both ends until they lie between."""
    span = high - low
    if span <= 0:
        return np.zeros_like(places)
    turned = np.abs(places - low) % (2 * span)
    return np.where(turned > span, 2 * span - turned, turned) + low


def resample(call: Call) -> np.ndarray:
    x, places = _image(call), call.array("coordinates").astype(np.float64)
    if x.ndim != 4 or places.ndim != 4 or places.shape[-1] != 2 or places.shape[0] != x.shape[0]:
        raise Refused(f"places {list(places.shape)} of {list(x.shape)}")
    sized([x.shape[0], x.shape[1], *places.shape[1:3]])
    scale, aligned = call.text("coordinates_mode"), call.flag("align_corners")
    axes = []
    for axis, size in ((1, x.shape[2]), (0, x.shape[3])):
        place = places[..., axis]
        if scale != "unnormalized":
            if scale == "normalized_minus_one_to_one":
                place = (place + 1) / 2
            elif scale != "normalized_zero_to_one":
                raise Refused(f"coordinates mode {scale}")
            place = place * (size - 1) if aligned else place * size - 0.5
        axes.append(_kept(call.text("padding_mode"), place, size))
    fill = call.number("padding_value", 0.0) if call.text("padding_mode") == "constant" else None
    if call.text("sampling_mode") == "nearest":
        return np.moveaxis(_picked(x, np.rint(axes[0]), np.rint(axes[1]), fill), -1, 1)
    return _bilinear(x, axes[0], axes[1], fill)


def _kept(mode: str, place: np.ndarray, size: int) -> np.ndarray:
    """Places on an axis after padding in that way: ``reflection`` does not repeat the border, ``symmetric``
    does, whatever the corners are."""
    if mode == "constant":
        return np.clip(place, -(2.0**30), 2.0**30)
    if mode == "reflection":
        place = _reflected(place, 0, size - 1)
    elif mode == "symmetric":
        place = _reflected(place, -0.5, size - 0.5)
    elif mode != "border":
        raise Refused(f"padding mode {mode}")
    return np.clip(place, 0, size - 1)


def affine(call: Call) -> np.ndarray:
    x, matrix = _image(call), call.array("transform_matrix").astype(np.float64)
    height, width = call.integer("output_height"), call.integer("output_width")
    if x.ndim != 4 or matrix.ndim != 2 or matrix.shape[1] != 6 or matrix.shape[0] not in (1, x.shape[0]):
        raise Refused(f"a matrix {list(matrix.shape)} for {list(x.shape)}")
    sized([*x.shape[:2], height, width])
    down, right = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in (height, width))
    right, down = np.meshgrid(right, down)
    a = np.broadcast_to(matrix, (x.shape[0], 6))[:, :, None, None]
    columns = (a[:, 0] * right + a[:, 1] * down + a[:, 2] + 1) / 2 * (x.shape[3] - 1)
    rows = (a[:, 3] * right + a[:, 4] * down + a[:, 5] + 1) / 2 * (x.shape[2] - 1)
    rows, columns = (np.clip(p, -(2.0**30), 2.0**30) for p in (rows, columns))
    return _bilinear(x, rows, columns, call.number("padding_value", 0.0))


def crop_resize(call: Call) -> np.ndarray:
    """Boxes of images, each in the same size. ``roi`` until iOS 16, ``boxes`` and their images since."""
    x = _image(call)
    height, width = call.integer("target_height", 1), call.integer("target_width", 1)
    old = call.has("roi")
    boxes = call.array("roi" if old else "boxes").astype(np.float64)
    if x.ndim != 4 or boxes.ndim != (5 if old else 2) or boxes.size == 0:
        raise Refused(f"boxes {list(boxes.shape)} of {list(x.shape)}")
    boxes = boxes.reshape(boxes.shape[0], -1)
    of: np.ndarray | None = None
    if old and boxes.shape[1] == 5:
        of, boxes = boxes[:, 0].astype(np.int64), boxes[:, 1:]
    elif not old:
        of = np.array(call.integers("box_indices", range(len(boxes))), np.int64)
    if boxes.shape[1] != 4 or (
        of is not None and (len(of) != len(boxes) or of.min() < 0 or of.max() >= len(x))
    ):
        raise Refused(f"boxes {list(boxes.shape)} of {len(x)} images")
    sized([len(boxes), len(x), x.shape[1], height, width])
    top, left, bottom, right = _corners(call, boxes, x.shape[2:])
    mode, fill = call.text("sampling_mode", "DEFAULT"), call.number("pad_value", 0.0)
    made: list[np.ndarray] = []
    for box in range(len(boxes)):
        rows, columns = (
            _within(top[box], bottom[box], height, mode),
            _within(left[box], right[box], width, mode),
        )
        images = x if of is None else x[of[box] : of[box] + 1]
        shape = (len(images), height, width)
        made.append(
            _box(images, np.broadcast_to(rows[:, None], shape), np.broadcast_to(columns, shape), fill)
        )
    together = np.stack(made)
    return together if old else together[:, 0]


def _box(x: np.ndarray, rows: np.ndarray, columns: np.ndarray, fill: float) -> np.ndarray:
    found = _bilinear(x, rows, columns, None)
    height, width = x.shape[2:]
    inside = (rows >= 0) & (rows <= height - 1) & (columns >= 0) & (columns <= width - 1)
    return np.where(inside[:, None], found, np.float32(fill))


def _corners(call: Call, boxes: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Top, left, bottom and right in pixels."""
    mode = call.text("box_coordinate_mode", "CORNERS_HEIGHT_FIRST")
    first, second, third, fourth = boxes.T * call.number("spatial_scale", 1.0)
    if mode.endswith("WIDTH_FIRST"):
        first, second, third, fourth = second, first, fourth, third
    if mode.startswith("CENTER_SIZE"):
        first, second, third, fourth = (
            first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2,
        )  # fmt: skip
    elif not mode.startswith("CORNERS"):
        raise Refused(f"box coordinate mode {mode}")
    if call.flag("normalized_coordinates"):
        height, width = sizes[0] - 1, sizes[1] - 1
        first, second, third, fourth = first * height, second * width, third * height, fourth * width
    return [np.clip(p, -(2.0**30), 2.0**30) for p in (first, second, third, fourth)]


def _within(start: float, end: float, wanted: int, mode: str) -> np.ndarray:
    """Where results lie between two places: the grid of an axis that has ``end`` as its last pixel."""
    span = end - start
    steps = np.arange(wanted, dtype=np.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if wanted == 1:
            return np.array([start if mode.startswith("STRICT") else start + span / 2])
        return start + steps * span / (wanted - 1)
    if mode == "DEFAULT":
        return start + steps * (span + 1) / wanted
    if mode == "OFFSET_CORNERS":
        return start + (steps + 0.5) * (max(1.0, span) / wanted)
    if mode == "UNALIGN_CORNERS":
        return start + (steps + 0.5) * (span + 1) / wanted - 0.5
    raise Refused(f"sampling mode {mode}")


KERNELS: Mapping[str, Kernel] = {
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "upsample_bilinear": upsample_bilinear, "resize_bilinear": resize_bilinear, "resize": resize,
    "resample": resample, "affine": affine, "crop_resize": crop_resize,
}  # fmt: skip
