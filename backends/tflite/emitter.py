"""Tensors and operators of a .tflite file under construction, and how the graph's values are stored in them.

The emitter knows nothing of the file format's bytes: `write.py` turns what it gathered into a file, `check`
throws it away. Each value of the graph is carried by one tensor; the tensor of an integer operation's result
is the integer one, whose name in the graph is that of the QuantizeLinear's result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from backends.tflite.layout import Order, between, plain, same_memory
from deploy.graph.edit import constant, is_constant, scalar, sole_consumer
from deploy.spec.plan import QuantParams

Setting = int | float | bool | str
Options = tuple[str, dict[str, Setting]]
"""An operator's options: the name of their table in the schema, and fields; names stand for enumerators."""

NO_OPTIONS: Options = ("", {})
_TYPES = ("float32", "int8", "uint8", "int32", "int64", "bool")


class Unsupported(Exception):  # noqa: N818 (it is a verdict, caught for each node)
    """A node that cannot be said in TFLite, with the reason."""


@dataclass
class Tensor:
    """A tensor of the file. ``shape`` is as stored, -1 for a free size; ``order`` leads there from ONNX's."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    order: Order
    params: QuantParams | None = None
    """Its axis counts as stored."""
    data: np.ndarray | None = None


@dataclass(frozen=True)
class Operator:
    """``node`` names the node of the graph that reads ``inputs``; empty for a change of type or order."""

    code: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Options
    node: str


@dataclass
class Emitter:
    """What was emitted so far. ``planned``: plan name, tensor, whether it is for some readers only."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    carried: dict[ir.Value, int] = field(default_factory=dict)
    fused: set[ir.Node] = field(default_factory=set)
    planned: list[tuple[str, int, bool]] = field(default_factory=list)
    node: str = ""
    _names: set[str] = field(default_factory=set)
    _derived: dict[tuple[int, str, Order], int] = field(default_factory=dict)
    _constants: dict[tuple[ir.Value, Order, tuple[int, ...]], int] = field(default_factory=dict)

    # --- what a node is made of -----------------------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Sizes of a value in ONNX's order, -1 for a free one. Raises Unsupported for an unknown rank."""
        if value is None or value.shape is None:
            raise Unsupported("the rank of what it reads or makes is unknown")
        sizes = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        if 0 in sizes:
            raise Unsupported(f"'{value.name}' has a size of 0, of which TFLite makes no tensor")
        return sizes

    def params(self, value: ir.Value | None) -> QuantParams | None:
        """By what a value is quantized when read: an integer tensor carries it, or integers are stored."""
        if value in self.carried:
            return self.tensors[self.carried[value]].params
        source = None if value is None else value.producer()
        return _params(source) if source is not None and source.op_type == "DequantizeLinear" else None

    def stored(self, value: ir.Value) -> QuantParams | None:
        """By what a result is to be stored as integers: every reader quantizes it, most by these."""
        first = _quantize_of(value)
        return None if first is None else _params(first)

    def integer(self, result: ir.Value, operands: Sequence[ir.Value | None]) -> QuantParams | None:
        """The result's parameters where operands and result are int8: the operation computes in it."""
        wanted = self.stored(result)
        have = [self.params(value) for value in operands]
        if wanted is None or wanted.type != "int8" or any(p is None or p.type != "int8" for p in have):
            return None
        return wanted

    def moved(self, result: ir.Value, operands: Sequence[ir.Value | None]) -> QuantParams | None:
        """As `integer`, where the operation cannot change the parameters."""
        wanted = self.integer(result, operands)
        return wanted if wanted and all(self.params(value) == wanted for value in operands) else None

    def activation(self, node: ir.Node) -> tuple[ir.Value, str]:
        """The result of a node with the activation behind it, if TFLite fuses that, and its name."""
        result = node.outputs[0]
        after = None if result.is_graph_output() else sole_consumer(result)
        name = "NONE" if after is None else activation_of(after)
        if after is None or name == "NONE":
            return result, "NONE"
        self.fused.add(after)
        return after.outputs[0], name

    # --- reading --------------------------------------------------------------------------------------------

    def order(self, value: ir.Value | None) -> Order:
        """How a value that is no constant is stored."""
        assert value is not None
        return self.tensors[self._of(value)].order

    def read(self, value: ir.Value | None, order: Order | None = None, *, integer: bool = False) -> int:
        """The tensor of a value in ``order``, as it is without one; dequantized unless ``integer``."""
        assert value is not None
        if value not in self.carried and _stored_constant(value) is not None:
            return self._constant_operand(value, order or plain(len(self.shape(value))), integer)
        index = self._of(value)
        if not integer and self.tensors[index].params is not None:
            index = self._dequantized(index, value)
        return index if order is None else self.reordered(index, order)

    def flat(self, value: ir.Value | None, *, integer: bool = False) -> int:
        """The tensor of a value with its elements in ONNX's order, whatever its shape."""
        assert value is not None
        index = self.read(value, integer=integer)
        shape, order = self.shape(value), self.tensors[index].order
        straight = plain(len(shape))
        return index if same_memory(shape, order, straight) else self.reordered(index, straight)

    def weight(self, value: ir.Value | None, order: Order, *, integer: bool) -> int:
        """A constant operand with its axes in ``order``. Raises Unsupported for one that is computed."""
        if value is None or _stored_constant(value) is None:
            raise Unsupported("its weights must be constants")
        return self._constant_operand(value, order, integer)

    def bias(self, value: ir.Value | None, size: int, scale: QuantParams | None) -> int:
        """The bias of ``size`` numbers, zeros where there is none; int32 with ``scale`` for integers."""
        if value is None:
            dtype = np.float32 if scale is None else np.int32
            return self.add(Tensor("bias", (size,), np.dtype(dtype).name, (0,), scale, np.zeros(size, dtype)))
        array = _stored_constant(value)
        if array is None or array.size != size:
            raise Unsupported("its bias must be a constant with one number a channel")
        if scale is not None and (array.dtype != np.int32 or self.params(value) is None):
            raise Unsupported("an integer operation needs its bias as int32")
        return self._constant_operand(value, plain(array.ndim), scale is not None, (size,))

    def _of(self, value: ir.Value) -> int:
        if value not in self.carried:
            raise Unsupported(f"'{value.name}' is a result that TFLite has no tensor for")
        return self.carried[value]

    def _constant_operand(
        self, value: ir.Value, order: Order, integer: bool, shape: tuple[int, ...] | None = None
    ) -> int:
        key = (value, order, shape or ())
        if key not in self._constants:
            array = _stored_constant(value)
            assert array is not None
            if array.dtype.name not in _TYPES:
                raise Unsupported(f"a constant of {array.dtype}")
            params = self.params(value)
            if params is not None and params.axis is not None:
                axis = order.index(params.axis % array.ndim)
                params = params.model_copy(update={"axis": axis})
            array = array.reshape(*([1] * (len(order) - array.ndim)), *array.shape).transpose(order)
            data = np.ascontiguousarray(array).reshape(shape or array.shape)
            name = value.name or "constant"
            self._constants[key] = self.add(Tensor(name, data.shape, data.dtype.name, order, params, data))
            if params is not None:
                self.planned.append((name, self._constants[key], False))
        index = self._constants[key]
        return index if integer or self.tensors[index].params is None else self._dequantized(index, value)

    # --- writing --------------------------------------------------------------------------------------------

    def add(self, tensor: Tensor) -> int:
        """A tensor more, under a free name."""
        stem, count = tensor.name, 2
        while tensor.name in self._names:
            tensor.name, count = f"{stem}_{count}", count + 1
        self._names.add(tensor.name)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def numbers(self, array: np.ndarray, name: str) -> int:
        """A constant of our own: sizes, axes, widths."""
        return self.add(Tensor(name, array.shape, array.dtype.name, plain(array.ndim), None, array))

    def emit(
        self,
        code: str,
        inputs: Sequence[int],
        result: ir.Value,
        options: Options = NO_OPTIONS,
        *,
        order: Order | None = None,
        params: QuantParams | None = None,
        version: int | None = None,
    ) -> int:
        """An operator whose result is a value of the graph, as integers by ``params`` where given.

        ``version`` is 1 in float and 2 in INT8 where not given: so it is for most.
        """
        index = self.results(code, inputs, [result], options, order=order, params=params, version=version)
        return index[0]

    def results(
        self,
        code: str,
        inputs: Sequence[int],
        results: Sequence[ir.Value],
        options: Options = NO_OPTIONS,
        *,
        order: Order | None = None,
        params: QuantParams | None = None,
        version: int | None = None,
    ) -> list[int]:
        """An operator with several results, all stored alike."""
        made = []
        for result in results:
            shape = self.shape(result)
            quantize = _quantize_of(result) if params is not None else None
            name = (quantize.outputs[0].name if quantize else result.name) or ""
            dtype = _dtype(result) if params is None else params.type
            kept = order or plain(len(shape))
            stored = tuple(shape[axis] for axis in kept)
            made.append(self.add(Tensor(name, stored, dtype, kept, params)))
            self.carried[result] = made[-1]
        lowest = 1 if params is None else 2
        self.operators.append(
            Operator(code, version or lowest, tuple(inputs), tuple(made), options, self.node)
        )
        return made

    def inner(
        self, code: str, inputs: Sequence[int], like: Tensor, options: Options = NO_OPTIONS, version: int = 1
    ) -> int:
        """An operator whose result is no value of the graph; ``like`` is what it makes."""
        index = self.add(like)
        self.operators.append(Operator(code, version, tuple(inputs), (index,), options, self.node))
        return index

    def reordered(self, index: int, order: Order) -> int:
        """A tensor in another order: itself where it has it, a reshape where no element moves."""
        tensor = self.tensors[index]
        if tensor.order == order:
            return index
        key = (index, "order", order)
        if key not in self._derived:
            shape = tuple(tensor.shape[tensor.order.index(axis)] for axis in range(len(order)))
            stored = tuple(shape[axis] for axis in order)
            name = f"{tensor.name}/{''.join(map(str, order))}"
            made = Tensor(name, stored, tensor.dtype, order, tensor.params)
            node, self.node = self.node, ""
            if same_memory(shape, tensor.order, order) and stored.count(-1) <= 1:
                sizes = self.numbers(np.array(stored, np.int32), f"{name}/shape")
                self._derived[key] = self.inner("RESHAPE", [index, sizes], made)
            else:
                perm = self.numbers(np.array(between(tensor.order, order), np.int32), f"{name}/perm")
                version = 1 if tensor.params is None else 2
                self._derived[key] = self.inner("TRANSPOSE", [index, perm], made, version=version)
            self.node = node
        return self._derived[key]

    def _dequantized(self, index: int, value: ir.Value) -> int:
        tensor = self.tensors[index]
        key = (index, "float", tensor.order)
        if key not in self._derived:
            made = Tensor(f"{value.name}/float", tensor.shape, "float32", tensor.order)
            node, self.node = self.node, ""
            self._derived[key] = self.inner("DEQUANTIZE", [index], made, version=2)
            self.node = node
        return self._derived[key]

    def quantize(self, node: ir.Node) -> None:
        """A QuantizeLinear: nothing where its source is stored by its parameters, an operator otherwise."""
        source, codes = node.inputs[0], node.outputs[0]
        params = _params(node)
        if source is None or params.type != "int8" or params.axis is not None:
            raise Unsupported("activations are quantized to int8, with one scale")
        index = self.read(source, integer=True)
        tensor = self.tensors[index]
        if tensor.params != params:
            made = Tensor(codes.name or "", tensor.shape, "int8", tensor.order, params)
            version = 1 if tensor.params is None else 2
            kept, self.node = self.node, ""
            index = self.inner("QUANTIZE", [index], made, version=version)
            self.node = kept
        self.carried[codes] = index
        name = _planned_name(source)
        self.planned.append((name, index, (node.name or "").startswith(name + "@")))

    def dequantize(self, node: ir.Node) -> None:
        """A DequantizeLinear: who reads its result takes the integers, or asks for floats."""
        codes = node.inputs[0]
        if is_constant(codes):
            _params(node)
        else:
            assert codes is not None
            self.carried[node.outputs[0]] = self._of(codes)


def activation_of(node: ir.Node) -> str:
    """The activation that TFLite fuses for this node, NONE where it is none of them."""
    if node.op_type == "Relu":
        return "RELU"
    if node.op_type != "Clip":
        return "NONE"
    low, high = (_bound(node, index) for index in (1, 2))
    bounds: dict[tuple[float | None, float | None], str] = {
        (0.0, None): "RELU",
        (0.0, 6.0): "RELU6",
        (-1.0, 1.0): "RELU_N1_TO_1",
    }
    return bounds.get((low, high), "NONE")


def _bound(node: ir.Node, index: int) -> float | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    number = scalar(value)
    if number is None:
        return float("nan")  # computed: equal to none of the bounds
    return None if index == 2 and number >= float(np.finfo(np.float32).max) else number


def _dtype(value: ir.Value) -> str:
    name = "" if value.dtype is None or value.dtype.is_string() else value.dtype.numpy().name
    if name != "float32":
        raise Unsupported(f"a result of {name or 'unknown type'}; so far it is written for float32 only")
    return name


def _stored_constant(value: ir.Value) -> np.ndarray | None:
    """The numbers that a file stores for a constant: its integers, where it is dequantized."""
    source = value.producer()
    if source is not None and source.op_type == "DequantizeLinear":
        return constant(source.inputs[0])
    return constant(value)


def _quantize_of(value: ir.Value) -> ir.Node | None:
    """The QuantizeLinear by which a value is stored; None where somebody reads it as it is."""
    readers = [user for user, _ in value.uses()]
    if not readers or value.is_graph_output() or any(r.op_type != "QuantizeLinear" for r in readers):
        return None
    return min(readers, key=lambda r: "@" in (r.name or ""))


def _planned_name(source: ir.Value) -> str:
    """The planned name of what a QuantizeLinear reads; a quantized output of the graph has passed it on."""
    for quantize, _ in source.uses():
        for dequantize, _ in quantize.outputs[0].uses() if quantize.op_type == "QuantizeLinear" else ():
            if dequantize.outputs[0].is_graph_output():
                return dequantize.outputs[0].name or ""
    return source.name or ""


def _params(node: ir.Node) -> QuantParams:
    scale = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or zero is None or scale.dtype != np.float32:
        raise Unsupported("scale and zero point must be constants, the scale float32")
    if zero.dtype.name not in ("int8", "int32"):
        raise Unsupported(f"quantized to {zero.dtype}; so far it is written for int8 only")
    return QuantParams(
        type="int8" if zero.dtype == np.int8 else "int32",
        scale=tuple(float(s) for s in np.atleast_1d(scale)),
        zero_point=tuple(int(z) for z in np.atleast_1d(zero)),
        axis=node.attributes.get_int("axis", 1) if scale.ndim else None,
    )
