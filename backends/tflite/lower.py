"""A graph goes through the table, node by node. What a node refuses is kept, and the walk goes on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.layout import plain
from backends.tflite.network import Tensor
from backends.tflite.ops import OPERATIONS
from backends.tflite.ops.quant import dequantize, quantize
from backends.tflite.reading import dtype_of, widens
from deploy.adapter.optable import Unsupported
from deploy.errors import UnsupportedError
from deploy.graph.shapes import model_inputs
from deploy.spec.artifact import Verdict

_LARGEST_RANK = 6


@dataclass
class Emitted:
    """What a walk over a graph gave; a file can be written where nothing was refused."""

    out: Emitter
    verdicts: list[Verdict] = field(default_factory=list)
    wrong_ends: list[str] = field(default_factory=list)


def emit(
    graph: ir.Model,
    rounding: Collection[str] = (),
    integers: Collection[str] | None = None,
    *,
    folds: bool = False,
) -> Emitted:
    """Lower every node of a graph, noting what each says; those named in ``rounding`` as hybrid ones.

    ``integers`` are the operations that the runtime computes in INT8, None for all that can be.
    """
    walk = Emitted(Emitter(rounding=frozenset(rounding), folds=folds))
    walk.out.integers = None if integers is None else frozenset(integers)
    inputs: dict[ir.Value, str] = {}
    for value in model_inputs(graph):
        try:
            _input(value, walk.out)
        except Unsupported as e:
            inputs[value] = f"input '{value.name}': {_of_sizes(value) or e}"
    for node in graph.graph:
        refused = [inputs[value] for value in node.inputs if value in inputs]
        reason = refused[0] if refused else _refused(node, walk.out)
        if refused:
            _stand_ins(node, walk.out)
        walk.verdicts.append(
            Verdict(
                node=node.name or "",
                op=node.op_type,
                support="unsupported" if reason else "supported",
                reason=reason,
            )
        )
    read = {value for node in graph.graph for value in node.inputs}
    walk.wrong_ends += [reason for value, reason in inputs.items() if value not in read]
    return walk


def emitted(
    graph: ir.Model,
    rounding: Collection[str] = (),
    integers: Collection[str] | None = None,
    *,
    integer_outputs: bool = False,
    folds: bool = False,
) -> tuple[Emitter, dict[str, str]]:
    """The graph's operators, and of inner values whose tensor has another name that name.

    With ``integer_outputs`` an output that is quantized is given as integers. With ``folds`` convolutions of
    few channels take the form that XNNPACK computes faster.

    Raises UnsupportedError listing everything that TFLite cannot express.
    """
    walk = emit(graph, rounding, integers, folds=folds)
    refused = [f"{v.op} '{v.node}': {v.reason}" for v in walk.verdicts if v.support == "unsupported"]
    wrong = walk.wrong_ends + refused
    if not wrong:
        try:
            _finish(graph, walk.out, integer_outputs)
        except Unsupported as e:
            wrong.append(f"an output: {e}")
    if wrong:
        raise UnsupportedError(
            f"TFLite cannot express {len(wrong)} nodes, inputs or outputs: {'; '.join(wrong)}",
            hint="replace these operations in the model, or build for ONNX Runtime",
        )
    return walk.out, _values(walk.out)


def _input(value: ir.Value, out: Emitter) -> None:
    shape = out.shape(value)
    index = out.add(Tensor(value.name or "", shape, dtype_of(value), plain(len(shape))))
    out.inputs.append(index)
    out.carried[value] = index


def _refused(node: ir.Node, out: Emitter) -> str:
    """Why a node cannot be lowered; empty where it was. Its results are then floats made of nothing."""
    if node in out.fused:
        return ""
    out.node, out.operation = node.name or "", node.op_type
    try:
        if node.op_type == "QuantizeLinear":
            quantize(node, out)
        elif node.op_type == "DequantizeLinear":
            dequantize(node, out)
        elif widens(node):
            pass  # who reads it takes the constant
        elif node.op_type not in OPERATIONS or node.domain not in ("", "ai.onnx"):
            raise Unsupported("not written for TFLite yet: say it in other operations")
        else:
            if any(len(out.shape(value)) > _LARGEST_RANK for value in node.outputs if value.name):
                raise Unsupported(f"more than {_LARGEST_RANK} axes: join some by a Reshape before it")
            OPERATIONS[node.op_type](node, out)
    except Unsupported as e:
        _stand_ins(node, out)
        said = [
            _of_sizes(value) for value in (*node.inputs, *node.outputs) if value is not None and value.name
        ]
        return next(filter(None, said), str(e))
    return ""


def _of_sizes(value: ir.Value) -> str:
    """What is the matter with a value whatever the operation; empty where it is nothing."""
    if value.shape is None:
        return f"the rank of '{value.name}' is unknown: fix the sizes of the model's inputs (--shape)"
    if 0 in tuple(value.shape) and value.const_value is None:
        return f"'{value.name}' has a size of 0, of which TFLite makes no tensor: remove what makes it"
    return ""


def _stand_ins(node: ir.Node, out: Emitter) -> None:
    """Tensors for what a refused node would make, so that the nodes behind it can still be judged."""
    for value in node.outputs:
        if value.shape is not None:
            shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
            out.carried[value] = out.add(Tensor(value.name or "", shape, "float32", plain(len(shape))))


def _finish(graph: ir.Model, out: Emitter, integer_outputs: bool) -> None:
    """Every output a tensor of its own, as floats, in ONNX's order, and under its name if that is free."""
    out.node = ""
    for value in graph.graph.outputs:
        index = out.read(value, plain(len(out.shape(value))), integer=integer_outputs)
        if index in out.inputs or index in out.outputs or out.tensors[index].data is not None:
            tensor = out.tensors[index]
            if tensor.shape.count(-1) > 1:
                raise Unsupported(f"'{value.name}' is another input or output, with several free sizes")
            sizes = out.numbers(np.array(tensor.shape, np.int32), f"{value.name}/shape")
            copy = Tensor(f"{value.name}/copy", tensor.shape, tensor.dtype, tensor.order, tensor.params)
            index = out.inner("RESHAPE", [index, sizes], copy)
        out.outputs.append(index)
    out.prune()
    taken = {tensor.name for tensor in out.tensors}
    for value, index in zip(graph.graph.outputs, out.outputs, strict=True):
        if value.name and value.name not in taken:
            out.tensors[index].name = value.name
            taken.add(value.name)


def _values(out: Emitter) -> dict[str, str]:
    return {
        value.name: out.tensors[index].name
        for value, index in out.carried.items()
        if value.name and value.name != out.tensors[index].name and _is_itself(value, out.tensors[index])
    }


def _is_itself(value: ir.Value, tensor: Tensor) -> bool:
    """Whether a tensor holds the value, and not the integers that it was rounded to."""
    source = value.producer()
    return tensor.params is None or (source is not None and source.op_type == "DequantizeLinear")
