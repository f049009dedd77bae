"""All kernels by operation, joined from the families' tables."""

from __future__ import annotations

from collections.abc import Mapping

from backends.coreml.interpret.call import Kernel, Ready
from backends.coreml.interpret.ops import (
    activation,
    conv,
    elementwise,
    index,
    lists,
    matmul,
    norm,
    pool,
    quant,
    recurrent,
    reduce,
    resize,
    shape,
)

_FAMILIES = (
    elementwise, activation, conv, matmul, pool, norm, reduce, shape, index, resize, recurrent, quant, lists,
)  # fmt: skip


def _joined() -> dict[str, Kernel]:
    table: dict[str, Kernel] = {}
    for family in _FAMILIES:
        if twice := table.keys() & family.KERNELS.keys():
            raise AssertionError(f"two kernels for {sorted(twice)}")
        table.update(family.KERNELS)
    return table


KERNELS: Mapping[str, Kernel] = _joined()

READY: Mapping[str, Ready] = {
    **elementwise.READY, **activation.READY, **matmul.READY, **quant.READY,
}  # fmt: skip
"""Kernels of which most is known before the first run, by operation."""

EXACT = frozenset((
    *(shape.KERNELS.keys() - {"range_1d"}), "gather", "gather_along_axis", "gather_nd", "identity", "select",
    "relu", "max_pool", "maximum", "minimum", "abs", "reduce_max", "reduce_min", "topk",
    "upsample_nearest_neighbor", "resize_nearest_neighbor", "list_read", "list_gather",
))  # fmt: skip
"""Operations whose results are numbers that they read: nothing is left to round."""
