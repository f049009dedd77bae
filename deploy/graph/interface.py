"""What a graph takes, made part of it: raw pixels, channels last, normalised inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from deploy.errors import UsageError
from deploy.graph.edit import add_initializer, fresh_name, insert_before, names
from deploy.spec.project import IoLayout, IoType
from deploy.spec.tensors import Layout, Normalisation

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_TYPES = {"uint8": ir.DataType.UINT8, "int8": ir.DataType.INT8}
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass(frozen=True)
class Form:
    """How one input is to be fed. ``model_layout`` is what the graph wants now, ``any`` where unknown.

    ``dtype`` and ``layout`` are those of the new input, None to keep what is there.
    """

    normalisation: Normalisation = field(default_factory=Normalisation)
    dtype: IoType | None = None
    layout: IoLayout | None = None
    model_layout: Layout = "any"

    @property
    def as_it_is(self) -> bool:
        return self.normalisation.identity and self.dtype is None and not self._moves

    @property
    def _moves(self) -> bool:
        return self.layout is not None and self.layout != self.model_layout

    def order(self) -> tuple[int, ...] | None:
        """The permutation from the new layout to the graph's; None where they are the same."""
        if not self._moves:
            return None
        return _TO_CHANNELS_FIRST if self.layout == "NHWC" else _TO_CHANNELS_LAST


def adapt_inputs(model: ir.Model, forms: Mapping[str, Form]) -> ir.Model:
    """A copy whose inputs are fed in these forms; names stay.

    In front of what read the input come Cast, Transpose, then x * (scale / std) - mean / std per channel, in
    this order: TensorRT moves no integers, and takes a uint8 input only into a Cast. Where nothing is to be
    done to a type, a layout or a number there is no node.

    Raises UsageError for an unknown input, one that takes no floats, channels that do not fit, and a layout
    for an input of another rank than 4 or of unknown layout.
    """
    copy = model.clone()
    inputs = {value.name: value for value in copy.graph.inputs}
    taken = names(copy)
    for name, form in forms.items():
        value = inputs.get(name)
        if value is None:
            raise UsageError(
                f"[input.{name}]: the model has no input '{name}'",
                hint="its inputs: " + ", ".join(str(n) for n in inputs),
            )
        _adapt(copy, value, form, taken)
    return copy


def fold_normalisation(model: ir.Model, normalisation: Mapping[str, Normalisation]) -> ir.Model:
    """A copy whose float inputs ``name`` are raw numbers, channels on axis 1."""
    return adapt_inputs(model, {name: Form(numbers) for name, numbers in normalisation.items()})


def _adapt(model: ir.Model, value: ir.Value, form: Form, taken: set[str]) -> None:
    name, dtype, shape = value.name or "", value.dtype, value.shape
    if dtype not in _FLOATS:
        raise UsageError(
            f"[input.{name}]: {dtype} cannot be normalised inside the graph",
            hint="leave `folded` out to normalise while reading" if form.dtype is None and form.layout is None
            # An input of integers has its meaning already.
            else "name the float inputs under [io] inputs",
        )  # fmt: skip
    order = form.order()
    if order is not None and (form.model_layout == "any" or shape is None or shape.rank() != 4):
        raise UsageError(
            f"[io] layout: it is not known where input '{name}' (shape {shape}) has its channels",
            hint=f'say so: [input.{name}] layout = "NCHW" (or "NHWC") in deploy.toml; '
            "or name the image inputs under [io] inputs",
        )
    factor, offset = _affine(form)
    constants = _constants(value, form, factor, offset)
    uses = list(value.uses())
    first = next(iter(model.graph))
    now = value

    def then(what: str, op: str, *operands: ir.Value, attribute: dict[str, int | list[int]]) -> None:
        nonlocal now
        free = fresh_name(model, f"{name}/{what}", taken)
        # Before the very first node: whoever reads the input, a body too, comes after.
        now = insert_before(first, op, [now, *operands], attribute, name=free, output=free).outputs[0]

    if order is not None and shape is not None:
        value.shape = ir.Shape([shape[order.index(axis)] for axis in range(4)])
    if form.dtype is not None:
        value.type = ir.TensorType(_TYPES[form.dtype])
        then("cast", "Cast", attribute={"to": int(dtype)})
        now.type, now.shape = ir.TensorType(dtype), value.shape
    if order is not None:
        then("moved", "Transpose", attribute={"perm": list(order)})
        now.type, now.shape = ir.TensorType(dtype), shape
    for op, word, result, array in (
        ("Mul", "factor", "scaled", constants[0]),
        ("Add", "offset", "normalised", constants[1]),
    ):
        if array is not None:
            then(result, op, add_initializer(model, f"{name}/{word}", array, taken), attribute={})
            now.type, now.shape = ir.TensorType(dtype), shape
    for user, index in uses:
        user.replace_input_with(index, now)


def _affine(form: Form) -> tuple[np.ndarray, np.ndarray]:
    """(factor, offset), float64, one number or one per channel: normalised = fed * factor + offset."""
    numbers = form.normalisation
    std, mean = np.asarray(numbers.std, np.float64), np.asarray(numbers.mean, np.float64)
    factor, offset = np.broadcast_arrays(numbers.scale / std, -mean / std)
    return factor, offset + 128 * factor if form.dtype == "int8" else offset


def _constants(
    value: ir.Value, form: Form, factor: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Both shaped to meet the graph's channels; None for a factor of 1 and an offset of 0."""
    rank = len(value.shape) if value.shape is not None else 0
    axis = rank - 1 if form.model_layout == "NHWC" and rank == 4 else 1
    channels = factor.size
    if channels > 1 and (rank < 2 or _size(value, axis) not in (channels, None)):
        raise UsageError(
            f"[input.{value.name}]: {channels} channels of normalisation do not fit shape {value.shape}",
            hint='folding needs channels on axis 1, or [input] layout = "NHWC"; leave `folded` out to '
            "normalise while reading",
        )
    shape = (channels, *[1] * (rank - 1 - axis)) if channels > 1 else ()
    assert value.dtype is not None
    dtype = value.dtype.numpy()
    return (
        None if (factor == 1).all() else factor.reshape(shape).astype(dtype),
        None if (offset == 0).all() else offset.reshape(shape).astype(dtype),
    )


def _size(value: ir.Value, axis: int) -> int | None:
    size = value.shape[axis] if value.shape is not None else None
    return size if isinstance(size, int) else None
