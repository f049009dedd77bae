"""Whether a model is one: every name defined once, no cycle, known operations, finite weights.

The structure is checked on the file's own message, before anything is built from it; operations and weights
on the normalised graph. The rules are those of the ONNX specification (docs/IR.md).
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploy.errors import ModelError, UnsupportedError

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 7
"""ONNX 1.2 of 2018: the first opset with NumPy broadcasting, which everything since relies on."""

_DAMAGED = "the model is damaged or its exporter has a bug: export it again"
_SHOWN = 20
_CHUNK = 1 << 20

# Operations through which an infinity passes as a mask or a bound. Anywhere else it is a broken weight.
_MASKING = frozenset(
    {
        "Where", "Clip", "Min", "Max", "Add", "Sub", "Pad", "Equal", "Less", "Greater",
        "LessOrEqual", "GreaterOrEqual", "Expand", "Concat", "Gather", "Slice", "Reshape",
        "Squeeze", "Unsqueeze", "Transpose", "Tile", "Split", "Flatten", "Identity", "Cast",
        "CastLike", "Trilu", "ScatterND", "ScatterElements", "IsInf", "IsNaN", "ConstantOfShape",
        "If", "Loop", "Scan", "ReduceMax", "ReduceMin", "TopK", "Attention",
    }
)  # fmt: skip


def check(proto: onnx.ModelProto, path: Path) -> int:
    """The opset of a structurally sound model.

    Raises ModelError for an opset before 7, sparse tensors, a graph that computes nothing, a name that is
    defined twice or never, and a cycle; UnsupportedError for an opset later than any that is known here.
    """
    opset = _opset(proto, path)
    if not proto.graph.output:
        raise ModelError(f"{path}: the graph has no outputs", hint="export a model that returns something")
    if not proto.graph.node:
        raise ModelError(
            f"{path}: the graph has no operations", hint="export the model, not its weights alone"
        )
    _check_scope(proto.graph, frozenset(), path)
    for function in proto.functions:
        _check_text([function.name, function.domain, *function.input, *function.output], path)
        _check_nodes(function.node, set(function.input), list(function.output), frozenset(), path)
    return opset


def _opset(proto: onnx.ModelProto, path: Path) -> int:
    import onnx

    _check_text([entry.domain for entry in proto.opset_import], path)
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) > 1 and len(set(versions)) > 1:
        raise ModelError(f"{path}: declares two ONNX opsets, {versions[0]} and {versions[1]}", hint=_DAMAGED)
    known = onnx.defs.onnx_opset_version()
    if not versions:
        if proto.opset_import:  # contrib operations only: any opset will do
            return known
        raise ModelError(
            f"{path}: declares no opset, so the file is truncated or older than 2017",
            hint="copy the file again, or export it with opset_version=17 or later",
        )
    if versions[0] < OLDEST_OPSET:
        raise ModelError(
            f"{path}: opset {versions[0]} is older than {OLDEST_OPSET}, the oldest that is read",
            hint="export the model again with opset_version=17 or later",
        )
    if versions[0] > known:
        raise UnsupportedError(
            f"{path}: opset {versions[0]} is newer than {known}, the newest that this installation knows",
            hint=f"export with opset_version={known} or earlier, or: pip install --upgrade onnx",
        )
    return int(versions[0])


# -------------------------------------------------------------------------------------------------- structure


def _check_scope(graph: onnx.GraphProto, outer: frozenset[str], path: Path) -> None:
    if graph.sparse_initializer:
        raise ModelError(
            f"{path}: sparse weights ('{graph.sparse_initializer[0].values.name}') are not read",
            hint="export the weights as dense tensors; 2:4 sparsity is found again in them",
        )
    given = [value.name for value in graph.input]
    constants = [tensor.name for tensor in graph.initializer]
    _check_text([*given, *constants, *(value.name for value in graph.output)], path)
    for names, what in ((given, "input"), (constants, "initializer")):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ModelError(f"{path}: {what} '{twice[0]}' is defined twice", hint=_DAMAGED)
        if "" in names:
            raise ModelError(f"{path}: an {what} has no name", hint=_DAMAGED)
    _check_nodes(graph.node, {*given, *constants}, [value.name for value in graph.output], outer, path)


def _check_nodes(
    nodes: Sequence[onnx.NodeProto], defined: set[str], outputs: list[str], outer: frozenset[str], path: Path
) -> None:
    """Names are defined once and before any cycle; captured names of inner graphs count as inputs."""
    for node in nodes:
        _check_text([node.name, node.op_type, node.domain, *node.input, *node.output], path)
        for attribute in node.attribute:
            _check_text([attribute.name], path)
            empty = {attribute.TENSOR: "t", attribute.GRAPH: "g"}.get(attribute.type)
            if not attribute.type or (empty and not attribute.HasField(empty)):
                raise ModelError(f"{path}: {_called(node)}: '{attribute.name}' is empty", hint=_DAMAGED)
    producers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in defined or name in producers:
                raise ModelError(
                    f"{path}: value '{name}' is defined twice, by {_called(node)} too", hint=_DAMAGED
                )
            producers[name] = index
    visible = outer | defined | producers.keys()
    for node in nodes:
        for name in filter(None, node.input):
            if name not in visible:
                raise ModelError(
                    f"{path}: {_called(node)} reads '{name}', which nothing defines", hint=_DAMAGED
                )
        for inner in _inner_graphs(node):
            _check_scope(inner, visible, path)
    for name in outputs:
        if name not in defined and name not in producers:
            raise ModelError(f"{path}: output '{name}' is computed by nothing", hint=_DAMAGED)
    waiting = [{producers[n] for n in _reads(node) if n in producers} for node in nodes]
    _check_acyclic(nodes, waiting, path)


def _check_text(texts: list[str], path: Path) -> None:
    """protobuf hands out bytes where a string is not UTF-8."""
    for text in texts:
        if not isinstance(text, str):
            raise ModelError(f"{path}: the name {text!r} is not UTF-8", hint=_DAMAGED)


def _check_acyclic(nodes: Sequence[onnx.NodeProto], waiting: list[set[int]], path: Path) -> None:
    """Kahn's algorithm; what it cannot reach lies on a cycle or behind one."""
    readers: dict[int, list[int]] = {}
    for reader, sources in enumerate(waiting):
        for source in sources:
            readers.setdefault(source, []).append(reader)
    missing = [len(sources) for sources in waiting]
    ready = [i for i, count in enumerate(missing) if not count]
    for i in ready:  # grows while it is walked
        for reader in readers.get(i, ()):
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    if len(ready) < len(nodes):
        stuck = [_called(nodes[i]) for i, count in enumerate(missing) if count]
        raise ModelError(f"{path}: the graph has a cycle through {_listed(stuck, 5)}", hint=_DAMAGED)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from filter(None, node.input)
    for graph in _inner_graphs(node):
        for inner in graph.node:
            yield from _reads(inner)
        yield from (value.name for value in graph.output)


def _inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _called(node: onnx.NodeProto) -> str:
    return f"{node.op_type} '{node.name or next(iter(node.output), '')}'"


def _listed(items: Iterable[str], shown: int = _SHOWN) -> str:
    every = list(items)
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more


# ------------------------------------------------------------------------------------------------- operations


def check_operations(model: ir.Model, path: Path) -> None:
    """Raises UnsupportedError listing every node whose operation or domain nothing here knows, ModelError
    where a known operation has too few or too many inputs or outputs or an attribute it does not have."""
    unknown, malformed = [], []
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        known, problem = _operation_problem(node, model.opset_imports.get(node.domain, 1))
        if not known:
            unknown.append(f"{node.domain + '.' if node.domain else ''}{node.op_type} '{node.name}'")
        elif problem:
            malformed.append(f"{node.op_type} '{node.name}' {problem}")
    if unknown:
        version = model.opset_imports.get("")
        raise UnsupportedError(
            f"{path}: {len(unknown)} operations are unknown in opset {version}: {_listed(unknown, 1000)}",
            hint="export the model with standard ONNX operations; a custom operation has no meaning here",
        )
    if malformed:
        raise ModelError(f"{path}: not valid ONNX: {_listed(malformed)}", hint=_DAMAGED)


def _operation_problem(node: ir.Node, version: int) -> tuple[bool, str]:
    if node.domain not in ("", "ai.onnx.ml"):
        return (node.domain, node.op_type) in _runtime_operations(), ""
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return False, ""
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        return True, f"has {len(node.inputs)} inputs"
    if not schema.min_output <= len(node.outputs) <= schema.max_output:
        return True, f"has {len(node.outputs)} outputs"
    for name, attribute in schema.attributes.items():
        if attribute.required and name not in node.attributes:
            return True, f"lacks attribute '{name}'"
    for name, given in node.attributes.items():
        if name not in schema.attributes:
            return True, f"has the attribute '{name}', which opset {version} does not define"
        if str(schema.attributes[name].type) != f"AttrType.{given.type.name}":
            return True, f"has attribute '{name}' of type {given.type.name}"
    return True, ""


@functools.cache
def _runtime_operations() -> frozenset[tuple[str, str]]:
    """Operations beyond the ONNX standard that ONNX Runtime, the reference here, can run."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    return frozenset((s.domain, s.name) for s in get_all_operator_schema() if s.domain == "com.microsoft")


# ---------------------------------------------------------------------------------------------------- weights


def check_weights(model: ir.Model, path: Path) -> None:
    """Raises ModelError naming every initializer that holds NaN, or infinity outside a mask or bound."""
    broken = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        nan, infinite = _count_not_finite(tensor)
        if nan:
            broken.append(f"'{name}' has {nan} NaN")
        elif infinite and (use := next((u for u in value.consumers() if u.op_type not in _MASKING), None)):
            broken.append(f"'{name}' has {infinite} infinite values, read by {use.op_type} '{use.name}'")
    if broken:
        raise ModelError(
            f"{path}: broken weights: {_listed(broken)}",
            hint="the training diverged or float16 overflowed: export a sound checkpoint",
        )


def _count_not_finite(tensor: ir.TensorProtocol) -> tuple[int, int]:
    """How many NaN and how many infinities, in pieces, so that a mapped tensor is never in memory whole."""
    flat = tensor.numpy().reshape(-1)
    nan = infinite = 0
    for start in itertools.takewhile(lambda s: s < flat.size, itertools.count(0, _CHUNK)):
        piece = flat[start : start + _CHUNK]
        if piece.dtype.kind != "f":  # float8, bfloat16 and the like come from ml_dtypes
            piece = piece.astype(np.float32)
        if not np.isfinite(piece).all():
            nan += int(np.isnan(piece).sum())
            infinite += int(np.isinf(piece).sum())
    return nan, infinite
