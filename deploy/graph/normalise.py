"""Input normalisation as part of the graph, so that the artifact takes raw numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from deploy.errors import UsageError
from deploy.graph.edit import add_initializer, insert_before, names
from deploy.spec.tensors import Normalisation


def fold_normalisation(model: ir.Model, normalisation: Mapping[str, Normalisation]) -> ir.Model:
    """A copy whose inputs ``name`` are raw: x * (scale / std) - mean / std comes first, per channel (axis 1).

    Raises UsageError for an unknown input and for one that is not a batch of channels.
    """
    copy = model.clone()
    inputs = {value.name: value for value in copy.graph.inputs}
    for name, numbers in normalisation.items():
        value = inputs.get(name)
        if value is None:
            raise UsageError(
                f"[input.{name}]: the model has no input '{name}'",
                hint="its inputs: " + ", ".join(str(n) for n in inputs),
            )
        rank = len(value.shape) if value.shape is not None else 0
        std = np.asarray(numbers.std, np.float64)
        mean = np.asarray(numbers.mean, np.float64)
        factor, offset = np.broadcast_arrays(numbers.scale / std, -mean / std)
        channels = factor.size
        if channels > 1 and (
            rank < 2 or (value.shape is not None and value.shape[1] not in (channels, None))
        ):
            raise UsageError(
                f"[input.{name}]: {channels} channels of normalisation do not fit shape {value.shape}",
                hint="folding needs channels on axis 1; leave `folded` out to normalise while reading",
            )
        shape = (channels, *[1] * (rank - 2)) if channels > 1 else ()
        taken = names(copy)
        uses = list(value.uses())
        anchor = next(node for node in copy.graph if any(node is user for user, _ in uses))
        scale_value = add_initializer(copy, f"{name}/factor", factor.reshape(shape).astype(np.float32), taken)
        shift_value = add_initializer(copy, f"{name}/offset", offset.reshape(shape).astype(np.float32), taken)
        scaled = insert_before(
            anchor, "Mul", [value, scale_value], name=f"{name}/scale", output=f"{name}/scaled"
        )
        shifted = insert_before(
            anchor, "Add", [scaled.outputs[0], shift_value], name=f"{name}/shift", output=f"{name}/normalised"
        )
        for user, index in uses:
            user.replace_input_with(index, shifted.outputs[0])
        for new in (scaled.outputs[0], shifted.outputs[0]):
            new.type, new.shape = value.type, value.shape
    return copy
