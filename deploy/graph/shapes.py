"""Shapes: inferred for every value, pinned to what the user asks, and asked about.

A free dimension of an input always has a name (``batch`` where the file gave none); the same name means the
same size everywhere in the graph.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes

from deploy.errors import UsageError
from deploy.graph import symbolic
from deploy.graph.symbolic import Known, Size

_GENERATED = "unk__"
"""How ONNX's inference names a dimension that it knows nothing of."""
_ROUNDS = 4
"""Inference, then Reshape and the like resolved, then again: nests deeper than this stay unknown."""


def infer(model: ir.Model) -> ir.Model:
    """Fill in the types and shapes of all values, in place; the model is returned for convenience.

    ONNX's inference runs on a copy without the weights, so the size of the model does not matter. What it
    loses of free dimensions in Reshape, Expand, ConstantOfShape and Tile is put back, then it runs again on
    what follows.

    The shapes inside a file are not believed: exporters leave a batch of 1, and sizes computed from -1. They
    stay only where nothing can be inferred (a custom operation), and for open dimensions of the outputs.
    """
    name_dimensions(model)
    given = {v: v.shape for node in model.graph if node.domain == "" for v in node.outputs}
    for value in given:
        value.shape = None
    for _ in range(_ROUNDS):
        passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
        if not _resolve(model):
            break
        for value in given:  # a made-up name would win over the dimension just found
            _forget_generated(value)
    for value, shape in given.items():
        if value.shape is None:
            value.shape = shape
        elif value.is_graph_output() and shape is not None and shape.rank() == value.shape.rank():
            value.shape = _merged(value.shape, ir.Shape([None if d == 0 else d for d in shape]))
    return model


def pin(model: ir.Model, shapes: Mapping[str, Sequence[int | None]]) -> ir.Model:
    """A copy whose inputs have the given sizes; None leaves a dimension as it is.

    A free dimension that other inputs or values share becomes the same number there.

    Raises UsageError for an unknown input, a wrong rank, a size below 1, another size than a fixed dimension
    has, and for two sizes asked of one free dimension.
    """
    model = name_dimensions(model.clone())
    inputs = {v.name or "": v for v in model_inputs(model)}
    chosen: dict[str, int] = {}
    for name, wanted in shapes.items():
        for axis, (now, size) in enumerate(zip(_dimensions(inputs, name, wanted), wanted, strict=True)):
            if size is None or size == now:
                continue
            if size < 1:
                raise UsageError(
                    f"input {name!r}: dimension {axis} cannot be {size}", hint="give a size of 1 or more"
                )
            if isinstance(now, int):
                raise UsageError(
                    f"input {name!r}: dimension {axis} is fixed at {now} in the model, not {size}",
                    hint=f"use {_text(inputs[name].shape)}, or export the model with a free dimension there",
                )
            if chosen.setdefault(now.value or "", size) != size:
                raise UsageError(
                    f"dimension {now.value!r} is asked to be both {chosen[now.value or '']} and {size}",
                    hint="give the inputs that share it the same size",
                )
    for value in (*inputs.values(), *(v for node in model.graph for v in node.outputs)):
        value.shape = _substituted(value.shape, chosen)
    return infer(model)


def free_dimensions(model: ir.Model) -> dict[str, tuple[tuple[str, int], ...]]:
    """The inputs' free dimensions, in order of appearance: name -> every (input, axis) that has it.

    >>> model = ir.from_onnx_text(
    ...     '''<ir_version: 10, opset_import: ["" : 21]>
    ...     g (float[n, 2] a, float[n, m] b) => (float[n, 2] c) { c = Relu(a) }'''
    ... )
    >>> free_dimensions(model)
    {'n': (('a', 0), ('b', 0)), 'm': (('b', 1),)}
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for value in model_inputs(model):
        for axis, dim in enumerate(value.shape.dims if value.shape is not None else ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value:
                found.setdefault(dim.value, []).append((value.name or "", axis))
    return {name: tuple(places) for name, places in found.items()}


def batch_axis(model: ir.Model) -> str | None:
    """The free dimension that is first in every input whose first dimension is free; None if they differ."""
    return _batch(model.graph)


def static_shape(value: ir.Value, batch: int = 1) -> tuple[int, ...] | None:
    """The shape with ``batch`` in place of the batch dimension (times whatever it is multiplied with).

    None where the rank or any other dimension is unknown or free.
    """
    if value.shape is None:
        return None
    dims: list[int] = []
    for dim in value.shape.dims:
        if isinstance(dim, int):
            dims.append(dim)
            continue
        known = symbolic.size(dim)
        name = None if value.graph is None else _batch(value.graph)
        if known is None or set(known.symbols) - {name}:
            return None
        dims.append(known.factor * batch ** len(known.symbols))
    return tuple(dims)


def model_inputs(model: ir.Model) -> list[ir.Value]:
    """What a caller has to feed: the graph's inputs without initializers that old files list among them."""
    return [v for v in model.graph.inputs if not v.is_initializer()]


def name_dimensions(model: ir.Model) -> ir.Model:
    """Name the inputs' unnamed or negative dimensions, in place: ``batch``, or ``<input>_<axis>``.

    Unnamed first dimensions are taken for one and the same batch only where every input has one.
    """
    inputs = model_inputs(model)
    used = set(free_dimensions(model))
    unnamed_first = [v.shape is not None and v.shape.rank() > 0 and _unnamed(v.shape[0]) for v in inputs]
    batch = _free_symbol("batch", used) if unnamed_first and all(unnamed_first) else None
    for value in inputs:
        if value.shape is None or not any(_unnamed(d) for d in value.shape):
            continue
        dims: list[int | ir.SymbolicDim] = []
        for axis, dim in enumerate(value.shape):
            if not _unnamed(dim):
                dims.append(dim)
            elif axis == 0 and batch is not None:
                dims.append(ir.SymbolicDim(batch))
            else:
                dims.append(ir.SymbolicDim(_free_symbol(f"{value.name}_{axis}", used)))
        value.shape = ir.Shape(dims)
    for node in model.graph:
        for value in node.outputs:  # a negative size elsewhere is no number either
            if value.shape is not None and any(isinstance(d, int) and d < 0 for d in value.shape):
                value.shape = ir.Shape([None if isinstance(d, int) and d < 0 else d for d in value.shape])
    return model


def _free_symbol(stem: str, used: set[str]) -> str:
    """An identifier, so that products such as 2*batch can be read back."""
    stem = "".join(c if c.isalnum() or c == "_" else "_" for c in stem)
    stem = stem if stem[:1].isalpha() or stem[:1] == "_" else f"_{stem}"
    name, count = stem, 2
    while name in used:
        name, count = f"{stem}_{count}", count + 1
    used.add(name)
    return name


def _unnamed(dim: int | ir.SymbolicDim) -> bool:
    return dim < 0 if isinstance(dim, int) else not dim.value or dim.value.startswith(_GENERATED)


def _batch(graph: ir.Graph) -> str | None:
    first = set()
    for value in graph.inputs:
        if not value.is_initializer() and value.shape is not None and value.shape.rank() > 0:
            dim = value.shape[0]
            if isinstance(dim, ir.SymbolicDim):
                first.add(dim.value)
    return first.pop() if len(first) == 1 else None


def _dimensions(
    inputs: Mapping[str, ir.Value], name: str, wanted: Sequence[int | None]
) -> tuple[int | ir.SymbolicDim, ...]:
    if name not in inputs:
        near = difflib.get_close_matches(name, inputs, n=1, cutoff=0.5)
        listed = ", ".join(f"{n}: {_text(v.shape)}" for n, v in inputs.items())
        raise UsageError(
            f"the model has no input {name!r}",
            hint=f"did you mean {near[0]!r}? The inputs are {listed}" if near else f"the inputs are {listed}",
        )
    shape = inputs[name].shape
    if shape is None:
        shape = inputs[name].shape = ir.Shape(wanted)
    if shape.rank() != len(wanted):
        raise UsageError(
            f"input {name!r} has {shape.rank()} dimensions, {len(wanted)} were given",
            hint=f"its shape is {_text(shape)}",
        )
    return shape.dims


def _text(shape: ir.Shape | None) -> str:
    if shape is None:
        return "unknown"
    return ",".join(str(d.value if isinstance(d, ir.SymbolicDim) else d) for d in shape)


def _forget_generated(value: ir.Value) -> None:
    if value.shape is not None and value.shape.is_dynamic():
        value.shape = ir.Shape([None if _unnamed(d) else d for d in value.shape])


def _merged(better: ir.Shape, other: ir.Shape) -> ir.Shape:
    return ir.Shape([o if _unnamed(b) else b for b, o in zip(better, other, strict=True)])


def _substituted(shape: ir.Shape | None, chosen: Mapping[str, int]) -> ir.Shape | None:
    if shape is None or shape.is_static():
        return shape
    known: list[Known] = []
    for s in symbolic.sizes(shape) or ():
        if s is None:
            known.append(None)
            continue
        total = Size(s.factor, tuple(symbol for symbol in s.symbols if symbol not in chosen))
        for symbol in s.symbols:
            total = total.times(Size(chosen.get(symbol, 1)))
        known.append(total)
    return symbolic.shape_of(known)


def _resolve(model: ir.Model) -> bool:
    """Shapes that follow from integer tensors whose elements are known. True if any became better known."""
    found = symbolic.values(model)
    better = False
    for node in model.graph:
        dims = symbolic.output_sizes(node, found)
        output = node.outputs[0]
        if output.type is None and node.domain == "" and node.op_type in symbolic.KEEPING:
            output.type = None if node.inputs[0] is None else node.inputs[0].type
        if dims is None or (output.shape is not None and output.shape.rank() != len(dims)):
            continue
        now = output.shape or ir.Shape([None] * len(dims))
        if any(_unnamed(n) and d is not None for n, d in zip(now, dims, strict=True)):
            output.shape, better = _merged(now, symbolic.shape_of(dims)), True
    return better
