"""Graphs rewritten for what a runtime accepts: float32 turned into strongly typed float16.

Strong typing means that a runtime computes each node in exactly the types that stand in the file, so every
place where the type changes is a Cast of its own. Which nodes stay float32 follows from the tables below and
from the constants; `held_back` says it for every node. The tables follow PyTorch's autocast list of
"operations that autocast to float32" and the ranges: float16 ends at 65504, its normal numbers begin at 6e-5.

Softmax, LogSoftmax and the normalisations with a ``stash_type`` become float16 although autocast keeps them:
TensorRT (and ONNX, by ``stash_type``) computes their sums in float32 inside the kernel, and a Cast on either
side would break its fused attention.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, constant, is_constant, names, scalar
from deploy.graph.shapes import infer

_Use = tuple[ir.Node, int]
_log = logging.getLogger(__name__)

_HALF_MAX = float(np.finfo(np.float16).max)
_HALF_NORMAL = float(np.finfo(np.float16).smallest_normal)

_TO_HALF, _TO_SINGLE = "/to_float16", "/to_float32"
"""Endings of the names of inserted casts; what stands before is the value's name in the float32 graph."""
_HALF, _SINGLE = "/f16", "/f32"
"""Endings of the second name that a value needs where it exists in both types."""

_GROWS = "its result leaves float16's range for everyday arguments"
_SUMS = "it sums without a promise of float32 inside, so long or squared sums overflow"
_STEEP = "it magnifies rounding where it is steep (PyTorch's autocast keeps it float32)"
_COORDINATES = "its coordinates need more than float16's 11 bits"
_OWN_TYPE = "it makes values of the type it names itself"
_BEYOND = "lies beyond float16's range"
_NO_HALF = "ONNX defines no float16 form of it"

FLOAT32_OPS: dict[str, str] = {
    **dict.fromkeys(("Exp", "Pow", "Sinh", "Cosh", "Reciprocal", "Softplus"), _GROWS),
    **dict.fromkeys(("ReduceSum", "ReduceSumSquare", "ReduceProd", "ReduceL1", "ReduceL2", "CumSum"), _SUMS),
    **dict.fromkeys(("ReduceLogSum", "ReduceLogSumExp", "LpNormalization", "LpPool", "LRN"), _SUMS),
    **dict.fromkeys(("InstanceNormalization", "MeanVarianceNormalization", "Det", "DFT", "STFT"), _SUMS),
    **dict.fromkeys(("Log", "Tan", "Acos", "Asin", "Acosh", "Atanh"), _STEEP),
    **dict.fromkeys(("GridSample", "AffineGrid", "RoiAlign", "MaxRoiPool", "DeformConv"), _COORDINATES),
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"), _OWN_TYPE),
    **dict.fromkeys(("Bernoulli", "EyeLike", "HannWindow", "HammingWindow", "BlackmanWindow"), _OWN_TYPE),
    **dict.fromkeys(("Constant", "Multinomial", "MelWeightMatrix", "Optional"), _OWN_TYPE),
    **dict.fromkeys(("Range", "NonMaxSuppression", "DynamicQuantizeLinear", "ImageDecoder"), _NO_HALF),
    **dict.fromkeys(("SequenceConstruct", "SequenceInsert", "SplitToSequence"), _OWN_TYPE),
    **dict.fromkeys(("SequenceAt", "ConcatFromSequence", "OptionalGetElement"), _OWN_TYPE),
}
"""Operations that stay float32 wherever they stand, with the reason."""

_SINGLE_INPUTS = {"Resize": (1, 2)}
"""Inputs that ONNX types apart from the data: the region and the scales of a Resize."""
_SINGLE_OUTPUTS = {"LayerNormalization": (1, 2), "GroupNormalization": (1, 2)}
"""Outputs of the type named by ``stash_type``: the statistics."""
_ANY_TYPE = ("Shape", "Size")
"""What reads no data takes whatever type is there."""

_MOVES = (
    *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile", "Slice"),
    *("Gather", "GatherElements", "GatherND", "Split", "DepthToSpace", "SpaceToDepth", "Cast"),
)
"""Between two float32 nodes these carry float32 through: two casts and a rounding less."""
_SPREADS = ("Add", "Sub", "Mul", "Where", "Softmax", "LogSoftmax", *_MOVES)
"""Through these a value beyond float16 (an attention mask of -3.4e38) reaches the Softmax that absorbs it."""
_IN_NORMALISATION = ("ReduceMean", "Add", "Sqrt", "Reciprocal", "Div", "Mul", "Pow", "Max", "Clip")


def to_float16(model: ir.Model, keep: Collection[str] = ()) -> ir.Model:
    """A copy that computes in float16, with casts at its border: inputs and outputs stay float32.

    Nodes named in ``keep`` and those of `held_back` stay float32; integers and bodies of control flow
    are not touched. Where a value exists in both types the float16 one keeps the name, except for inputs and
    outputs of the graph. Scales of QuantizeLinear and DequantizeLinear become float16 exactly.

    Raises KeyError for a name in ``keep`` that no node has, ValueError where a scale is no float16 number.
    """
    model = _typed(model.clone())
    reasons = _held_back(model, keep)
    for name, reason in reasons.items():
        if reason.startswith("its constant"):
            _log.warning("%s stays float32: %s", name, reason)
    _Conversion(model, reasons).run()
    return model


def held_back(model: ir.Model, keep: Collection[str] = ()) -> dict[str, str]:
    """Nodes that `to_float16` leaves in float32, with the reason of each, in graph order."""
    return _held_back(_typed(model.clone()), keep)


def without_casts(model: ir.Model) -> ir.Model:
    """A copy without the casts that `to_float16` put in, every value under its old name.

    Its types no longer fit together: it is for reading structure back, not for running.
    """
    model = model.clone()
    for node in list(model.graph):
        stem = (node.name or "").removesuffix(_TO_HALF).removesuffix(_TO_SINGLE)
        if node.op_type != "Cast" or stem == node.name:
            continue
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        result.name = None
        result.replace_all_uses_with(source, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        source.name = stem
    return model


def _typed(model: ir.Model) -> ir.Model:
    untyped = any(o.dtype is None and o.name for node in model.graph for o in node.outputs)
    return infer(model) if untyped else model


# ------------------------------------------------------------------------------------------------ what stays


def _held_back(model: ir.Model, keep: Collection[str]) -> dict[str, str]:
    unknown = set(keep) - {node.name for node in model.graph}
    if unknown:
        raise KeyError(f"no node is called {', '.join(sorted(unknown))}")
    nodes = list(model.graph)
    found: dict[str, str] = {}
    from_shape = _from_shape(nodes)
    for node in nodes:
        reason = _own_reason(node, keep, from_shape)
        if reason:
            found[node.name or ""] = reason
    for square in nodes:
        for node in normalisation(square):
            found.setdefault(node.name or "", "it belongs to a normalisation written out: squares overflow")
    _spread(nodes, found)
    _carry(nodes, found)
    return {node.name or "": found[node.name or ""] for node in nodes if node.name in found}


def _own_reason(node: ir.Node, keep: Collection[str], from_shape: Collection[ir.Value]) -> str:
    touched = any(_is_float(v) for v in (*node.inputs, *node.outputs))
    if node.name in keep:
        return "it was asked to stay float32"
    if _has_body(node):
        return "the bodies of control flow stay float32"
    if not touched or node.op_type in _ANY_TYPE:
        return ""
    if node.domain not in ("", "ai.onnx"):
        return f"nothing is known of the types of {node.domain}.{node.op_type}"
    if node.op_type in FLOAT32_OPS:
        return FLOAT32_OPS[node.op_type]
    if any(o in from_shape for o in node.outputs):
        return "it computes sizes, which must stay exact"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return ""  # their scales are checked where they are converted
    for index, value in enumerate(node.inputs):
        if value is None or index in _SINGLE_INPUTS.get(node.op_type, ()) or not _is_float(value):
            continue
        if node.op_type == "Clip" and index > 0:
            continue  # a bound beyond float16 is no bound there: it saturates
        array = constant(value)
        misfit = _misfit(array) if array is not None else ""
        if misfit:
            return f"its constant {value.name} {misfit}"
    fill = node.attributes.get("value")
    if node.op_type == "ConstantOfShape" and fill is not None:
        misfit = _misfit(fill.as_tensor().numpy())
        return f"its constant value {misfit}" if misfit else ""
    return ""


def _misfit(array: np.ndarray) -> str:
    """Why float16 cannot hold the array: finite numbers beyond its range, or all below its normal part."""
    largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
    if largest > _HALF_MAX:
        return f"{_BEYOND} ({largest:.3g})"
    if 0.0 < largest < _HALF_NORMAL:
        return f"vanishes in float16 (its largest number is {largest:.3g})"
    return ""


def _from_shape(nodes: Collection[ir.Node]) -> set[ir.Value]:
    """Values whose numbers follow from Shape and Size and constants alone."""
    found: set[ir.Value] = set()
    for node in nodes:
        numbers = node.inputs[:1] if node.op_type in _MOVES else node.inputs
        if node.op_type == "ConstantOfShape":
            continue
        inputs = [v for v in numbers if v is not None and not is_constant(v)]
        if node.op_type in _ANY_TYPE or (inputs and all(v in found for v in inputs)):
            found.update(node.outputs)
    return found


def normalisation(square: ir.Node) -> Iterator[ir.Node]:
    """The nodes of (x - mean) / sqrt(mean(square) + epsilon) around a square, none for any other node."""
    if not (
        (square.op_type == "Mul" and square.inputs[0] is square.inputs[1])
        or (square.op_type == "Pow" and scalar(square.inputs[1]) == 2.0)
    ):
        return
    readers = [node for node in square.outputs[0].consumers() if node.op_type == "ReduceMean"]
    if not readers:
        return
    yield square
    centred = square.inputs[0]
    centre = centred.producer() if centred is not None else None
    if centre is not None and centre.op_type == "Sub":
        yield centre
        mean = centre.inputs[1].producer() if centre.inputs[1] is not None else None
        if mean is not None and mean.op_type == "ReduceMean":
            yield mean
    while readers:
        node = readers.pop()
        yield node
        scaled = node.op_type == "Mul" or (node.op_type == "Div" and not is_constant(node.inputs[0]))
        if not scaled:
            readers += [n for n in node.outputs[0].consumers() if n.op_type in _IN_NORMALISATION]


def _spread(nodes: Collection[ir.Node], found: dict[str, str]) -> None:
    """Keep what computes with a value beyond float16's range, up to the Softmax that takes it."""
    beyond = {name for name, reason in found.items() if _BEYOND in reason}
    for node in nodes:
        if node.op_type not in _SPREADS or node.name in beyond:
            continue
        producers = [v.producer() for v in node.inputs if v is not None and _is_float(v)]
        if any(p is not None and p.name in beyond and "Softmax" not in p.op_type for p in producers):
            found.setdefault(node.name or "", "it computes with a value that may lie beyond float16")
            beyond.add(node.name or "")


def _carry(nodes: list[ir.Node], found: dict[str, str]) -> None:
    """Keep what only moves data from a float32 node to float32 nodes."""
    wanted: set[str | None] = set()
    for node in reversed(nodes):
        readers = [reader for o in node.outputs for reader in o.consumers()]
        if node.op_type in _MOVES and all(r.name in found or r.name in wanted for r in readers):
            wanted.add(node.name)
    for node in nodes:
        source = node.inputs[0] if node.inputs else None
        if node.name not in wanted or node.name in found or source is None or is_constant(source):
            continue
        producer = source.producer()
        if producer is None or producer.name in found or not _is_float(source):
            found[node.name or ""] = "it only moves data between float32 nodes"


# -------------------------------------------------------------------------------------------- the conversion


class _Conversion:
    """One run of `to_float16` over a graph that it may change."""

    def __init__(self, model: ir.Model, reasons: Collection[str]) -> None:
        self._model = model
        self._graph = model.graph
        self._single = reasons
        self._taken = names(model)

    def run(self) -> None:
        inputs = [v for v in self._graph.inputs if _is_float(v)]
        constants = [v for v in self._graph.initializers.values() if _is_float(v)]
        nodes = list(self._graph)
        made = [
            (o, self._makes_half(node, i))
            for node in nodes
            for i, o in enumerate(node.outputs)
            if _is_float(o)
        ]
        for node in nodes:
            if not self._stays(node):
                _retype_attributes(node)
        for value in constants:
            self._constant(value)
        for value in inputs:
            self._offer(value, half=False)
        for value, half in made:
            self._offer(value, half)

    def _stays(self, node: ir.Node) -> bool:
        return node.graph is not self._graph or node.name in self._single

    def _makes_half(self, node: ir.Node, index: int) -> bool:
        return not self._stays(node) and index not in _SINGLE_OUTPUTS.get(node.op_type, ())

    def _uses(self, value: ir.Value, home_is_half: bool) -> tuple[list[_Use], list[_Use]]:
        """The places that read ``value`` as float16, and those that read it as float32."""
        half: list[_Use] = []
        single: list[_Use] = []
        for node, index in value.uses():
            if node.op_type in _ANY_TYPE and node.graph is self._graph:
                (half if home_is_half else single).append((node, index))
            elif self._stays(node) or index in _SINGLE_INPUTS.get(node.op_type, ()):
                single.append((node, index))
            else:
                half.append((node, index))
        return half, single

    def _constant(self, value: ir.Value) -> None:
        half, single = self._uses(value, home_is_half=True)
        if not half:
            return
        array = constant(value)
        assert array is not None and value.name is not None
        cast = _halved(array, value.name, [node for node, _ in half])
        if value.is_graph_output():
            copy = add_initializer(self._model, value.name + _HALF, cast, self._taken)
            _redirect(half, copy)
            return
        if single:
            copy = add_initializer(self._model, value.name + _SINGLE, array, self._taken)
            _redirect(single, copy)
        value.const_value = ir.tensor(cast, name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT16)

    def _offer(self, value: ir.Value, half: bool) -> None:
        """Give each reader of ``value`` its type; ``half`` says which one it is made in."""
        as_half, as_single = self._uses(value, half)
        name = value.name or ""
        if half:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
            if as_single or value.is_graph_output():
                cast = self._cast(value, name + _TO_SINGLE, name + _SINGLE, ir.DataType.FLOAT)
                _redirect(as_single, cast)
                if value.is_graph_output():
                    self._replace_output(value, cast)
                    value.name, cast.name = self._free(name + _HALF), name
        elif as_half:
            cast = self._cast(value, name + _TO_HALF, name + _HALF, ir.DataType.FLOAT16)
            _redirect(as_half, cast)
            if not value.is_graph_input() and not value.is_graph_output():
                value.name, cast.name = self._free(name + _SINGLE), name

    def _cast(self, value: ir.Value, node_name: str, output: str, to: ir.DataType) -> ir.Value:
        attributes = {"to": to.value}
        node = ir.node(
            "Cast",
            [value],
            attributes=attributes,
            name=self._free(node_name),
            outputs=[ir.Value(name=output)],
        )
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, node)
        else:
            self._graph.insert_before(self._graph[0], node)
        node.outputs[0].type = ir.TensorType(to)
        node.outputs[0].shape = value.shape
        return node.outputs[0]

    def _replace_output(self, old: ir.Value, new: ir.Value) -> None:
        for index, output in enumerate(self._graph.outputs):
            if output is old:
                self._graph.outputs[index] = new

    def _free(self, name: str) -> str:
        if name in self._taken:
            raise ValueError(f"the graph already has something called {name}")
        self._taken.add(name)
        return name


def _halved(array: np.ndarray, name: str, readers: Collection[ir.Node]) -> np.ndarray:
    """The constant in float16: exact for scales, saturated for the bounds of a Clip (all else fits)."""
    fits = np.clip(array, -_HALF_MAX, _HALF_MAX) if np.isfinite(array).all() else array
    cast = fits.astype(np.float16)
    scales = [n.name for n in readers if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if scales and not np.array_equal(cast.astype(np.float32), array):
        raise ValueError(f"{scales[0]}: scale {name} is not a float16 number; round it when choosing it")
    return cast


def _retype_attributes(node: ir.Node) -> None:
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT.value:
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16.value)
    elif node.op_type == "ConstantOfShape" and _is_float(node.outputs[0]):
        fill = node.attributes.get("value")
        array = np.zeros(1, np.float32) if fill is None else fill.as_tensor().numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array.astype(np.float16)))


def _redirect(uses: Collection[_Use], value: ir.Value) -> None:
    for node, index in uses:
        node.replace_input_with(index, value)


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT


def _has_body(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
