"""How the graph's values are stored in the tensors of a .tflite file under construction.

The emitter knows nothing of the file format's bytes: `write.py` turns what it gathered into a file, `check`
throws it away. Each value of the graph is carried by one tensor; the tensor of an integer operation's result
is the integer one, whose name in the graph is that of the QuantizeLinear's result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from backends.tflite import wide
from backends.tflite.layout import LACKING, Order, between, own_axes, plain, same_memory, stored_sizes
from backends.tflite.network import NO_OPTIONS, Flattened, Network, Options, Planned, Setting, Tensor
from backends.tflite.reading import TYPES, activation_of, dtype_of, params_of, quantize_of, stored_constant
from deploy.adapter.optable import Unsupported
from deploy.graph.edit import sole_consumer
from deploy.graph.qdq import dequantize_array
from deploy.spec.plan import QuantParams

_COARSEST = 64.0
"""XNNPACK takes up to 256; what sane ranges give is below 1."""
_HALF = "float16"
_DEQUANTIZE = {"int8": 2, "int16": 3, _HALF: 3, "int4": 6}
"""The version of DEQUANTIZE from which it takes a type; INT8 by channel takes 5."""


@dataclass
class Emitter(Network):
    """A network that is made of a graph. ``carried`` is the tensor that stands for a value.

    ``fused`` are nodes that became part of another's operator. ``rounding`` are the nodes that compute in
    integers by scales found while running. ``integers`` are the operations that the runtime computes in INT8;
    None for all that have a kernel.
    """

    carried: dict[ir.Value, int] = field(default_factory=dict)
    fused: set[ir.Node] = field(default_factory=set)
    rounding: frozenset[str] = frozenset()
    integers: frozenset[str] | None = None
    folds: bool = False
    """Convolutions of few channels may take the form that XNNPACK computes faster."""
    operation: str = ""
    _derived: dict[tuple[int, str, Order], int] = field(default_factory=dict)
    _requantized: dict[tuple[int, QuantParams], int] = field(default_factory=dict)
    _views: dict[int, tuple[int, str]] = field(default_factory=dict)
    """By view the tensor that it shows, and the node that reads that first."""
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
        return params_of(source) if source is not None and source.op_type == "DequantizeLinear" else None

    def stored(self, value: ir.Value) -> QuantParams | None:
        """By what a result is to be stored as integers: every reader quantizes it by these.

        Integers by other parameters cannot be made of those: they would be rounded and clipped twice.
        """
        first = quantize_of(value)
        if first is None:
            return None
        params = params_of(first)
        return params if all(params_of(reader) == params for reader, _ in value.uses()) else None

    def integer(self, result: ir.Value, operands: Sequence[ir.Value | None]) -> QuantParams | None:
        """The result's parameters where operands and result are int8, or all but weights int16.

        Then the operation computes in integers.
        """
        wanted = self.stored(result)
        types = {None if (p := self.params(value)) is None else p.type for value in operands}
        if wanted is None or None in types:
            return None
        if wanted.type == "int16" and self.operation in wide.OPERATIONS:
            made = {None if (p := self.params(v)) is None else p.type for v in operands if v in self.carried}
            return wanted if made == {"int16"} and types <= {"int16", "int8"} else None
        return wanted if wanted.type == "int8" and types == {"int8"} else None

    def product(
        self, result: ir.Value, source: ir.Value | None, weights: ir.Value | None
    ) -> QuantParams | None:
        """As `integer`, of a product whose scale may be at most so much coarser than the result's.

        Beyond that LiteRT refuses the file, or ends the process: the product is then computed in float.
        """
        wanted, read, stored = (
            self.integer(result, [source, weights]),
            self.params(source),
            self.params(weights),
        )
        if wanted is None or read is None or stored is None:
            return None
        coarser = read.scale[0] * max(stored.scale) / wanted.scale[0]
        return wanted if coarser < _COARSEST else None

    def moved(self, result: ir.Value, operands: Sequence[ir.Value | None]) -> QuantParams | None:
        """As `integer`, where the operation cannot change the parameters."""
        wanted = self.integer(result, operands)
        return wanted if wanted and all(self.params(value) == wanted for value in operands) else None

    def listed(self, node: ir.Node) -> bool:
        """Whether the runtime computes such a node in INT8: a kernel that it has may split the graph."""
        return self.integers is None or node.op_type in self.integers

    def hybrid(self, node: ir.Node, weights: ir.Value | None) -> bool:
        """Whether a node reads its weights as integers, rounding the floats beside them while it runs."""
        params = self.params(weights)
        return node.name in self.rounding and params is not None and params.type == "int8"

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
        """How a value that is no constant is stored, but for axes that it lacks."""
        assert value is not None
        return own_axes(self.tensors[self.tensor_of(value)].order)

    def read(self, value: ir.Value | None, order: Order | None = None, *, integer: bool = False) -> int:
        """The tensor of a value in ``order``, as it lies without one; dequantized unless ``integer``."""
        assert value is not None
        if value not in self.carried and stored_constant(value) is not None:
            return self._constant_operand(value, order or plain(len(self.shape(value))), integer)
        index = self.tensor_of(value)
        if not integer and self.tensors[index].params is not None:
            index = self._dequantized(index, value)
        return self.reordered(index, own_axes(self.tensors[index].order) if order is None else order)

    def flat(self, value: ir.Value | None, *, integer: bool = False) -> int:
        """The tensor of a value with its elements in ONNX's order, whatever its shape."""
        assert value is not None
        index = self.read(value, integer=integer)
        shape, order = self.shape(value), self.tensors[index].order
        straight = plain(len(shape))
        return index if same_memory(shape, order, straight) else self.reordered(index, straight)

    def weight(
        self, value: ir.Value | None, order: Order, *, integer: bool, flattened: Flattened | None = None
    ) -> int:
        """A constant operand with its axes in ``order``. Raises Unsupported for one that is computed.

        It is a matrix whose columns are laid as another tensor was ``flattened`` where that is given.
        """
        if value is None or stored_constant(value) is None:
            raise Unsupported("its weights must be constants")
        if flattened is None:
            return self._constant_operand(value, order, integer)
        index = self._permuted(self._constant_operand(value, order, integer=True), flattened)
        return index if integer or self._is_float(index) else self._dequantized(index, value)

    def bias(self, value: ir.Value | None, size: int, scale: QuantParams | None) -> int:
        """The bias of ``size`` numbers, zeros where there is none; integers by ``scale`` where that is given.

        Floats beside integers are rounded here: where activations have 16 bits, and where a bias is shared by
        operations that would round it by different scales. The steps are so fine that there is nothing to
        choose.
        """
        if scale is not None and (
            scale.type == "int64" or (value is not None and self.params(value) is None)
        ):
            return self._rounded_bias(value, size, scale)
        if value is None:
            dtype = np.float32 if scale is None else np.int32
            return self.add(Tensor("bias", (size,), np.dtype(dtype).name, (0,), scale, np.zeros(size, dtype)))
        array = stored_constant(value)
        if array is None or array.size != size:
            raise Unsupported("its bias must be a constant with one number a channel")
        if scale is not None and array.dtype != np.int32:
            raise Unsupported("an integer operation needs its bias as int32")
        return self._constant_operand(value, plain(array.ndim), scale is not None, (size,))

    def _rounded_bias(self, value: ir.Value | None, size: int, scale: QuantParams) -> int:
        given = np.zeros(size, np.float32) if value is None else stored_constant(value)
        if given is None or given.size != size or given.dtype != np.float32:
            raise Unsupported("its bias must be a float constant with one number a channel")
        limits = np.iinfo(scale.type)
        codes = np.rint(given.reshape(size) / np.array(scale.scale, np.float64))
        if np.abs(codes).max(initial=0) > limits.max:
            raise Unsupported(f"its bias does not fit into {scale.type}: widen the ranges beside it")
        name = "bias" if value is None else value.name or "bias"
        return self.add(Tensor(name, (size,), scale.type, (0,), scale, codes.astype(limits.dtype)))

    def tensor_of(self, value: ir.Value) -> int:
        """The tensor that stands for a value. Raises Unsupported where none does."""
        if value not in self.carried:
            raise Unsupported(f"'{value.name}' is a result that TFLite has no tensor for")
        return self.carried[value]

    def _constant_operand(
        self, value: ir.Value, order: Order, integer: bool, shape: tuple[int, ...] | None = None
    ) -> int:
        key = (value, order, shape or ())
        if key not in self._constants:
            array = stored_constant(value)
            assert array is not None
            if array.dtype.name not in (*TYPES, _HALF):
                raise Unsupported(f"a constant of {array.dtype}")
            params = self.params(value)
            if params is not None and params.axis is not None:
                axis = order.index(params.axis % array.ndim)
                params = params.model_copy(update={"axis": axis})
            own = own_axes(order)
            array = array.reshape((1,) * (len(own) - array.ndim) + array.shape)
            data = np.ascontiguousarray(array.transpose(own)).reshape(
                shape or stored_sizes(array.shape, order)
            )
            name = value.name or "constant"
            dtype = "int4" if params is not None and params.type == "int4" else data.dtype.name
            self._constants[key] = self.add(Tensor(name, data.shape, dtype, order, params, data))
            if params is not None:
                self.planned.append(Planned(name, self._constants[key]))
        index = self._constants[key]
        return index if integer or self._is_float(index) else self._dequantized(index, value)

    def _is_float(self, index: int) -> bool:
        return self.tensors[index].params is None and self.tensors[index].dtype != _HALF

    # --- writing --------------------------------------------------------------------------------------------

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

    def view(self, index: int, result: ir.Value, order: Order, params: QuantParams | None) -> None:
        """The same bytes as another value, in whose ``order`` they lie.

        It is a tensor of its own, for name and parameters, made by an operator that does nothing. Who wants
        it in yet another order reads the first one.
        """
        sizes = self.numbers(np.array(self.tensors[index].shape, np.int32), f"{self.node}/shape")
        made = self.emit("RESHAPE", [index, sizes], result, order=order, params=params, version=1)
        self._views[made] = self._views.get(index, (index, self.node))

    def _permuted(self, index: int, flattened: Flattened) -> int:
        """A constant (rows, columns) with its columns in the order in which another tensor was flattened."""
        tensor = self.tensors[index]
        assert tensor.data is not None
        data = tensor.data.reshape(flattened.sizes).transpose(flattened.order).reshape(tensor.shape)
        made = self.add(replace(tensor, data=np.ascontiguousarray(data), flattened=flattened))
        self.planned = [p._replace(tensor=made) if p.tensor == index else p for p in self.planned]
        return made

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
            quantize = quantize_of(result) if params is not None else None
            name = (quantize.outputs[0].name if quantize else result.name) or ""
            dtype = dtype_of(result) if params is None else params.type
            kept = order or plain(len(shape))
            stored = stored_sizes(shape, kept)
            made.append(self.add(Tensor(name, stored, dtype, kept, params)))
            self.carried[result] = made[-1]
        if params is not None and params.type == "int16":
            version = wide.version(code)
            extra: dict[str, Setting] = {"potScaleInt16": False} if code in wide.POWERS_OF_TWO else {}
            options = (options[0], {**options[1], **extra})
        lowest = 1 if params is None else 2
        self._append(code, version or lowest, inputs, made, options)
        return made

    def reordered(self, index: int, order: Order) -> int:
        """A tensor in another order: itself where it has it, a reshape where no element moves."""
        tensor = self.tensors[index]
        if tensor.order == order:
            return index
        key = (index, "order", order)
        if key not in self._derived:
            shape = tuple(tensor.shape[tensor.order.index(axis)] for axis in range(len(own_axes(order))))
            stored, moves = stored_sizes(shape, order), not same_memory(shape, tensor.order, order)
            several = stored.count(-1) > 1
            own, wanted = own_axes(tensor.order), own_axes(order)
            if (moves or several) and own != wanted and (own != tensor.order or wanted != order):
                middle = own if own != tensor.order else wanted
                return self.reordered(self.reordered(index, middle), order)
            name = f"{tensor.name}/{''.join(map(str, order))}"
            made = Tensor(name, stored, tensor.dtype, order, tensor.params)
            index, first = self._views.get(index, (index, ""))
            node, self.node = self.node, "" if tensor.params is None else first
            if several and wanted != order:
                place = self.numbers(np.array(order.index(LACKING), np.int32), f"{name}/axis")
                self._derived[key] = self.inner("EXPAND_DIMS", [index, place], made)
            elif several and own != tensor.order:
                options: Options = ("SqueezeOptions", {"squeezeDims": tensor.order.index(LACKING)})
                self._derived[key] = self.inner("SQUEEZE", [index], made, options)
            elif not moves and not several:
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
            made = replace(tensor, name=f"{value.name}/float", dtype="float32", params=None, data=None)
            if tensor.dtype == "int32" and tensor.data is not None and tensor.params is not None:
                made.data = dequantize_array(tensor.data, tensor.params)  # DEQUANTIZE takes no int32
                self._derived[key] = self.add(made)
                return self._derived[key]
            node, self.node = self.node, ""
            channels = tensor.params is not None and tensor.params.axis is not None
            version = 5 if channels and tensor.dtype == "int8" else _DEQUANTIZE[tensor.dtype]
            self._derived[key] = self.inner("DEQUANTIZE", [index], made, version=version)
            self.node = node
        return self._derived[key]

    def requantized(self, index: int, name: str, params: QuantParams) -> int:
        """A tensor by other parameters; all who want it so read one."""
        tensor, key = self.tensors[index], (index, params)
        if key not in self._requantized:
            made = replace(tensor, name=name, dtype=params.type, params=params, data=None)
            version = 1 if tensor.params is None and params.type == "int8" else 2
            self._requantized[key] = self.inner("QUANTIZE", [index], made, version=version)
        return self._requantized[key]

    def prune(self) -> dict[int, int]:
        number = super().prune()
        self.carried = {value: number[i] for value, i in self.carried.items() if i in number}
        self._derived.clear()
        self._requantized.clear()
        self._views.clear()
        self._constants.clear()
        return number
