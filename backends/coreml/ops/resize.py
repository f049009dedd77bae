"""Resize of images: MIL's ``resize`` where it samples as ONNX says, else a product with a matrix.

Every linear resize is such a product (a row of weights for each new place), and every nearest one a choice of
places, so what MIL's sampling modes do not say is exact too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter
from backends.coreml.ops.index import unchecked
from backends.coreml.ops.shape import ints
from backends.coreml.optable import OpTable
from deploy.adapter.optable import Unsupported

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Var

ops = OpTable()

_ROUNDED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@ops.lower("Resize", "Upsample")
def resize(node: ir.Node, out: Emitter) -> None:
    x = node.inputs[0]
    sizes, wanted = out.fixed(x), out.fixed(node.outputs[0])
    how = node.attributes.get_string("mode", "nearest")
    if how not in ("nearest", "linear", "cubic"):
        raise Unsupported(f"in mode '{how}'; there are nearest, linear and cubic")
    if node.attributes.get_int("antialias", 0) or node.attributes.get_int("exclude_outside", 0):
        raise Unsupported("with antialias or exclude_outside")
    var, changed = out.read(x), [axis for axis in range(len(sizes)) if sizes[axis] != wanted[axis]]
    if not changed:
        out.emit(node, "identity", x=var)
        return
    scales = _scales(node, out, sizes, wanted)
    if _is_images(node, how, changed, sizes, wanted, scales) and out.level >= 17:
        out.emit(
            node,
            "resize",
            x=var,
            shape=ints(wanted[-2:]),
            resized_dims=np.uint32(2),
            interpolation_mode="LINEAR",
            sampling_mode=_SAMPLED[_places(node)],
        )
        return
    for axis in changed:
        places = _where(node, wanted[axis], sizes[axis], scales[axis])
        if how == "nearest":
            rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
            picked = np.clip(_ROUNDED[rounding](places), 0, sizes[axis] - 1)
            var = out.op("gather", "", x=var, indices=ints(picked), axis=np.int32(axis), **unchecked(out))
        else:
            cubic = node.attributes.get_float("cubic_coeff_a", -0.75) if how == "cubic" else None
            var = _product(out, var, axis, _weights(places, sizes[axis], cubic), len(sizes))
    out.emit(node, "identity", x=var)


_SAMPLED = {
    "align_corners": "STRICT_ALIGN_CORNERS",
    "half_pixel": "UNALIGN_CORNERS",
    "pytorch_half_pixel": "UNALIGN_CORNERS",
}


def _places(node: ir.Node) -> str:
    default = "asymmetric" if node.op_type == "Upsample" else "half_pixel"
    return node.attributes.get_string("coordinate_transformation_mode", default)


def _is_images(
    node: ir.Node,
    how: str,
    changed: list[int],
    sizes: tuple[int, ...],
    wanted: tuple[int, ...],
    scales: list[float],
) -> bool:
    """Whether MIL's own linear resize of the last two axes is what is meant."""
    rank = len(sizes)
    last = all(axis >= rank - 2 for axis in changed)
    whole = all(
        abs(scales[axis] * sizes[axis] - wanted[axis]) < 1e-6 and wanted[axis] > 1 for axis in changed
    )
    return how == "linear" and rank == 4 and last and whole and _places(node) in _SAMPLED


def _scales(node: ir.Node, out: Emitter, sizes: tuple[int, ...], wanted: tuple[int, ...]) -> list[float]:
    """By how much each axis grows, as it is given; else by the sizes."""
    given = out.operand(node, 1 if node.op_type == "Upsample" else 2)
    scales = [new / old for new, old in zip(wanted, sizes, strict=True)]
    if given is None or not (numbers := out.numbers(given, "scales")).size:
        return scales
    axes = node.attributes.get_ints("axes", ()) or range(len(sizes))
    for axis, scale in zip(axes, numbers, strict=True):
        scales[axis % len(sizes)] = float(scale)
    return scales


def _where(node: ir.Node, count: int, size: int, scale: float) -> np.ndarray:
    """At which place of the old axis each new one lies (ONNX Resize-19)."""
    at, mode = np.arange(count, dtype=np.float64), _places(node)
    length = scale * size
    if mode == "half_pixel":
        return (at + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - count / length) + (at + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (at + 0.5) / scale - 0.5 if length > 1 else np.zeros(count)
    if mode == "align_corners":
        return at * (size - 1) / (length - 1) if length != 1 else np.zeros(count)
    if mode == "asymmetric":
        return at / scale
    raise Unsupported(f"places by '{mode}'")


def _weights(places: np.ndarray, size: int, cubic: float | None) -> np.ndarray:
    """(new, old): how much of each old place goes into each new one."""
    first = np.floor(places).astype(np.int64)
    ratio = places - first
    shares = {0: 1 - ratio, 1: ratio}
    if cubic is not None:
        shares = {tap: _cubic(np.abs(ratio - tap), cubic) for tap in (-1, 0, 1, 2)}
    matrix = np.zeros((len(places), size))
    for tap, share in shares.items():
        np.add.at(matrix, (np.arange(len(places)), np.clip(first + tap, 0, size - 1)), share)
    return matrix.astype(np.float32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel (1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.asarray(np.where(distance <= 1, near, np.where(distance < 2, far, 0.0)))


def _product(out: Emitter, var: Var, axis: int, matrix: np.ndarray, rank: int) -> Var:
    """The matrix along an axis, which is the last one meanwhile."""
    perm = [a for a in range(rank) if a != axis] + [axis]
    turned = out.op("transpose", x=var, perm=ints(perm)) if axis != rank - 1 else var
    product = out.op("matmul", x=turned, y=np.ascontiguousarray(matrix.T))
    back = ints(np.argsort(perm))
    return out.op("transpose", x=product, perm=back) if axis != rank - 1 else product
