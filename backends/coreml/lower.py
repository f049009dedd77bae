"""A graph goes through the table, node by node, into a MIL program. What a node refuses is kept, and the walk
goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import TARGETS, Emitter
from backends.coreml.interface import LARGEST_RANK, Interface, named
from backends.coreml.ops import OPERATIONS
from backends.coreml.ops.quant import dequantize, quantize
from backends.coreml.ops.stored import store_floats
from backends.coreml.optable import ANY
from backends.coreml.sdk import mil, quiet, sdk
from deploy.adapter.optable import Unsupported
from deploy.errors import UnsupportedError
from deploy.spec.artifact import Verdict
from deploy.spec.ends import NOTHING_ASKED, Ends
from deploy.spec.plan import Plan

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Program

NO_PLAN = Plan(graph_sha256="", target="", runtime="")


@dataclass
class Walked:
    """What a walk over a graph gave; a program can be written where nothing was refused.

    ``ends`` are the program's.
    """

    out: Emitter
    program: Program
    ends: Interface
    verdicts: list[Verdict] = field(default_factory=list)
    wrong_ends: list[str] = field(default_factory=list)


def walk(
    graph: ir.Model, target: str, plan: Plan = NO_PLAN, *, half: bool = False, asked: Ends = NOTHING_ASKED
) -> Walked:
    """Lower every node of a graph for a deployment target ("iOS17"), noting what each says. ``plan`` is what
    is asked of its palettes, the rest stands in the graph; ``half``: floats will be float16. ``asked`` is
    what the user wants of the program's ends."""
    if target not in TARGETS:
        raise UnsupportedError(
            f"Core ML: packages are not written for '{target}'",
            hint=f"set minimum_deployment_target to one of {', '.join(TARGETS)}",
        )
    with quiet():
        walked = Walked(Emitter(TARGETS[target], half), mil().Program(), Interface(asked))
        given, wrong = walked.ends.placeholders(graph, walked.out)
        with mil().Function(given, opset_version=getattr(sdk().target, target)) as function:
            walked.ends.enter(function.inputs, walked.out)
            walked.wrong_ends += store_floats(graph, plan, walked.out)
            for node in graph.graph:
                reason = next((wrong[v] for v in node.inputs if v in wrong), "")
                if reason:
                    _stand_ins(node, walked.out)
                elif node not in walked.ends.entered:
                    reason = _refused(node, walked.out)
                support = "unsupported" if reason else "supported"
                walked.verdicts.append(
                    Verdict(node=node.name or "", op=node.op_type, support=support, reason=reason)
                )
            read = {value for node in graph.graph for value in node.inputs}
            walked.wrong_ends += [reason for value, reason in wrong.items() if value not in read]
            if not walked.wrong_ends and all(v.support == "supported" for v in walked.verdicts):
                try:
                    function.set_outputs(list(walked.ends.leave(graph, walked.out)))
                    walked.program.add_function("main", function)
                except Unsupported as e:
                    walked.wrong_ends.append(f"an output: {e}")
    return walked


def require(walked: Walked) -> None:
    """Raises UnsupportedError listing everything that Core ML cannot express, each reason once."""
    alike: dict[str, list[str]] = {}
    for verdict in walked.verdicts:
        if verdict.support == "unsupported":
            alike.setdefault(verdict.reason, []).append(f"{verdict.op} '{verdict.node}'")
    wrong = walked.wrong_ends + [f"{', '.join(nodes)}: {reason}" for reason, nodes in alike.items()]
    if wrong:
        count = len(walked.wrong_ends) + sum(map(len, alike.values()))
        raise UnsupportedError(
            f"Core ML cannot express {count} nodes, inputs or outputs: {'; '.join(wrong)}",
            hint="replace these operations in the model, or build for ONNX Runtime",
        )


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
            if any(v.shape is not None and len(v.shape) > LARGEST_RANK for v in node.outputs):
                raise Unsupported(f"more than {LARGEST_RANK} axes: join some by a Reshape before it")
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
        if value.name and value not in out.carried and named(value) in ANY and value.shape is not None:
            sizes = [size if isinstance(size, int) else 1 for size in value.shape]
            kind = {"float32": np.float32, "bool": bool}.get(named(value), np.int32)
            out.give(value, out.op("fill", shape=np.array(sizes or [1], np.int32), value=kind(0)))
