"""Input normalisation as part of the graph, so that the artifact takes raw numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from deploy.errors import UsageError
from deploy.graph.edit import add_initializer, fresh_name, insert_before, names
from deploy.spec.tensors import Normalisation

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def fold_normalisation(model: ir.Model, normalisation: Mapping[str, Normalisation]) -> ir.Model:
    """A copy whose inputs ``name`` are raw: x * (scale / std) - mean / std comes first, per channel (axis 1).

    Raises UsageError for an unknown input, one that takes no floats and one that is no batch of channels.
    """
    copy = model.clone()
    inputs = {value.name: value for value in copy.graph.inputs}
    first = next(iter(copy.graph))
    for name, numbers in normalisation.items():
        value = inputs.get(name)
        if value is None:
            raise UsageError(
                f"[input.{name}]: the model has no input '{name}'",
                hint="its inputs: " + ", ".join(str(n) for n in inputs),
            )
        if value.dtype not in _FLOATS:
            raise UsageError(
                f"[input.{name}]: {value.dtype} cannot be normalised inside the graph",
                hint="leave `folded` out to normalise while reading",
            )
        rank = len(value.shape) if value.shape is not None else 0
        std = np.asarray(numbers.std, np.float64)
        mean = np.asarray(numbers.mean, np.float64)
        factor, offset = np.broadcast_arrays(numbers.scale / std, -mean / std)
        channels = factor.size
        if channels > 1 and (rank < 2 or _size(value, 1) not in (channels, None)):
            raise UsageError(
                f"[input.{name}]: {channels} channels of normalisation do not fit shape {value.shape}",
                hint="folding needs channels on axis 1; leave `folded` out to normalise while reading",
            )
        shape = (channels, *[1] * (rank - 2)) if channels > 1 else ()
        taken = names(copy)
        uses = list(value.uses())
        constants = [
            add_initializer(copy, f"{name}/{kind}", array.reshape(shape).astype(value.dtype.numpy()), taken)
            for kind, array in (("factor", factor), ("offset", offset))
        ]
        new = value
        for op, operand, result in zip(("Mul", "Add"), constants, ("scaled", "normalised"), strict=True):
            free = fresh_name(copy, f"{name}/{result}", taken)
            # Before the very first node: whoever reads the input, a body too, comes after.
            new = insert_before(first, op, [new, operand], name=free, output=free).outputs[0]
            new.type, new.shape = value.type, value.shape
        for user, index in uses:
            user.replace_input_with(index, new)
    return copy


def _size(value: ir.Value, axis: int) -> int | None:
    size = value.shape[axis] if value.shape is not None else None
    return size if isinstance(size, int) else None
