"""What a program takes and gives: tensors, images, states, the name of a class.

Core ML has identifiers for names, int32 for all integers and truth values, and no scalars. Pixels (uint8)
enter as an image only, whose axes the program has in the order NCHW; states are float16. A program normalises
an image by operations of its own, whatever the numbers are, so those of the graph stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter, quantization
from backends.coreml.ops.quant import dequantize, quantize
from backends.coreml.ops.stored import BYTES
from backends.coreml.sdk import builder, mil, sdk
from deploy.adapter.optable import Unsupported
from deploy.graph.edit import sole_consumer
from deploy.graph.ends import scores
from deploy.graph.shapes import model_inputs
from deploy.spec.ends import Ends, Sizes, shapes_of, span

if TYPE_CHECKING:
    import coremltools as ct
    from coremltools.converters.mil.mil import Var

LABEL = "classLabel"
"""What the output is called that names the likeliest class, as coremltools calls it."""
LARGEST_RANK = 5
_LARGEST_SIZE = 4096
"""Of one that is free: Core ML wants a bound."""
_ENDS = {"float32": "fp32", "float16": "fp32", "int32": "int32", "int64": "int32", "bool": "int32"}
"""Types of inputs and outputs -> those that a Core ML program takes and gives for them."""
_TO_FIRST, _TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
"""Orders that make channels the first and the last axis of an image."""


@dataclass
class Interface:
    """The ends of a program, and of the graph that it comes from; ``asked`` is what the user wants of them.

    ``inputs`` and ``outputs`` are the names of the program's, in ONNX's order, without states. ``images``
    says of inputs that are some whether the graph has their channels last, ``entered`` which nodes only make
    floats of one, with channels first, as the program gets it anyway. ``states`` are variables with the
    graph's input and output. ``ranges`` are the free sizes by the graph's names for them. ``scored`` is the
    graph's output that is classified, with the variable of its probabilities.
    """

    asked: Ends
    inputs: dict[ir.Value, str] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    images: dict[ir.Value, bool] = field(default_factory=dict)
    entered: set[ir.Node] = field(default_factory=set)
    states: dict[str, tuple[ir.Value, ir.Value]] = field(default_factory=dict)
    ranges: dict[str, ct.RangeDim] = field(default_factory=dict)
    label: str = ""
    scored: tuple[ir.Value, str] | None = None

    # --- before the first operation -----------------------------------------------------------------------

    def placeholders(self, graph: ir.Model, out: Emitter) -> tuple[dict[str, object], dict[ir.Value, str]]:
        """The function's inputs by name; and those that cannot be any, with the reason."""
        given: dict[str, object] = {}
        wrong: dict[ir.Value, str] = {}
        results = {value.name: value for value in graph.graph.outputs}
        if self.asked.classes:
            self.label = out.name(LABEL)
        for value in model_inputs(graph):
            self._bound(value)
        for value in model_inputs(graph):
            name = out.name(value.name or "input")
            try:
                if value.name in self.asked.states:
                    given[name] = _state(value, out)
                    self.states[name] = (value, results[self.asked.states[value.name or ""]])
                    continue
                if value.name in self._listed and len(self._listed) > 1:
                    out.need(18, "a list of shapes for more than one input")
                shape, dtype = self._entering(value)
            except Unsupported as e:
                wrong[value] = f"input '{value.name}': {e}"
                continue
            sizes = [size if isinstance(size, int) else self._free(size).symbol for size in shape]
            given[name] = builder().placeholder(shape=sizes, dtype=_builtin(dtype))
            self.inputs[value] = name
        return given, wrong

    def enter(self, inputs: dict[str, Var], out: Emitter) -> None:
        """Let the function's inputs stand for the graph's; truth values come as integers, and whoever casts
        pixels to floats gets them so."""
        for value, name in self.inputs.items():
            var = inputs[name]
            if value in self.images:
                self._pixels(value, var, out)
                continue
            if value.dtype == ir.DataType.BOOL:
                var = out.op("not_equal", x=var, y=np.int32(0))
            out.give(value, var)
        for name, (value, _) in self.states.items():
            out.give(value, out.op("cast", x=out.op("read_state", input=inputs[name]), dtype="fp32"))

    def _pixels(self, value: ir.Value, var: Var, out: Emitter) -> None:
        """Pixels as floats: of channels last none is left where they are only put in front again."""
        for node, _ in value.uses():
            result = node.outputs[0]
            if node.op_type != "Cast" or result.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
                continue  # who reads it says that there is no variable for it
            self.entered.add(node)
            if self.images[value]:
                self._turned(result, var, out)
            else:
                out.give(result, var)

    def _turned(self, value: ir.Value, var: Var, out: Emitter) -> None:
        """Let ``var``, channels first, stand for what a graph has channels last, up to where it turns it; a
        pair with one scale between rounds the same in any order."""
        users = [user for user, _ in value.uses()]
        pair = _pair_behind(value) if out.level >= 17 else None
        if pair is not None:
            out.give(value, var)
            for node, lower in zip(pair, (quantize, dequantize), strict=True):
                out.node = node.name or ""
                lower(node, out)
            rounded = out.carried[pair[1].outputs[0]]
            for given in (value, *(node.outputs[0] for node in pair)):
                del out.carried[given]
            self.entered.update(pair)
            self._turned(pair[1].outputs[0], rounded, out)
            return
        turning = [user for user in users if _turns(user)]
        for user in turning:
            out.give(user.outputs[0], var)
        self.entered.update(turning)
        if len(turning) < len(users) or value.is_graph_output():
            out.give(value, out.op("transpose", x=var, perm=np.array(_TO_LAST, np.int32)))

    def _entering(self, value: ir.Value) -> tuple[tuple[int | str, ...], str]:
        """Sizes and type in the program."""
        shape = _sizes(value)
        if named(value) not in ("uint8", "int8"):
            return shape, _dtype(value)
        last = _channels_last(value)
        if named(value) == "int8" or last is None or shape[0] != 1:
            raise Unsupported(
                "pixels enter a program as an image of uint8, one at a time, in grey or three colours, and "
                f'this is {named(value)}{list(shape)}: set [io] dtype = "uint8", or leave it out'
            )
        self.images[value] = last
        return (tuple(shape[axis] for axis in _TO_FIRST) if last else shape), "fp32"

    def _bound(self, value: ir.Value) -> None:
        """Note what the free sizes of an input may be."""
        sizes = self.asked.sizes.get(value.name or "")
        if sizes is None or value.shape is None:
            return
        shapes = shapes_of(sizes)
        for axis, dim in enumerate(value.shape):
            if not isinstance(dim, int) and dim.value and dim.value not in self.ranges:
                least, most = (pick(shape[axis] for shape in shapes) for pick in (min, max))
                self.ranges[dim.value] = sdk().RangeDim(least, most, shapes[0][axis])

    @property
    def _listed(self) -> list[str]:
        """Inputs that take certain shapes, and none between."""
        return [name for name, sizes in self.asked.sizes.items() if isinstance(sizes[0], tuple) and sizes[1:]]

    def _free(self, name: str) -> ct.RangeDim:
        """The range of a free size; equal names are one size."""
        if name not in self.ranges:
            self.ranges[name] = sdk().RangeDim(1, _LARGEST_SIZE)
        return self.ranges[name]

    # --- behind the last operation ------------------------------------------------------------------------

    def leave(self, graph: ir.Model, out: Emitter) -> Iterable[Var]:
        """The variables of the graph's outputs, each of its own and of a type that a program may give.

        Raises Unsupported where there is none, or one cannot be given.
        """
        for name, (value, result) in self.states.items():
            before, after = _sizes(value), _sizes(result)
            if before != after:
                raise Unsupported(f"state '{value.name}' of {list(before)} becomes {list(after)}")
            kept = out.op("cast", f"{result.name}_kept", x=out.read(result), dtype="fp16")
            out.op("coreml_update_state", f"{name}_next", state=_placed(out, value), value=kept)
        kept_ones = [result for _, result in self.states.values()]
        given = [value for value in graph.graph.outputs if value not in kept_ones]
        if not given:
            raise Unsupported("every one is a state, and a program has to give something")
        taken: set[Var] = {out.carried[v] for v in model_inputs(graph) if v in out.carried}
        for value in given:
            var = out.read(value)
            if value.dtype == ir.DataType.BOOL:
                var = out.op("cast", f"{value.name}_out", x=var, dtype="int32")
            if var.rank == 0:
                var = out.op("expand_dims", f"{value.name}_out", x=var, axes=np.array([0], np.int32))
            if var in taken or var.op is None or var.op.op_type.startswith("const"):
                var = out.op("identity", f"{value.name}_out", x=var)
            taken.add(var)
            self.outputs.append(var.name)
            yield var
        if self.asked.classes:
            yield self._probabilities(given, out)

    def _probabilities(self, given: Iterable[ir.Value], out: Emitter) -> Var:
        """What is classified: the first output with a score for each class, made probabilities."""
        count = len(self.asked.classes)
        for value in given:
            shape = value.shape or ()
            if named(value).startswith("float") and shape[-1:] == (count,) and set(shape[:-1]) <= {1}:
                break
        else:
            raise Unsupported(f"none has one sample's scores of {count} classes, which a classifier needs")
        var, kind, name = out.read(value), scores(value), f"{value.name}_probabilities"
        match kind:
            case "probabilities" | "each":
                var = out.op("identity", name, x=var)
            case "log_probabilities":
                var = out.op("exp", name, x=var)
            case "unknown":
                var = out.op("softmax", name, x=var, axis=np.int32(-1))
        self.scored = (value, var.name)
        return var

    # --- in coremltools' words ----------------------------------------------------------------------------

    def types(self) -> list[object] | None:
        """The inputs as coremltools wants them told; None where tensors of fixed sizes say it themselves."""
        if not self.ranges and not self.images:
            return None
        ct = sdk()
        told: list[object] = []
        for value, name in self.inputs.items():
            if value not in self.images:
                told.append(ct.TensorType(name=name, shape=self._shape(value, None)))
                continue
            order = _TO_FIRST if self.images[value] else None
            assert value.shape is not None
            colours = ct.colorlayout.RGB if value.shape[3 if order else 1] == 3 else ct.colorlayout.GRAYSCALE
            told.append(ct.ImageType(name=name, shape=self._shape(value, order), color_layout=colours))
        return told

    def classifier(self) -> object | None:
        """The classes as coremltools wants them told; None where none are to be named."""
        if self.scored is None:
            return None
        told: object = sdk().ClassifierConfig(
            list(self.asked.classes),
            predicted_feature_name=self.label,
            predicted_probabilities_output=self.scored[1],
        )
        return told

    def _shape(self, value: ir.Value, order: tuple[int, ...] | None) -> object:
        shape = _sizes(value)
        order = order or tuple(range(len(shape)))
        if value.name in self._listed:
            shapes = shapes_of(self.asked.sizes[value.name or ""])
            return sdk().EnumeratedShapes([[one[axis] for axis in order] for one in shapes])
        return tuple(
            self._free(size) if isinstance(size, str) else size for size in (shape[a] for a in order)
        )


def pinned(sizes: Sizes) -> list[int | None]:
    """The sizes of an input that are one number; None for those that may be several.

    >>> pinned((1, "8..16")), pinned(((1, 8, 4), (1, 16, 4)))
    ([1, None], [1, None, 4])
    """
    if any(isinstance(size, tuple) for size in sizes):
        return [each[0] if len(set(each)) == 1 else None for each in zip(*shapes_of(sizes), strict=True)]
    bounds = [span(size) for size in sizes if not isinstance(size, tuple)]
    return [least if least == most else None for least, _, most in bounds]


def _state(value: ir.Value, out: Emitter) -> object:
    out.need(18, "a state")
    shape = _sizes(value)
    if any(isinstance(size, str) for size in shape):
        raise Unsupported(f"a state of free size {list(shape)}: fix it (--shape)")
    if not named(value).startswith("float"):
        raise Unsupported(f"a state of {named(value)}: Core ML keeps float16")
    return builder().state_tensor_placeholder(shape=shape, dtype=_builtin("fp16"))


def _placed(out: Emitter, value: ir.Value) -> Var:
    """The state that a value was read from."""
    read = out.carried[value].op.x.op
    return read.input


def _pair_behind(value: ir.Value) -> tuple[ir.Node, ir.Node] | None:
    """The QuantizeLinear and DequantizeLinear with one scale that alone read a value, if they can be said."""
    first = sole_consumer(value)
    second = None if first is None else sole_consumer(first.outputs[0])
    if first is None or second is None:
        return None
    if (first.op_type, second.op_type) != ("QuantizeLinear", "DequantizeLinear"):
        return None
    try:
        params = [quantization(node) for node in (first, second)]
    except Unsupported:  # the nodes say so when it is their turn
        return None
    said = all(len(one.scale) == 1 and one.type in BYTES for one in params)
    return (first, second) if said else None


def _turns(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == _TO_FIRST


def _channels_last(value: ir.Value) -> bool | None:
    """Whether an input of pixels has its colours last; None where it has none."""
    assert value.shape is not None
    if len(value.shape) != 4:
        return None
    first, last = (value.shape[axis] in (1, 3) for axis in (1, 3))
    if first and last:  # as who reads it takes it
        return any(_turns(user) for node, _ in value.uses() for user, _ in node.outputs[0].uses())
    return last if first or last else None


def _sizes(value: ir.Value) -> tuple[int | str, ...]:
    if value.shape is None:
        raise Unsupported("its rank is unknown: fix the sizes of the model's inputs (--shape)")
    sizes = tuple(size if isinstance(size, int) else str(size.value or "") for size in value.shape)
    if not 1 <= len(sizes) <= LARGEST_RANK:
        raise Unsupported(f"of {len(sizes)} axes; Core ML takes 1 to {LARGEST_RANK}")
    if "" in sizes:
        raise Unsupported("a size is unknown: fix it (--shape)")
    if 0 in sizes:
        raise Unsupported("a size of 0")
    return sizes


def named(value: ir.Value) -> str:
    """A value's type as NumPy calls it; empty where it has none."""
    return "" if value.dtype is None or value.dtype.is_string() else value.dtype.numpy().name


def _dtype(value: ir.Value) -> str:
    if named(value) not in _ENDS:
        raise Unsupported(f"a tensor of {named(value) or 'unknown type'}; there are {', '.join(_ENDS)}")
    return _ENDS[named(value)]


def _builtin(dtype: str) -> object:
    return mil().types.string_to_builtin(dtype)
