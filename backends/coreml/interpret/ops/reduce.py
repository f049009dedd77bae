"""Reductions over axes, running sums, sorting."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Refused, axis_of

_Compute = Callable[[np.ndarray, tuple[int, ...], bool], np.ndarray]


def _over(compute: _Compute) -> Kernel:
    def kernel(call: Call) -> np.ndarray:
        x = call.array("x")
        axes = tuple({axis_of(axis, x.ndim) for axis in call.integers("axes", range(x.ndim))})
        return compute(x, axes or tuple(range(x.ndim)), call.flag("keep_dims"))

    return kernel


def _total(x: np.ndarray, axes: tuple[int, ...], keep: bool) -> np.ndarray:
    return np.asarray(x.sum(axis=axes, keepdims=keep))


def _mean(x: np.ndarray, axes: tuple[int, ...], keep: bool) -> np.ndarray:
    return np.asarray(x.mean(axis=axes, keepdims=keep))


def _log_sum_exp(x: np.ndarray, axes: tuple[int, ...], keep: bool) -> np.ndarray:
    most = x.max(axis=axes, keepdims=True)
    most = np.where(np.isfinite(most), most, 0)
    found = np.log(np.exp(x - most).sum(axis=axes, keepdims=True)) + most
    return np.asarray(found if keep else found.squeeze(axes))


def _arg(find: Callable[..., np.ndarray]) -> Kernel:
    def kernel(call: Call) -> np.ndarray:
        x = call.array("x")
        axis = axis_of(call.integer("axis", -1), x.ndim)
        dtype = np.uint16 if call.text("output_dtype", "int32") == "uint16" else np.int32
        return np.asarray(find(x, axis=axis, keepdims=call.flag("keep_dims"))).astype(dtype)

    return kernel


def cumsum(call: Call) -> np.ndarray:
    x = call.array("x")
    axis = axis_of(call.integer("axis", 0), x.ndim)
    turned = np.flip(x, axis) if call.flag("reverse") else x
    y = np.cumsum(turned, axis=axis, dtype=x.dtype)
    if call.flag("exclusive") and y.shape[axis]:  # moved, not less the last one, which rounds
        lead = (slice(None),) * axis
        y = np.concatenate([np.zeros_like(y[(*lead, slice(1))]), y[(*lead, slice(-1))]], axis)
    return np.flip(y, axis) if call.flag("reverse") else y


def _order(x: np.ndarray, axis: int, ascending: bool) -> np.ndarray:
    """Indices along ``axis`` in order of size; of equal ones the first comes first."""
    if ascending:
        return np.argsort(x, axis=axis, kind="stable")
    turned = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return np.flip(x.shape[axis] - 1 - turned, axis)


def argsort(call: Call) -> np.ndarray:
    x = call.array("x")
    axis = axis_of(call.integer("axis", -1), x.ndim)
    return _order(x, axis, call.flag("ascending")).astype(np.int32)


def topk(call: Call) -> np.ndarray | tuple[np.ndarray, ...]:
    x = call.array("x")
    axis = axis_of(call.integer("axis", -1), x.ndim)
    count = call.integer("k", 1)
    count = x.shape[axis] if count == -1 else count
    if not 0 <= count <= x.shape[axis]:
        raise Refused(f"k = {count} of {x.shape[axis]}")
    places = _order(x, axis, call.flag("ascending")).take(np.arange(count), axis)
    values = np.take_along_axis(x, places, axis)
    if not call.flag("return_indices", True):
        return values
    dtype = np.uint16 if call.text("output_indices_dtype", "int32") == "uint16" else np.int32
    return values, places.astype(dtype)


KERNELS: Mapping[str, Kernel] = {
    "reduce_sum": _over(_total),
    "reduce_mean": _over(_mean),
    "reduce_max": _over(lambda x, axes, keep: np.asarray(x.max(axis=axes, keepdims=keep))),
    "reduce_min": _over(lambda x, axes, keep: np.asarray(x.min(axis=axes, keepdims=keep))),
    "reduce_prod": _over(lambda x, axes, keep: np.asarray(x.prod(axis=axes, keepdims=keep))),
    "reduce_l1_norm": _over(lambda x, axes, keep: _total(np.abs(x), axes, keep)),
    "reduce_l2_norm": _over(lambda x, axes, keep: np.sqrt(_total(np.square(x), axes, keep))),
    "reduce_sum_square": _over(lambda x, axes, keep: _total(np.square(x), axes, keep)),
    "reduce_log_sum": _over(lambda x, axes, keep: np.log(_total(x, axes, keep))),
    "reduce_log_sum_exp": _over(_log_sum_exp),
    "reduce_argmax": _arg(np.argmax),
    "reduce_argmin": _arg(np.argmin),
    "cumsum": cumsum,
    "argsort": argsort,
    "topk": topk,
}
