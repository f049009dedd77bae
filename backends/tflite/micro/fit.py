"""What was emitted is brought into the forms that TensorFlow Lite Micro has, and judged by its kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from backends.tflite.emitter import Emitter
from backends.tflite.micro.gelu import gelu
from backends.tflite.micro.kernels import KERNELS, WEIGHTS
from backends.tflite.network import Operator, Options, Tensor
from backends.tflite.sdk import schema
from backends.tflite.write import notes, read_file
from deploy.errors import UnsupportedError
from deploy.spec.artifact import Verdict
from deploy.spec.manifest import KnownHazard
from deploy.spec.plan import QuantParams

_QUANTIZES = {
    "float32": ("int8", "int16"),
    "int8": ("int8", "int16", "int32", "uint8"),
    "int16": ("int8", "int16", "int32"),
    "int32": ("int8", "int16"),
    "uint8": ("int8",),
}
"""What QUANTIZE makes of what."""
_INTEGER = ("HARD_SWISH",)
"""What is computed in INT8 here and is not so emitted."""
_CODES = QuantParams(type="uint8", scale=(1.0,), zero_point=(0,))
"""Of bytes that mean themselves."""


def adapt(out: Emitter, integer: Collection[str] = ()) -> None:
    """Say what has no kernel by what has one, in place; what is quantized on both sides by its INT8 kernel.

    ``integer`` names the nodes that were decided to be INT8.
    """
    _use_integer_kernels(out, integer)
    adapted: list[Operator] = []
    numbers: dict[float, int] = {}
    for operator in out.operators:
        source = out.tensors[operator.inputs[0]] if operator.inputs and operator.inputs[0] >= 0 else None
        result = out.tensors[operator.outputs[0]]
        if (
            operator.code == "CAST"
            and source is not None
            and (source.dtype, result.dtype) == ("uint8", "float32")
        ):
            source.params = _CODES
            adapted.append(_with(operator, "DEQUANTIZE", operator.inputs))
        elif operator.code == "POW" and _number(out, operator.inputs[1]) == 2.0:
            adapted.append(_with(operator, "SQUARE", operator.inputs[:1], "SquareOptions"))
        elif operator.code == "GELU" and result.dtype == "float32":
            adapted += gelu(operator, out, numbers)
        elif operator.code == "RELU_N1_TO_1" and result.dtype == "float32":
            adapted += _clipped(operator, out)
        else:
            adapted.append(operator)
    out.operators[:] = adapted


def _use_integer_kernels(out: Emitter, integer: Collection[str]) -> None:
    """DEQUANTIZE, operation, QUANTIZE becomes the operation on integers, for those that XNNPACK has as float
    only, so that the emitter writes them so."""
    maker = {index: op for op in out.operators for index in op.outputs}
    readers = Counter(index for op in out.operators for index in op.inputs)
    readers.update(out.outputs)
    replaced: dict[int, Operator] = {}
    dropped: set[int] = set()
    for quantize in out.operators:
        middle = maker.get(quantize.inputs[0]) if quantize.code == "QUANTIZE" else None
        if middle is None or middle.code not in _INTEGER or middle.node not in integer:
            continue
        before = maker.get(middle.inputs[0])
        if before is None or before.code != "DEQUANTIZE" or readers[middle.outputs[0]] > 1:
            continue
        if out.tensors[before.inputs[0]].dtype != "int8" or out.tensors[quantize.outputs[0]].dtype != "int8":
            continue
        replaced[id(quantize)] = middle._replace(inputs=before.inputs, outputs=quantize.outputs)
        dropped.add(id(middle))
        readers[before.outputs[0]] -= 1
        if not readers[before.outputs[0]]:
            dropped.add(id(before))
    out.operators[:] = [replaced.get(id(op), op) for op in out.operators if id(op) not in dropped]


def refusal(operator: Operator, out: Emitter) -> str:
    """Why TensorFlow Lite Micro cannot compute an operator; empty where it can."""
    kernel = KERNELS.get(operator.code)
    if kernel is None:
        return f"TensorFlow Lite Micro has no kernel for {operator.code}"
    touched = [out.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]
    free = next((tensor for tensor in touched if -1 in tensor.shape), None)
    if free is not None:
        return f"'{free.name}' has a free size, and TensorFlow Lite Micro takes fixed ones only"
    data = out.tensors[operator.inputs[kernel.data]]
    dtype = data.dtype
    if len(data.shape) > kernel.rank:
        return f"TensorFlow Lite Micro's {operator.code} takes {kernel.rank} axes, not {len(data.shape)}"
    if dtype not in kernel.types:
        return f"TensorFlow Lite Micro's {operator.code} takes {', '.join(kernel.types)}, not {dtype}"
    if operator.code == "QUANTIZE":
        made = out.tensors[operator.outputs[0]].dtype
        if made not in _QUANTIZES.get(dtype, ()):
            return f"TensorFlow Lite Micro's QUANTIZE makes no {made} of {dtype}"
    if operator.code in WEIGHTS:
        weights = out.tensors[operator.inputs[WEIGHTS[operator.code]]].dtype
        if weights != ("float32" if dtype == "float32" else "int8"):
            return f"TensorFlow Lite Micro's {operator.code} takes no weights of {weights} for {dtype}"
    return ""


def refusals(out: Emitter) -> dict[str, str]:
    """By node the first reason why one of its operators cannot be computed. Changes of type and order, which
    belong to no node, are named by what they make."""
    found: dict[str, str] = {}
    for operator in out.operators:
        reason = refusal(operator, out)
        if reason:
            found.setdefault(operator.node or out.tensors[operator.outputs[0]].name, reason)
    return found


def judged(verdicts: Sequence[Verdict], refused: Mapping[str, str]) -> list[Verdict]:
    """The verdicts of a walk, with what Micro refuses besides."""
    by_node = dict(refused)
    found = []
    for verdict in verdicts:
        reason = by_node.pop(verdict.node, "")
        if reason and verdict.support != "unsupported":
            verdict = verdict.model_copy(update={"support": "unsupported", "reason": reason})
        found.append(verdict)
    return found


def require_kernels(out: Emitter) -> None:
    """Raises UnsupportedError listing everything that TensorFlow Lite Micro cannot compute."""
    refused = refusals(out)
    if refused:
        raise UnsupportedError(
            f"TensorFlow Lite Micro cannot compute {len(refused)} nodes: "
            + "; ".join(f"'{node}': {reason}" for node, reason in refused.items()),
            hint="replace these operations in the model, or exclude them and compute them in the program",
        )


def floats(path: Path) -> list[KnownHazard]:
    """What a file computes in float, by node."""
    model = read_file(path)
    graph, nodes = model.subgraphs[0], notes(model)["nodes"]
    assert isinstance(nodes, list)
    names = {value: name for name, value in vars(schema().BuiltinOperator).items() if name.isupper()}
    found = [
        (names[model.operatorCodes[operator.opcodeIndex].builtinCode], str(node))
        for operator, node in zip(graph.operators, nodes, strict=True)
        if node and graph.tensors[int(operator.outputs[0])].type == schema().TensorType.FLOAT32
    ]
    if not found:
        return []
    kinds = Counter(code for code, _ in found)
    listed = ", ".join(f"{count} {code}" if count > 1 else code for code, count in sorted(kinds.items()))
    return [
        KnownHazard(
            kind="float",
            severity="note",
            text=f"computed in float, at four times the memory of INT8: {listed}",
            nodes=tuple(dict.fromkeys(node for _, node in found)),
        )
    ]


def _with(operator: Operator, code: str, inputs: tuple[int, ...], options: str = "") -> Operator:
    version = 2 if code == "DEQUANTIZE" else 1
    table = "DequantizeOptions" if code == "DEQUANTIZE" else options
    return Operator(code, version, inputs, operator.outputs, (table, {}), operator.node)


def _clipped(operator: Operator, out: Emitter) -> list[Operator]:
    """A minimum and a maximum."""
    result = out.tensors[operator.outputs[0]]
    low, high = (
        out.numbers(np.array(bound, np.float32), f"{result.name}/{name}")
        for name, bound in (("low", -1.0), ("high", 1.0))
    )
    below = out.add(Tensor(f"{result.name}/below", result.shape, result.dtype, result.order))
    options: Options = ("MaximumMinimumOptions", {})
    return [
        Operator("MINIMUM", 1, (operator.inputs[0], high), (below,), options, operator.node),
        Operator("MAXIMUM", 1, (below, low), operator.outputs, options, operator.node),
    ]


def _number(out: Emitter, index: int) -> float | None:
    data = out.tensors[index].data
    return None if data is None or data.size != 1 else float(data.reshape(()))
