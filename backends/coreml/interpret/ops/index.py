"""Gathering and scattering by computed places. Places that do not exist are refused. Negative ones count from
the end until iOS 16; since there is ``validate_indices``, whatever it says, they do not exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Refused, axis_of, sized

_MODES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum,
    "min": np.minimum,
}  # fmt: skip


def _places(call: Call) -> np.ndarray:
    found = call.array("indices")
    if found.dtype.kind not in "iu":
        raise Refused("'indices' are no whole numbers")
    if call.has("validate_indices") and found.size and found.min() < 0:
        raise Refused(f"place {int(found.min())}, and from iOS 17 on negative ones are none")
    return found.astype(np.int64)


def gather(call: Call) -> np.ndarray:
    x, places, batch = call.array("x"), _places(call), call.integer("batch_dims", 0)
    axis = axis_of(call.integer("axis", 0), x.ndim)
    if not 0 <= batch <= min(axis, places.ndim) or x.shape[:batch] != places.shape[:batch]:
        raise Refused(f"{batch} batch axes")
    shape = sized([*x.shape[:axis], *places.shape[batch:], *x.shape[axis + 1 :]], x.itemsize)
    if batch == 0:
        return np.take(x, places, axis)
    lead = int(np.prod(x.shape[:batch]))
    parts = zip(x.reshape(lead, *x.shape[batch:]), places.reshape(lead, *places.shape[batch:]), strict=True)
    return np.stack([np.take(a, p, axis - batch) for a, p in parts]).reshape(shape)


def gather_along_axis(call: Call) -> np.ndarray:
    x, places = call.array("x"), _places(call)
    return np.take_along_axis(x, places, axis_of(call.integer("axis", 0), x.ndim))


def gather_nd(call: Call) -> np.ndarray:
    x, places, batch = call.array("x"), _places(call), call.integer("batch_dims", 0)
    deep = places.shape[-1] if places.ndim else 0
    if not 0 <= batch < places.ndim or batch + deep > x.ndim or x.shape[:batch] != places.shape[:batch]:
        raise Refused(f"places {list(places.shape)} of {list(x.shape)}")
    sized([*places.shape[:-1], *x.shape[batch + deep :]], x.itemsize)
    ahead = np.ix_(*(np.arange(n) for n in places.shape[:batch]))
    rest = (1,) * (places.ndim - 1 - batch)
    first = tuple(index.reshape(*index.shape, *rest) for index in ahead)
    found: np.ndarray = x[(*first, *np.moveaxis(places, -1, 0))]
    return found


def _scattered(
    data: np.ndarray, where: tuple[np.ndarray | slice, ...], updates: np.ndarray, mode: str
) -> np.ndarray:
    y = data.copy()
    if mode == "update":
        y[where] = updates
        return y
    if mode not in _MODES:
        raise Refused(f"mode {mode}")
    compute = _MODES[mode]
    if y.dtype.kind in "iu" and mode == "div":
        raise Refused("a division of whole numbers")
    compute.at(y, where, updates)  # type: ignore[attr-defined]  # they are ufuncs
    return y


def scatter(call: Call) -> np.ndarray:
    data, places, updates = call.array("data"), _places(call), call.array("updates")
    axis = axis_of(call.integer("axis", 0), data.ndim)
    where: tuple[np.ndarray | slice, ...] = (*(slice(None),) * axis, places)
    return _scattered(data, where, updates, call.text("mode", "add"))


def scatter_along_axis(call: Call) -> np.ndarray:
    data, places, updates = call.array("data"), _places(call), call.array("updates")
    axis = axis_of(call.integer("axis", 0), data.ndim)
    if places.ndim != data.ndim:
        raise Refused(f"places of rank {places.ndim} for {data.ndim}")
    grid: list[np.ndarray] = list(np.ogrid[tuple(slice(n) for n in places.shape)])
    grid[axis] = places
    return _scattered(data, tuple(grid), updates, call.text("mode", "add"))


def scatter_nd(call: Call) -> np.ndarray:
    data, places, updates = call.array("data"), _places(call), call.array("updates")
    if places.ndim < 1 or places.shape[-1] > data.ndim:
        raise Refused(f"places {list(places.shape)} of {list(data.shape)}")
    return _scattered(data, tuple(np.moveaxis(places, -1, 0)), updates, call.text("mode", "add"))


def non_zero(call: Call) -> np.ndarray:
    return np.argwhere(call.array("x")).astype(np.int32)


def one_hot(call: Call) -> np.ndarray:
    places, size = _places(call), call.integer("one_hot_vector_size")
    axis = axis_of(call.integer("axis", -1), places.ndim + 1)
    on, off = call.maybe("on_value"), call.maybe("off_value")
    high = np.int32(1) if on is None else on.reshape(-1)[0]
    low = np.int32(0) if off is None else off.reshape(-1)[0]
    sized([*places.shape, size])
    shape = [1] * (places.ndim + 1)
    shape[axis] = size
    return np.where(np.expand_dims(places, axis) == np.arange(size).reshape(shape), high, low)


KERNELS: Mapping[str, Kernel] = {
    "gather": gather, "gather_along_axis": gather_along_axis, "gather_nd": gather_nd, "scatter": scatter,
    "scatter_along_axis": scatter_along_axis, "scatter_nd": scatter_nd, "non_zero": non_zero,
    "one_hot": one_hot,
}  # fmt: skip
