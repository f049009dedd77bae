"""Fits raw arrays to a model's inputs: shape and type are checked once, values while they stream by."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.data.source import Column, nearest
from deploy.errors import DataError, UsageError
from deploy.spec.tensors import Normalisation, TensorSpec

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Names:
    """Which array plays which role. ``targets`` maps a target's key ("" for plain ``y``) to its array."""

    feeds: tuple[str, ...]
    targets: Mapping[str, str]
    groups: str | None


def assign(
    origin: str, columns: Mapping[str, Column], inputs: Sequence[TensorSpec], labels: str, groups: str
) -> Names:
    """Give each array its role. Raises DataError for a missing input, or an array that has no role."""
    wanted = tuple(spec.name for spec in inputs)
    for name in wanted:
        if name not in columns:
            free = [c for c in columns if c not in wanted]
            raise DataError(
                f"{origin}: no array for the model's input '{name}'; found {_listed(columns)}",
                hint=f"{nearest(name, free)}save it under the input's name: np.savez(path, {name}=samples)",
            )
    targets: dict[str, str] = {}
    group: str | None = None
    for name in columns:
        if name in wanted:
            continue
        if name == labels:
            targets[""] = name
        elif name.startswith(f"{labels}."):
            targets[name.removeprefix(f"{labels}.")] = name
        elif name == groups:
            group = name
        else:
            raise DataError(
                f"{origin}: array '{name}' is neither an input of the model ({', '.join(wanted)}) "
                f"nor a label ('{labels}' or '{labels}.<name>')",
                hint=f"{nearest(name, [*wanted, labels, groups])}remove it, or name the labels under "
                "[data] labels in deploy.toml",
            )
    return Names(wanted, targets, group)


def check_counts(origin: str, columns: Mapping[str, Column]) -> int:
    """The number of samples, the same in every array. Raises DataError."""
    names = list(columns)
    count = columns[names[0]].shape[0]
    for name in names[1:]:
        other = columns[name].shape[0]
        if other != count:
            raise DataError(
                f"{origin}: array '{names[0]}' has {count} samples, but '{name}' has {other}",
                hint="every array needs one entry per sample along its first axis",
            )
    return count


def check_shapes(origin: str, columns: Mapping[str, Column], inputs: Sequence[TensorSpec]) -> None:
    """Every array has the shape of its input behind the first axis, which is free whatever the model says,
    since samples are fed in batches. Free dimensions are not compared: names are made up for unnamed ones,
    so equal names do not prove equal sizes."""
    for spec in inputs:
        found = columns[spec.name].shape
        if not spec.shape:
            raise DataError(
                f"{origin}: input '{spec.name}' is one number for a whole batch, which samples cannot give",
                hint="make it a constant of the model, or build without data (--precision float)",
            )
        expected = ("samples", *spec.shape[1:])
        fits = len(found) == len(expected) and _matches(found, expected)
        if not fits and _turned(found, spec) is None:
            raise DataError(
                f"{origin}: array '{spec.name}' has shape {_shape(found)}, expected {_shape(expected)}",
                hint=_shape_hint(found, expected),
            )


def check_settings(inputs: Sequence[TensorSpec], normalisation: Mapping[str, Normalisation]) -> None:
    """Raises UsageError where a normalisation is given for no input of the model."""
    names = [spec.name for spec in inputs]
    for name in normalisation:
        if name not in names:
            raise UsageError(
                f"normalisation is given for '{name}', which is not an input of the model",
                hint=f"{nearest(name, names)}inputs: {', '.join(names)}",
            )


Convert = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(raw rows, their positions) -> the input as the model takes it. Raises DataError on unfit values."""


def converter(
    origin: str, spec: TensorSpec, column: Column, normalisation: Normalisation | None, *, image: bool
) -> Convert:
    """How the raw array becomes the input: cast, normalised unless the graph does that, values checked.

    Allowed are the same type; float to float of another width (values must stay finite); integer to integer,
    and float to integer (values must fit and be whole); and integer to float where a normalisation says how
    codes become numbers, or where the data are images. For inputs whose graph normalises, NCHW samples become
    NHWC and the other way round where only that fits the shape. Raises DataError for any other pair, and
    where channels cannot be matched.
    """
    order = _turned(column.shape, spec)
    make = _maker(origin, spec, column, normalisation, image=image)
    if order is None:
        return make
    return lambda rows, ids: np.ascontiguousarray(make(rows, ids).transpose(order))


def _turned(found: tuple[int, ...], spec: TensorSpec) -> tuple[int, ...] | None:
    """The permutation that makes samples of the other channel order fit; None where they fit, or nothing
    does, or where the user never asked that the graph take images in another form than the model."""
    if not spec.folded or spec.layout == "any" or len(found) != 4 or len(spec.shape) != 4:
        return None
    order = (0, 2, 3, 1) if spec.layout == "NHWC" else (0, 3, 1, 2)
    expected = ("samples", *spec.shape[1:])
    turned = tuple(found[axis] for axis in order)
    return order if _matches(turned, expected) and not _matches(found, expected) else None


def _maker(
    origin: str, spec: TensorSpec, column: Column, normalisation: Normalisation | None, *, image: bool
) -> Convert:
    if spec.raw:
        return _pixels(origin, spec, column)
    want, found = _dtype(origin, spec), column.dtype
    apply = normalisation is not None and not normalisation.folded and not normalisation.identity
    if found.kind in "ui" and want.kind == "f" and (normalisation is not None or image):
        check = False  # integers are finite, and channels are sane
    elif found.kind == "f" and want.kind == "f":
        check = True
    elif found.kind in "uif" and want.kind in "ui":
        check = not np.can_cast(found, want)
    elif found == want:
        check = False
    else:
        raise DataError(
            f"{origin}: array '{spec.name}' is {found}, but the model's input takes {want}",
            hint=_dtype_hint(spec.name, found, want),
        )
    if found.newbyteorder("=") != want and not image:
        _LOG.info("%s: array '%s' is %s and read as %s", origin, spec.name, found, want)
    if apply and want.kind != "f":
        raise DataError(
            f"{origin}: input '{spec.name}' takes {want}, which cannot hold normalised values",
            hint=f"remove [input.{spec.name}] normalisation, or mark it as folded",
        )
    affine = _affine(origin, spec, column, normalisation) if apply and normalisation else None

    def convert(rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        if found.kind == "f" and (check or want.kind != "f"):
            check_finite(origin, spec.name, rows, ids)
        if want.kind in "ui" and found.kind == "f":
            _check_whole(origin, spec.name, rows, ids, f"the model's input takes {want}")
        if want.kind in "ui" and check:
            _check_fits(origin, spec.name, rows, ids, want)
        if spec.table_rows is not None:
            _check_ids(origin, spec.name, rows, ids, spec.table_rows)
        with np.errstate(over="ignore"):
            if affine is None:
                values = rows.astype(want, copy=False)
            else:
                scale, mean, std = affine
                values = ((rows.astype(np.float32) * scale - mean) / std).astype(want, copy=False)
        if check and want.kind == "f" and (affine is not None or found.itemsize > want.itemsize):
            check_finite(origin, spec.name, values, ids, made=f"as {want}")
        return values

    return convert


def _pixels(origin: str, spec: TensorSpec, column: Column) -> Convert:
    """Pixels from 0 to 255 as uint8, or less 128 as int8. What is int8 already is taken for such codes."""
    found = column.dtype
    if found.kind not in "uif":
        raise DataError(
            f"{origin}: array '{spec.name}' is {found}, but the artifact takes pixels as {spec.dtype}",
            hint="save them as uint8, from 0 to 255",
        )

    def convert(rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        if found == np.int8 and spec.dtype == "int8":
            return rows
        if found != np.uint8:
            if found.kind == "f":
                check_finite(origin, spec.name, rows, ids)
                _check_whole(origin, spec.name, rows, ids, "the artifact takes pixels")
            _check_fits(origin, spec.name, rows, ids, np.dtype(np.uint8))
            rows = rows.astype(np.uint8)
        return rows if spec.dtype == "uint8" else (rows ^ np.uint8(128)).view(np.int8)

    return convert


def _check_whole(origin: str, name: str, rows: np.ndarray, ids: np.ndarray, wants: str) -> None:
    bad = (rows != np.floor(rows)).reshape(len(rows), -1)
    if not bad.any():
        return
    row = int(np.argmax(bad.any(axis=1)))
    value = float(rows.reshape(len(rows), -1)[row][bad[row]][0])
    raise DataError(
        f"{origin}: array '{name}' holds {value:g} in sample {int(ids[row])}, but {wants}, whole numbers",
        hint="give pixels as they are, from 0 to 255: the graph normalises them"
        if "pixels" in wants
        else "save the integers that are meant; rounding is not done for you",
    )


def _check_ids(origin: str, name: str, rows: np.ndarray, ids: np.ndarray, table: int) -> None:
    """ONNX counts negative ids from the table's end."""
    flat = rows.reshape(len(rows), -1)
    bad = ((flat >= table) | (flat < -table)).any(axis=1)
    if not bad.any():
        return
    row = int(np.argmax(bad))
    largest = int(flat.max()) if flat.max() >= table else int(flat.min())
    raise DataError(
        f"{origin}: input '{name}' holds the id {largest}, but its table in the model has {table} rows "
        f"(first in sample {int(ids[row])})",
        hint=f"ids run from 0 to {table - 1}: were the data made with this model's vocabulary?",
    )


def check_finite(origin: str, name: str, rows: np.ndarray, ids: np.ndarray, *, made: str = "") -> None:
    """Raises DataError naming the first sample that holds NaN or infinity."""
    if np.isfinite(rows).all():
        return
    bad = ~np.isfinite(rows.reshape(len(rows), -1))
    row = int(np.argmax(bad.any(axis=1)))
    value = rows.reshape(len(rows), -1)[row][bad[row]][0]
    kind = "NaN" if np.isnan(value) else "infinity"
    count = int(bad[row].sum())
    raise DataError(
        f"{origin}: array '{name}' {f'{made} ' if made else ''}holds {kind} in sample {int(ids[row])} "
        f"({count} of {bad.shape[1]} values)",
        hint="remove or repair these samples" if not made else "the values are too large for that type",
    )


def _check_fits(origin: str, name: str, rows: np.ndarray, ids: np.ndarray, want: np.dtype) -> None:
    low, high = int(np.iinfo(want).min), int(np.iinfo(want).max)
    if int(rows.min()) >= low and int(rows.max()) <= high:
        return
    for row, sample in zip(rows, ids, strict=True):
        for value in (int(row.min()), int(row.max())):
            if not low <= value <= high:
                raise DataError(
                    f"{origin}: array '{name}' holds {value} in sample {int(sample)}, "
                    f"which does not fit the input's type {want}",
                    hint=f"the model takes values from {low} to {high}",
                )


Affine = tuple[np.ndarray, np.ndarray, np.ndarray]


def _affine(origin: str, spec: TensorSpec, column: Column, normalisation: Normalisation) -> Affine:
    """Scale, mean and std as float32, shaped to meet the channels of (samples, ...) arrays."""
    channels = max(len(normalisation.mean), len(normalisation.std))
    shape = [1] * len(column.shape)
    if channels > 1:
        axis = _channel_axis(spec, column.shape, channels)
        if axis is None:
            raise DataError(
                f"{origin}: input '{spec.name}' is normalised with {channels} channels, but array shape "
                f"{_shape(column.shape)} (layout {spec.layout}) has no one axis of that size",
                hint=f"correct mean and std, or set [input.{spec.name}] layout to NCHW or NHWC",
            )
        shape[axis] = channels
    mean, std = (
        np.broadcast_to(np.asarray(v, np.float32), channels).reshape(shape)
        for v in (normalisation.mean, normalisation.std)
    )
    return np.asarray(normalisation.scale, np.float32), mean, std


def _channel_axis(spec: TensorSpec, shape: tuple[int, ...], channels: int) -> int | None:
    if len(shape) < 2:
        return None
    if spec.layout == "any":
        axes = [axis for axis in {1, len(shape) - 1} if shape[axis] == channels]
        return axes[0] if len(axes) == 1 else None
    axis = 1 if spec.layout == "NCHW" else len(shape) - 1
    return axis if shape[axis] == channels else None


def _dtype(origin: str, spec: TensorSpec) -> np.dtype:
    try:
        return np.dtype(spec.dtype)
    except TypeError as e:
        raise DataError(
            f"{origin}: the model's input '{spec.name}' has type {spec.dtype}, which no array can hold",
            hint="export the model with a float32 input",
        ) from e


def _dtype_hint(name: str, found: np.dtype, want: np.dtype) -> str:
    if found.kind in "ui" and want.kind == "f":
        return (
            f"say how codes become numbers under [input.{name}] normalisation in deploy.toml "
            f"(for pixels: scale = 0.00392156862745098), or save the array as {want}"
        )
    return f"save the array as {want}: {name}.astype(np.{want})"


def _shape_hint(found: tuple[int, ...], expected: tuple[int | str, ...]) -> str:
    if len(found) == len(expected) - 1:
        return "the first axis must be samples; for one sample save array[np.newaxis]"
    if len(found) == len(expected) == 4 and _matches((found[0], found[3], *found[1:3]), expected):
        return "the data are NHWC and the model takes NCHW: save array.transpose(0, 3, 1, 2)"
    if len(found) == len(expected) == 4 and _matches((found[0], *found[2:], found[1]), expected):
        return "the data are NCHW and the model takes NHWC: save array.transpose(0, 2, 3, 1)"
    return "the array must be ready for the model: first axis samples, the rest as the input's shape"


def _matches(found: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    return all(isinstance(want, str) or size == want for size, want in zip(found, expected, strict=True))


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _listed(columns: Mapping[str, Column]) -> str:
    return ", ".join(f"'{name}'" for name in columns)
