"""What a graph is, in a few figures, and how its inputs and outputs look from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from deploy.errors import ModelError
from deploy.graph import cost
from deploy.graph.blocks import ACTIVATION, partition
from deploy.graph.edit import all_nodes, is_constant, weight_bytes
from deploy.graph.fold import fold_constants, fold_shapes
from deploy.graph.shapes import infer, model_inputs
from deploy.spec.tensors import Layout, TensorSpec

_CHANNELS_SECOND = frozenset((
    "Conv", "ConvTranspose", "DeformConv", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool", "LpPool",
    "GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization",
))  # fmt: skip
"""Operators defined on N, C, then space: what they read is laid out so."""
_KEEPS_LAYOUT = ACTIVATION | frozenset((
    "Add", "Sub", "Mul", "Div", "Cast", "Identity", "Dropout", "Pad", "Resize", "BatchNormalization",
    "QuantizeLinear", "DequantizeLinear",
))  # fmt: skip
_ROUNDS = 5
"""One size makes the next one known; nothing real needs more."""


@dataclass(frozen=True)
class Summary:
    """``operations`` counts nodes by type, bodies included, the most frequent first. MACs are for one sample;
    None, with the nodes in ``uncounted``, where a size is free or an operation is not ONNX's own.
    """

    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    macs: int | None
    uncounted: tuple[str, ...]
    weight_bytes: int
    peak_activation_bytes: int | None
    operations: tuple[tuple[str, int], ...]
    blocks: int


def summary(model: ir.Model) -> Summary:
    """The figures of a graph with inferred shapes and named nodes."""
    counts = Counter(node.op_type for node in all_nodes(model))
    sized = _with_sizes(model)
    return Summary(
        opset=model.opset_imports.get("", 0),
        inputs=tensor_specs(model_inputs(model)),
        outputs=tensor_specs(model.graph.outputs),
        parameters=cost.parameters(model),
        macs=cost.macs(sized),
        uncounted=cost.uncounted(sized),
        weight_bytes=weight_bytes(model),
        peak_activation_bytes=cost.peak_activation_bytes(sized),
        operations=tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        blocks=len(partition(model)),
    )


def _with_sizes(model: ir.Model) -> ir.Model:
    """The graph itself, or a copy whose computed sizes are numbers, as cleaning makes them, where some are
    open: exporters compute the widths of a Pad or a target shape by dozens of nodes."""
    if not cost.uncounted(model) and cost.peak_activation_bytes(model) is not None:
        return model
    sized = model.clone()
    for _ in range(_ROUNDS):
        if not fold_shapes(sized) + fold_constants(sized):
            break
        infer(sized)
    return sized


def tensor_specs(values: Iterable[ir.Value]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs as a caller sees them: numpy's name of the type, sizes or names of free dimensions.

    An unnamed dimension is called ``<value>_<axis>``. The layout is said for inputs of rank 4 that reach a
    convolution or a pooling with their axes kept, or moved by a transposition from NHWC.

    Raises ModelError for a value that is no tensor or whose type or rank is unknown.
    """
    return tuple(_spec(value) for value in values)


def _spec(value: ir.Value) -> TensorSpec:
    name = value.name or ""
    if not isinstance(value.type, ir.TensorType) or value.dtype is None:
        raise ModelError(
            f"'{name}' is not a tensor of known type",
            hint="only models whose inputs and outputs are plain tensors can be deployed",
        )
    if value.shape is None:
        raise ModelError(
            f"the rank of '{name}' is unknown", hint="export the model with shapes on its inputs and outputs"
        )
    shape = tuple(
        dim if isinstance(dim, int) and dim >= 0 else str(dim) if _is_named(dim) else f"{name}_{axis}"
        for axis, dim in enumerate(value.shape)
    )
    dtype = "str" if value.dtype.is_string() else value.dtype.numpy().name
    return TensorSpec(name=name, dtype=dtype, shape=shape, layout=_layout(value))


def _is_named(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, ir.SymbolicDim) and bool(dim.value)


def _layout(value: ir.Value) -> Layout:
    if value.shape is None or value.shape.rank() != 4 or not value.is_graph_input():
        return "any"
    seen, waiting = {value}, [value]
    while waiting:
        for node, index in waiting.pop().uses():
            if node.op_type in _CHANNELS_SECOND and index == 0:
                return "NCHW"
            if node.op_type == "Transpose" and list(node.attributes.get_ints("perm", ())) == [0, 3, 1, 2]:
                return "NHWC"
            if node.op_type not in _KEEPS_LAYOUT or not _alone(node, index):
                continue
            after = node.outputs[0]
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    return "any"


def _alone(node: ir.Node, index: int) -> bool:
    """Whether the node's other operands are constants, so that its result has the axes of this one."""
    return all(v is None or i == index or is_constant(v) for i, v in enumerate(node.inputs))
