"""A program in Core ML's intermediate language (MIL), as it stands in a package's specification.

Field numbers are those of ``MIL.proto``, which coremltools publishes (``mlmodel/format``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from backends.coreml.storage import NARROW, unpacked
from backends.coreml.wire import Damaged, Message

DTYPES = {
    1: "bool", 2: "string", 10: "float16", 11: "float32", 12: "float64", 13: "bfloat16",
    21: "int8", 22: "int16", 23: "int32", 24: "int64", 25: "int4",
    31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4", 36: "uint2", 37: "uint1",
    38: "uint6", 39: "uint3", 40: "float8_e4m3fn", 41: "float8_e5m2",
}  # fmt: skip
_MOST_RANK = 32
_DEEPEST = 32
"""Blocks in blocks, and types in types."""
_IN_BYTES = frozenset(("float16", "int8", "uint8", "uint32", *NARROW))
"""Types whose immediate values are plain bytes."""
_INTEGERS = frozenset(("int16", "uint16", "int32"))


@dataclass(frozen=True)
class TensorType:
    """``shape`` has None for a size that is not known before running, and is None for any rank."""

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        sizes = "..." if self.shape is None else ", ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.dtype}[{sizes}]"


@dataclass(frozen=True)
class StateType:
    """What lives from one inference to the next."""

    of: TensorType


@dataclass(frozen=True)
class OtherType:
    """A list, tuple or dictionary."""

    kind: str


ValueType = TensorType | StateType | OtherType


@dataclass(frozen=True)
class Named:
    """A name that is given to a value, with its type."""

    name: str
    type: ValueType


class Value:
    """A constant: in the specification itself, or as a blob in a file at an offset."""

    __slots__ = ("_message", "blob", "type")

    def __init__(self, message: Message) -> None:
        self._message = message
        self.type = _type(message.message(2), 0)
        blob = message.message(5) if message.has(5) else None
        self.blob = None if blob is None else (blob.text(1), blob.natural(2))

    def tensor(self) -> np.ndarray:
        """The numbers or texts of an immediate tensor, in its shape. Raises Damaged where they do not fit."""
        if not isinstance(self.type, TensorType):
            raise Damaged("a constant that is no tensor")
        return _tensor(self._message.message(3).message(1), self.type)

    def items(self) -> np.ndarray | None:
        """Those of an immediate list or tuple of single values; None where it is neither."""
        immediate = self._message.message(3)
        number = 3 if immediate.has(3) else 2
        if not immediate.has(number):
            return None
        arrays = [Value(item).tensor() for item in immediate.message(number).messages(1)]
        if any(array.size != 1 for array in arrays):
            raise Damaged("a list of constants that are no single values")
        return np.concatenate([array.reshape(1) for array in arrays]) if arrays else np.zeros(0, np.int64)


Binding = str | Value
"""An argument: the name of a value, or a constant."""


@dataclass(frozen=True)
class Operation:
    """One operation. ``inputs`` may bind several values to one parameter."""

    type: str
    inputs: Mapping[str, tuple[Binding, ...]]
    outputs: tuple[Named, ...]
    blocks: tuple[Block, ...]
    attributes: Mapping[str, Value]

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.outputs[0].name if self.outputs else self.type

    def __str__(self) -> str:
        return f"{self.type} '{self.name}'"


@dataclass(frozen=True)
class Block:
    """Operations in the order in which they run; they see the values of the blocks around them."""

    inputs: tuple[Named, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Function:
    """``opset`` names the release that the operations' meanings are those of: CoreML6 is iOS 16."""

    inputs: tuple[Named, ...]
    opset: str
    block: Block


def functions_of(program: Message) -> dict[str, Function]:
    """The functions of a program by name. Raises Damaged."""
    return {name: _function(message) for name, message in program.entries(2)}


def _function(message: Message) -> Function:
    opset = message.text(2)
    blocks = dict(message.entries(3))
    if opset not in blocks and len(blocks) != 1:
        raise Damaged(f"a function without operations for {opset or 'any release'}")
    block = blocks.get(opset) or next(iter(blocks.values()))
    return Function(_named(message, 1), opset or next(iter(blocks)), _block(block, 0))


def _block(message: Message, depth: int) -> Block:
    if depth > _DEEPEST:
        raise Damaged(f"blocks in more than {_DEEPEST} blocks")
    operations = tuple(_operation(found, depth) for found in message.messages(3))
    return Block(_named(message, 1), tuple(message.texts(2)), operations)


def _operation(message: Message, depth: int) -> Operation:
    return Operation(
        message.text(1),
        {name: tuple(_binding(b) for b in argument.messages(1)) for name, argument in message.entries(2)},
        _named(message, 3),
        tuple(_block(block, depth + 1) for block in message.messages(4)),
        {name: Value(value) for name, value in message.entries(5) if name != "name"},
    )


def _binding(message: Message) -> Binding:
    return Value(message.message(2)) if message.has(2) else message.text(1)


def _named(message: Message, number: int) -> tuple[Named, ...]:
    return tuple(Named(found.text(1), _type(found.message(2), 0)) for found in message.messages(number))


def _type(message: Message, depth: int) -> ValueType:
    if depth > _DEEPEST:
        raise Damaged(f"types in more than {_DEEPEST} types")
    if message.has(1):
        return _tensor_type(message.message(1))
    if message.has(5):
        inner = _type(message.message(5).message(1), depth + 1)
        if not isinstance(inner, TensorType):
            raise Damaged("a state that is no tensor")
        return StateType(inner)
    kinds = {2: "list", 3: "tuple", 4: "dictionary"}
    return OtherType(next((kind for number, kind in kinds.items() if message.has(number)), "nothing"))


def _tensor_type(message: Message) -> TensorType:
    number, rank = message.natural(1), message.integer(2)
    if number not in DTYPES:
        raise Damaged(f"a tensor of type {number}")
    dimensions = message.messages(3)
    sizes: list[int | None] = []
    for dimension in dimensions:
        if dimension.has(1):
            sizes.append(dimension.message(1).natural(1))
        elif dimension.message(2).natural(1):
            return TensorType(DTYPES[number], None)
        else:
            sizes.append(None)
    if rank != len(sizes) or rank > _MOST_RANK:
        raise Damaged(f"a tensor of rank {rank} with {len(sizes)} sizes")
    return TensorType(DTYPES[number], tuple(sizes))


def sizes_of(kind: TensorType) -> tuple[int, ...]:
    """The sizes of a constant, which are all known. Raises Damaged."""
    if kind.shape is None or None in kind.shape:
        raise Damaged(f"a constant {kind}, whose sizes are not known")
    return tuple(size for size in kind.shape if size is not None)


def _tensor(message: Message, kind: TensorType) -> np.ndarray:
    shape = sizes_of(kind)
    count = 1
    for size in shape:
        count *= size  # of Python's own integers: they do not overflow
    values: np.ndarray
    if kind.dtype in _IN_BYTES:
        values = unpacked(np.frombuffer(message.message(7).content(1), np.uint8), kind.dtype, count)
    elif kind.dtype == "float32":
        values = message.message(1).fixed(1, "f4")
    elif kind.dtype == "float64":
        values = message.message(6).fixed(1, "f8")
    elif kind.dtype == "bool":
        values = message.message(3).varints(1) != 0
    elif kind.dtype in _INTEGERS:
        values = message.message(2).varints(1).astype(kind.dtype)
    elif kind.dtype in ("int64", "uint64"):
        values = message.message(5).varints(1).astype(kind.dtype)
    elif kind.dtype == "string":
        texts = message.message(4).texts(1)
        values = np.array(texts) if texts else np.zeros(0, np.str_)
    else:
        raise Damaged(f"an immediate constant of {kind.dtype}")
    if values.size != count:
        raise Damaged(f"a constant {kind} of {values.size} values")
    return values.reshape(shape)
