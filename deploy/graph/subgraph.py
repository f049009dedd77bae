"""A piece of a graph as a model of its own, with nothing of the user's in it but names and sizes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from deploy.graph.blocks import reads
from deploy.graph.edit import all_nodes, constant, is_constant
from deploy.graph.shapes import infer

_PAIR = ("QuantizeLinear", "DequantizeLinear")
_MEANS_ITSELF = 64
"""Integers in a constant of so many are sizes, axes and indices of the formula; of more they are data."""
_WIDE, _NARROWEST = 8, 4
"""Sizes above the first may shrink, to no less than the second: 1 would broadcast."""
_SIZES = ("group", "hidden_size")
"""Attributes that are sizes."""


def cut(model: ir.Model, names: Collection[str]) -> ir.Model:
    """The nodes of these names as a model: its inputs are what they read from elsewhere, in the shapes that
    were inferred, its outputs what others read of theirs.

    Changes of type (QuantizeLinear, DequantizeLinear) around them come along, so that they are quantized as
    before. Texts that a file carries beside the network are left out.
    """
    copy = model.clone()
    kept = _with_pairs([node for node in copy.graph if node.name in set(names)])
    inside = {value for node in kept for value in node.outputs if value.name}
    read_outside = {value for node in copy.graph if node not in kept for value in reads(node)}
    read_inside = {value for node in kept for value in reads(node)}
    outputs = [
        value
        for node in copy.graph
        for value in node.outputs
        if value in inside and (value.is_graph_output() or value in read_outside or value not in read_inside)
    ]
    inputs: dict[ir.Value, ir.Value] = {}
    for value in (v for node in copy.graph if node in kept for v in reads(node)):
        if value in inputs or is_constant(value) or value.producer() in kept:
            continue
        inputs[value] = ir.Value(name=value.name, type=value.type, shape=value.shape)
    copy.graph.outputs[:] = outputs
    for old, new in inputs.items():
        old.replace_all_uses_with(new)
        old.name = None if old.producer() is not None else old.name
    copy.graph.inputs[:] = list(inputs.values())
    # By hand: what bodies of nodes that go have captured would else count as used.
    for node in [n for n in copy.graph if n not in kept and n.op_type != "Constant"]:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
        copy.graph.remove(node)
    passes.RemoveUnusedNodesPass()(copy)
    return _bare(copy)


def disguise(model: ir.Model, seed: int = 0) -> ir.Model:
    """The model with random numbers for its weights, between the smallest and the largest of each; in place.

    Lone numbers and short integers are part of a formula and stay. Scales of quantized values become the
    middle one of each, so that products of scales stay products.
    """
    generator = np.random.default_rng(seed)
    scales = {node.inputs[1] for node in all_nodes(model) if node.op_type in _PAIR}
    zeros = {node.inputs[2] for node in all_nodes(model) if node.op_type in _PAIR and len(node.inputs) > 2}
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            array = constant(value)
            if array is None or array.size <= 1 or value in zeros:
                continue
            if value in scales:
                _store(value, name, np.full_like(array, np.sort(array, axis=None)[array.size // 2]))
            elif array.dtype.kind == "f" or array.size > _MEANS_ITSELF:
                _store(value, name, _random(array, generator))
    return model


def shrunk(model: ir.Model) -> ir.Model | None:
    """A copy with the wide sizes of its constants divided by what they have in common; None where that is
    nothing. Whether it is still a network, and still shows the same, is to be tried."""
    wide = {
        int(size)
        for value in _weights(model)
        for size in value.const_value.shape.numpy()  # type: ignore[union-attr]  # a constant has one
        if int(size) > _WIDE
    }
    common = math.gcd(*wide) if wide else 1
    least = min(wide, default=1)
    by = max((d for d in range(2, common + 1) if common % d == 0 and least // d >= _NARROWEST), default=1)
    if by == 1:
        return None
    new = {size: size // by for size in wide}
    copy = model.clone()
    for graph in copy.graphs():
        for name, value in graph.initializers.items():
            array = constant(value)
            if array is None:
                continue
            if array.size > _MEANS_ITSELF or (array.dtype.kind == "f" and array.ndim):
                corner = array[tuple(slice(new.get(size, size)) for size in array.shape)]
                _store(value, name, np.ascontiguousarray(corner))
            elif array.dtype.kind == "i" and array.ndim == 1:
                _store(value, name, np.array([new.get(int(n), n) for n in array], array.dtype))
    for node in all_nodes(copy):
        for key in _SIZES:
            if (size := node.attributes.get_int(key, 0)) in new:
                node.attributes[key] = ir.AttrInt64(key, new[size])
        for value in node.outputs:
            value.shape = None
    for value in copy.graph.inputs:
        if value.shape is not None:
            sizes = [new.get(d, d) if isinstance(d, int) else d for d in value.shape]
            value.shape = ir.Shape(sizes)
    return infer(copy)


def _weights(model: ir.Model) -> Iterable[ir.Value]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.size > _MEANS_ITSELF:
                yield value


def _with_pairs(nodes: Collection[ir.Node]) -> set[ir.Node]:
    kept = set(nodes)
    for node in nodes:
        for value in reads(node):
            source = value.producer()
            while source is not None and source.op_type in _PAIR:
                kept.add(source)
                source = source.inputs[0].producer() if source.inputs[0] is not None else None
        for value in node.outputs:
            for quantize, _ in value.uses():
                if quantize.op_type == "QuantizeLinear":
                    kept.add(quantize)
                    kept.update(u for u, _ in quantize.outputs[0].uses() if u.op_type == "DequantizeLinear")
    return kept


def _bare(model: ir.Model) -> ir.Model:
    """Without what was said beside the network: descriptions, places in somebody's source, producers."""
    model.producer_name, model.producer_version, model.domain, model.doc_string = "deploy", None, None, None
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            _forget(value)
    model.graph.name = "repro"
    for node in all_nodes(model):
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            _forget(value)
    return model


def _forget(value: ir.Value) -> None:
    value.doc_string = None
    value.metadata_props.clear()


def _store(value: ir.Value, name: str, array: np.ndarray) -> None:
    dtype = value.const_value.dtype if value.const_value is not None else None
    value.const_value = ir.tensor(array, name=name, dtype=dtype)
    value.shape = ir.Shape(array.shape)


def _random(array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Numbers of the same type and shape, as large as those: equally probable between the extremes."""
    if array.dtype.kind not in "fiu":
        return generator.permuted(array, axis=None) if array.dtype.kind == "b" else array
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        low, high = (float(np.nan_to_num(end, posinf=1.0, neginf=-1.0)) for end in (low, high))
        return generator.uniform(low, high, array.shape).astype(array.dtype)
    return generator.integers(int(low), int(high), array.shape, array.dtype, endpoint=True)
