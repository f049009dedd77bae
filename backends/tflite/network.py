"""Tensors and operators of a .tflite file under construction, whatever they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from backends.tflite import wide
from backends.tflite.layout import Blocks, Order, plain
from deploy.spec.plan import QuantParams

Setting = int | float | bool | str
Options = tuple[str, dict[str, Setting]]
"""An operator's options: the name of their table in the schema, and fields; names stand for enumerators."""

NO_OPTIONS: Options = ("", {})
_SHORT = 64
"""Numbers of a constant that is looked for among those there are."""
ABSENT = -1
"""Stands for an operand that is left out."""


@dataclass(frozen=True)
class Flattened:
    """Of a tensor whose last axis was several, in another order than ONNX's: the axes before that.

    The tensor is ``value.reshape(sizes).transpose(order)``, reshaped.
    """

    sizes: tuple[int, ...]
    order: Order


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
    flattened: Flattened | None = None
    blocks: Blocks | None = None
    variable: bool = False
    """It keeps what an operator leaves in it until the next call."""

    @property
    def stored_bytes(self) -> int:
        """Of a constant, two numbers of 4 bits in a byte."""
        nbytes = 0 if self.data is None else self.data.nbytes
        return (nbytes + 1) // 2 if self.dtype == "int4" else nbytes


class Operator(NamedTuple):
    """``node`` names the node of the graph that reads ``inputs``; empty for a change of type or order."""

    code: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Options
    node: str


class Planned(NamedTuple):
    """The tensor that carries a value of the plan: for some readers only, or (``moved``) as another value."""

    name: str
    tensor: int
    partial: bool = False
    moved: bool = False


@dataclass
class Network:
    """What was emitted so far. ``node`` is the node of the graph that is being lowered."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)
    node: str = ""
    _names: set[str] = field(default_factory=set)
    _bytes: dict[int, tuple[int, str]] = field(default_factory=dict)
    """By reshaped tensor the one that has its bytes, and the node that reads that first."""
    _reshaped: dict[int, int] = field(default_factory=dict)
    """By reshaped tensor what it was said to be made of."""
    _numbers: dict[tuple[str, tuple[int, ...], bytes | str], int] = field(default_factory=dict)

    def add(self, tensor: Tensor) -> int:
        """A tensor more, under a free name."""
        stem, count = tensor.name, 2
        while tensor.name in self._names:
            tensor.name, count = f"{stem}_{count}", count + 1
        self._names.add(tensor.name)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def numbers(self, array: np.ndarray, name: str) -> int:
        """A constant of our own: sizes, axes, widths. Equal short ones are one tensor, by its first name."""
        key = (array.dtype.name, array.shape, array.tobytes() if array.size <= _SHORT else name)
        if key not in self._numbers or array.size > _SHORT:
            made = Tensor(name, array.shape, array.dtype.name, plain(array.ndim), None, array)
            self._numbers[key] = self.add(made)
        return self._numbers[key]

    def step(
        self,
        code: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        options: Options = NO_OPTIONS,
        *,
        dtype: str = "float32",
        order: Order | None = None,
        params: QuantParams | None = None,
        version: int = 1,
    ) -> int:
        """An operator on the way to a node's result; ``shape`` as stored, in ``order`` (ONNX's if None)."""
        name = f"{self.node}/{code.lower()}"
        kept = order or plain(len(shape))
        return self.inner(code, inputs, Tensor(name, tuple(shape), dtype, kept, params), options, version)

    def inner(
        self, code: str, inputs: Sequence[int], like: Tensor, options: Options = NO_OPTIONS, version: int = 1
    ) -> int:
        """As `step`, its tensor given."""
        if like.params is not None and like.params.type == "int16":
            version = wide.version(code)
        index = self.add(like)
        self._append(code, version, inputs, [index], options)
        return index

    def _append(
        self, code: str, version: int, inputs: Sequence[int], made: Sequence[int], options: Options
    ) -> None:
        node = self.node
        if code == "RESHAPE" and not self.tensors[made[0]].shape:  # no vector of sizes can be empty
            code, inputs, options = "SQUEEZE", inputs[:1], ("SqueezeOptions", {})
        elif code == "RESHAPE":  # of a reshaped tensor is one of what that was made of
            source, first = self._bytes.get(inputs[0], (inputs[0], ""))
            node = first or node
            self._bytes[made[0]] = source, node
            self._reshaped[made[0]] = inputs[0]
            inputs = [source, *inputs[1:]]
        self.operators.append(Operator(code, version, tuple(inputs), tuple(made), options, node))

    def prune(self) -> dict[int, int]:
        """Drop operators of whose results nobody reads any, and the tensors that nothing touches any more.

        Returns the new numbers of those that are left.
        """
        self._read_where_quantized()
        read = {index for operator in self.operators for index in operator.inputs} | set(self.outputs)
        self.planned = [
            p if p.tensor in read or p.tensor not in self._bytes else self._held_elsewhere(p)
            for p in self.planned
        ]
        live = {*self.outputs, *(p.tensor for p in self.planned)}
        kept = []
        for operator in reversed(self.operators):
            if live.intersection(operator.outputs):
                live.update(operator.inputs, operator.outputs)
                kept.append(operator)
        live.update(self.inputs)
        number = {old: new for new, old in enumerate(sorted(live - {ABSENT}))} | {ABSENT: ABSENT}
        self.tensors = [tensor for index, tensor in enumerate(self.tensors) if index in live]
        self.operators = [
            operator._replace(
                inputs=tuple(number[i] for i in operator.inputs),
                outputs=tuple(number[i] for i in operator.outputs),
            )
            for operator in reversed(kept)
        ]
        self.inputs = [number[i] for i in self.inputs]
        self.outputs = [number[i] for i in self.outputs]
        self.planned = [p._replace(tensor=number[p.tensor]) for p in self.planned]
        self._bytes.clear()
        self._reshaped.clear()
        self._numbers.clear()
        return number

    def _read_where_quantized(self) -> None:
        """A reshape of what is quantized, too, reads that: so the file tells that its floats have readers."""
        quantized = {operator.inputs[0] for operator in self.operators if operator.code == "QUANTIZE"}
        for number, operator in enumerate(self.operators):
            source = self._reshaped.get(operator.outputs[0], ABSENT)
            if source in quantized:
                self.operators[number] = operator._replace(inputs=(source, *operator.inputs[1:]))

    def _held_elsewhere(self, planned: Planned) -> Planned:
        """A planned value whose own tensor nobody reads, but the one that has its bytes."""
        return planned._replace(tensor=self._bytes[planned.tensor][0], moved=True)
