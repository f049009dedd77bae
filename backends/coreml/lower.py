"""A graph goes through the table, node by node, into a MIL program. What a node refuses is kept, and the walk
goes on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import TARGETS, Emitter
from backends.coreml.ops import OPERATIONS
from backends.coreml.ops.quant import dequantize, quantize
from backends.coreml.ops.stored import store_floats
from backends.coreml.optable import ANY
from backends.coreml.sdk import mil, quiet, sdk
from deploy.adapter.optable import Unsupported
from deploy.errors import UnsupportedError
from deploy.graph.shapes import model_inputs
from deploy.spec.artifact import Verdict
from deploy.spec.plan import Plan

if TYPE_CHECKING:
    import coremltools as ct
    from coremltools.converters.mil.mil import Program, Var

NO_PLAN = Plan(graph_sha256="", target="", runtime="")
_LARGEST_RANK = 5
_LARGEST_SIZE = 4096
"""Of one that is free: Core ML wants a bound."""
_ENDS = {"float32": "fp32", "float16": "fp32", "int32": "int32", "int64": "int32", "bool": "int32"}
"""Types of inputs and outputs -> those that a Core ML program takes and gives for them."""


@dataclass
class Walked:
    """What a walk over a graph gave; a program can be written where nothing was refused.

    ``inputs`` and ``outputs`` are the names of the program's ends, in ONNX's order; ``ranges`` the free sizes
    by the graph's names for them.
    """

    out: Emitter
    program: Program
    inputs: dict[ir.Value, str] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    ranges: dict[str, ct.RangeDim] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    wrong_ends: list[str] = field(default_factory=list)

    def free(self, name: str) -> ct.RangeDim:
        """The range of a free size; equal names are one size."""
        if name not in self.ranges:
            self.ranges[name] = sdk().RangeDim(1, _LARGEST_SIZE)
        return self.ranges[name]


def walk(graph: ir.Model, target: str, plan: Plan = NO_PLAN, *, half: bool = False) -> Walked:
    """Lower every node of a graph for a deployment target ("iOS17"), noting what each says. ``plan`` is what
    is asked of its palettes, the rest stands in the graph; ``half``: floats will be float16."""
    if target not in TARGETS:
        raise UnsupportedError(
            f"Core ML: packages are not written for '{target}'",
            hint=f"set minimum_deployment_target to one of {', '.join(TARGETS)}",
        )
    with quiet():
        walked = Walked(Emitter(TARGETS[target], half), mil().Program())
        given, wrong = _placeholders(graph, walked)
        with mil().Function(given, opset_version=getattr(sdk().target, target)) as function:
            _enter(walked, function.inputs)
            walked.wrong_ends += store_floats(graph, plan, walked.out)
            for node in graph.graph:
                reason = next((wrong[v] for v in node.inputs if v in wrong), "") or _refused(node, walked.out)
                support = "unsupported" if reason else "supported"
                walked.verdicts.append(
                    Verdict(node=node.name or "", op=node.op_type, support=support, reason=reason)
                )
            read = {value for node in graph.graph for value in node.inputs}
            walked.wrong_ends += [reason for value, reason in wrong.items() if value not in read]
            if not walked.wrong_ends and all(v.support == "supported" for v in walked.verdicts):
                try:
                    function.set_outputs(list(_leave(graph, walked)))
                    walked.program.add_function("main", function)
                except Unsupported as e:
                    walked.wrong_ends.append(f"an output: {e}")
    return walked


def require(walked: Walked) -> None:
    """Raises UnsupportedError listing everything that Core ML cannot express."""
    refused = [f"{v.op} '{v.node}': {v.reason}" for v in walked.verdicts if v.support == "unsupported"]
    wrong = walked.wrong_ends + refused
    if wrong:
        raise UnsupportedError(
            f"Core ML cannot express {len(wrong)} nodes, inputs or outputs: {'; '.join(wrong)}",
            hint="replace these operations in the model, or build for ONNX Runtime",
        )


def _placeholders(graph: ir.Model, walked: Walked) -> tuple[dict[str, object], dict[ir.Value, str]]:
    """The function's inputs by name; and those that cannot be any, with the reason."""
    given: dict[str, object] = {}
    wrong: dict[ir.Value, str] = {}
    for value in model_inputs(graph):
        try:
            shape, dtype = _end(value), _dtype(value)
        except Unsupported as e:
            wrong[value] = f"input '{value.name}': {e}"
            continue
        sizes = [size if isinstance(size, int) else walked.free(size).symbol for size in shape]
        name = walked.out.name(value.name or "input")
        given[name] = mil().Builder.placeholder(shape=sizes, dtype=_builtin(dtype))
        walked.inputs[value] = name
    return given, wrong


def _enter(walked: Walked, inputs: dict[str, Var]) -> None:
    """Let the function's inputs stand for the graph's; truth values come as integers."""
    for value, name in walked.inputs.items():
        var = inputs[name]
        if value.dtype == ir.DataType.BOOL:
            var = walked.out.op("not_equal", x=var, y=np.int32(0))
        walked.out.give(value, var)


def _leave(graph: ir.Model, walked: Walked) -> Iterable[Var]:
    """The variables of the graph's outputs, each of its own and of a type that a program may give."""
    taken: set[Var] = {walked.out.carried[v] for v in model_inputs(graph) if v in walked.out.carried}
    for value in graph.graph.outputs:
        var = walked.out.read(value)
        if value.dtype == ir.DataType.BOOL:
            var = walked.out.op("cast", f"{value.name}_out", x=var, dtype="int32")
        if var.rank == 0:
            var = walked.out.op("expand_dims", f"{value.name}_out", x=var, axes=np.array([0], np.int32))
        if var in taken or var.op is None or var.op.op_type.startswith("const"):
            var = walked.out.op("identity", f"{value.name}_out", x=var)
        taken.add(var)
        walked.outputs.append(var.name)
        yield var


def _end(value: ir.Value) -> tuple[int | str, ...]:
    if value.shape is None:
        raise Unsupported("its rank is unknown: fix the sizes of the model's inputs (--shape)")
    sizes = tuple(size if isinstance(size, int) else str(size.value or "") for size in value.shape)
    if not 1 <= len(sizes) <= _LARGEST_RANK:
        raise Unsupported(f"of {len(sizes)} axes; Core ML takes 1 to {_LARGEST_RANK}")
    if "" in sizes:
        raise Unsupported("a size is unknown: fix it (--shape)")
    if 0 in sizes:
        raise Unsupported("a size of 0")
    return sizes


def _named(value: ir.Value) -> str:
    return "" if value.dtype is None or value.dtype.is_string() else value.dtype.numpy().name


def _dtype(value: ir.Value) -> str:
    if _named(value) not in _ENDS:
        raise Unsupported(f"a tensor of {_named(value) or 'unknown type'}; there are {', '.join(_ENDS)}")
    return _ENDS[_named(value)]


def _builtin(dtype: str) -> object:
    return mil().types.string_to_builtin(dtype)


def _refused(node: ir.Node, out: Emitter) -> str:
    """Why a node cannot be lowered; empty where it was."""
    out.node = node.name or ""
    try:
        if node.op_type == "QuantizeLinear":
            quantize(node, out)
        elif node.op_type == "DequantizeLinear":
            dequantize(node, out)
        elif node.op_type == "Cast" and out.is_constant(node.outputs[0]):
            pass  # who reads it takes the constant
        elif node.op_type not in OPERATIONS or node.domain not in ("", "ai.onnx"):
            raise Unsupported("not written for Core ML yet: say it in other operations")
        else:
            if any(v.shape is not None and len(v.shape) > _LARGEST_RANK for v in node.outputs):
                raise Unsupported(f"more than {_LARGEST_RANK} axes: join some by a Reshape before it")
            _build(node, out)
    except Unsupported as e:
        _stand_ins(node, out)
        return str(e)
    return ""


def _build(node: ir.Node, out: Emitter) -> None:
    """Emit it; the builder infers types, and raises whatever its functions raise where they do not fit.

    What a node makes and a lowering does not is refused where somebody reads it.
    """
    try:
        OPERATIONS[node.op_type](node, out)
    except Unsupported:
        raise
    except Exception as e:
        raise Unsupported(f"coremltools: {' '.join(str(e).split()) or type(e).__name__}") from e
    for value in node.outputs:
        if value not in out.carried and (value.uses() or value.is_graph_output()):
            raise Unsupported(f"its result '{value.name}' is read, which has no counterpart in Core ML")


def _stand_ins(node: ir.Node, out: Emitter) -> None:
    """Variables for what a refused node would make, so that the nodes behind it can still be judged."""
    for value in node.outputs:
        if value.name and value not in out.carried and _named(value) in ANY and value.shape is not None:
            sizes = [size if isinstance(size, int) else 1 for size in value.shape]
            kind = {"float32": np.float32, "bool": bool}.get(_named(value), np.int32)
            out.give(value, out.op("fill", shape=np.array(sizes or [1], np.int32), value=kind(0)))
