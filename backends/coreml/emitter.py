"""A MIL program under construction: which variable stands for which value of the graph.

MIL knows float16, float32, int32 and bool inside of a program, and integers of 8 and 4 bits where something
is quantized. ONNX's int64 becomes int32; so do the bounds of slices that mean "to the end".
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.coreml.sdk import builder
from deploy.adapter.optable import Unsupported
from deploy.graph.edit import constant, is_constant
from deploy.graph.qdq import dequantize_array, params_of
from deploy.spec.plan import QuantParams

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Var

TARGETS = {"iOS16": 16, "iOS17": 17, "iOS18": 18, "macOS13": 16, "macOS14": 17, "macOS15": 18}
"""Deployment targets that are written for, by the name that profiles give them."""
_INT32 = np.iinfo(np.int32)
_STORED = ("int8", "uint8", "int4", "uint4", "int32")
"""What values can be quantized to; int32 for biases, which become floats."""
_IDENTIFIER = re.compile(r"[^A-Za-z0-9_]")


@dataclass
class Emitter:
    """Appends to the function that is open. ``level`` is the oldest iOS that is to run it, ``half`` says
    whether float16 is what its floats will be.

    ``carried`` holds the variable of every value met so far, ``planned`` the planned names of values with the
    variables that hold their integers and whether that is for some readers only, ``weights`` those of float
    constants, ``makers`` the node that a variable was made for, by the variable's name.
    """

    level: int
    half: bool = False
    carried: dict[ir.Value, Var] = field(default_factory=dict)
    planned: list[tuple[str, Var, bool]] = field(default_factory=list)
    weights: dict[str, Var] = field(default_factory=dict)
    forms: Counter[str] = field(default_factory=Counter)
    """How many weights lie in a form that makes them smaller, in words."""
    makers: dict[str, str] = field(default_factory=dict)
    stored_by_outputs: set[ir.Value] = field(default_factory=set)
    """Constant matrices whose axes are exchanged in the file."""
    node: str = ""
    _taken: set[str] = field(default_factory=set)
    _constants: dict[ir.Value, Var] = field(default_factory=dict)
    _alike: dict[tuple[str, ...], Var] = field(default_factory=dict)

    def need(self, level: int, what: str) -> None:
        """Raises Unsupported where the deployment target is too old for ``what``."""
        if self.level < level:
            raise Unsupported(
                f"{what} needs iOS {level} or macOS {level - 3}, and this is for iOS {self.level}, "
                f"macOS {self.level - 3}: set minimum_deployment_target = 'iOS{level}'"
            )

    # --- reading --------------------------------------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> tuple[int | None, ...]:
        """The sizes of a value, None for a free one. Raises Unsupported where the rank is unknown."""
        if value is None or value.shape is None:
            name = "an operand that is left out" if value is None else f"'{value.name}'"
            raise Unsupported(f"the rank of {name} is unknown: fix the sizes of the model's inputs (--shape)")
        return tuple(size if isinstance(size, int) else None for size in value.shape)

    def fixed(self, value: ir.Value | None) -> tuple[int, ...]:
        """The sizes of a value, all of them known. Raises Unsupported where one is free."""
        shape = self.shape(value)
        sizes = tuple(size for size in shape if size is not None)
        if len(sizes) < len(shape):
            assert value is not None
            raise Unsupported(f"a size of '{value.name}' is free: fix the sizes of the inputs (--shape)")
        return sizes

    def rank(self, value: ir.Value | None) -> int:
        """The number of axes of a value."""
        return len(self.shape(value))

    def array(self, value: ir.Value | None) -> np.ndarray | None:
        """The numbers of a constant as they are read, however they are stored; None for what is computed."""
        if value is None:
            return None
        source = value.producer()
        if source is not None and source.op_type == "DequantizeLinear" and is_constant(source.inputs[0]):
            codes = constant(source.inputs[0])
            assert codes is not None
            return dequantize_array(codes.astype(np.int32), quantization(source))
        if source is not None and source.op_type == "Cast" and is_constant(source.inputs[0]):
            stored, dtype = constant(source.inputs[0]), value.dtype
            return None if stored is None or dtype is None else stored.astype(dtype.numpy())
        return constant(value)

    def numbers(self, value: ir.Value | None, what: str) -> np.ndarray:
        """As `array`. Raises Unsupported where ``what`` this is has to be a constant and is none."""
        array = self.array(value)
        if array is None:
            raise Unsupported(f"its {what} must be constant")
        return array

    def integers(self, value: ir.Value | None, what: str) -> list[int]:
        """The integers of a constant as a list."""
        return [int(number) for number in self.numbers(value, what).reshape(-1)]

    def read(self, value: ir.Value | None) -> Var:
        """The variable of a value. Raises Unsupported for one that nothing stands for."""
        if value is None:
            raise Unsupported("an operand is left out that this operation needs here")
        if value in self.carried:
            return self.carried[value]
        array = self.array(value)
        if array is None:
            raise Unsupported(f"'{value.name}' is a result that the program has no variable for")
        if value not in self._constants:
            made = self.op("const", value.name or "constant", val=stored(array))
            self._constants[value] = made
            if array.dtype.kind == "f":
                self.weights[value.name or ""] = made
        return self._constants[value]

    def is_constant(self, value: ir.Value) -> bool:
        """Whether the numbers of a value are known, however they are stored."""
        source = value.producer()
        changes = source is not None and source.op_type in ("DequantizeLinear", "Cast")
        return is_constant(source.inputs[0] if source is not None and changes else value)

    def turned(self, value: ir.Value) -> Var:
        """A constant matrix with its axes exchanged."""
        if value in self.stored_by_outputs:
            return self.carried[value]
        array = self.numbers(value, "weights")
        made = self.op("const", f"{value.name}_by_outputs", val=stored(array.T))
        self.stored_by_outputs.add(value)
        self.weights[value.name or ""] = made
        return self.give(value, made)

    def operand(self, node: ir.Node, index: int) -> ir.Value | None:
        """An input of a node, None where it is left out."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return value if value is not None and value.name else None

    # --- writing --------------------------------------------------------------------------------------------

    def op(self, kind: str, stem: str = "", **inputs: object) -> Var:
        """An operation of MIL between values; ``stem`` is what its result is called, if it may. Equal
        constants become one, or a pass of coremltools would unite them and lose one's name."""
        if kind.startswith("const"):
            key = (kind, *(f"{name}={_told(given)}" for name, given in sorted(inputs.items())))
            if key not in self._alike:
                self._alike[key] = self._made(kind, stem, inputs)
            return self._alike[key]
        return self._made(kind, stem, inputs)

    def _made(self, kind: str, stem: str, inputs: Mapping[str, object]) -> Var:
        function = getattr(builder(), kind)
        made: Var = function(name=self.name(stem or f"{self.node}_{kind}"), **inputs)
        for var in made if isinstance(made, (tuple, list)) else (made,):
            self.makers[var.name] = self.node
        return made

    def emit(self, node: ir.Node, kind: str, **inputs: object) -> Var:
        """An operation whose result is the first one of a node."""
        return self.give(node.outputs[0], self.op(kind, node.outputs[0].name or "", **inputs))

    def give(self, result: ir.Value, var: Var) -> Var:
        """Let a variable stand for a value."""
        self.carried[result] = var
        return var

    def name(self, stem: str) -> str:
        """An identifier that is free, as near to ``stem`` as MIL allows."""
        plain = _IDENTIFIER.sub("_", stem) or "value"
        plain = f"_{plain}" if plain[0].isdigit() else plain
        found, number = plain, 1
        while found in self._taken:
            number += 1
            found = f"{plain}_{number}"
        self._taken.add(found)
        return found


def _told(given: object) -> str:
    """An operand of a constant, as one knows it again; a type of few bits is NumPy's with a note."""
    if not isinstance(given, np.ndarray):
        return f"{getattr(given, 'name', given)}"
    content = hashlib.sha256(np.ascontiguousarray(given).data).hexdigest()
    return f"{given.dtype} {given.dtype.metadata} {given.shape} {content}"


def stored(array: np.ndarray) -> np.ndarray:
    """A constant in the types that MIL has: integers as int32, clipped to it, floats as float32."""
    if array.dtype.kind in "iu":
        return np.asarray(np.clip(array, _INT32.min, _INT32.max).astype(np.int32))
    return array if array.dtype == bool else array.astype(np.float32)


def quantization(node: ir.Node) -> QuantParams:
    """The parameters of a QuantizeLinear or DequantizeLinear. Raises Unsupported for a form not written."""
    try:
        params = params_of(node)
    except ValueError as e:
        raise Unsupported("its scale and zero point must be constants, of a type that Core ML has") from e
    if params.type not in _STORED:
        raise Unsupported(f"quantized to {params.type}; Core ML has {', '.join(_STORED)}")
    return params


def ends(pads: Sequence[int]) -> list[int]:
    """ONNX's pads (all beginnings, then all ends) as MIL wants them: beginning and end of each axis.

    >>> ends([1, 2, 3, 4])
    [1, 3, 2, 4]
    """
    half = len(pads) // 2
    return [pad for pair in zip(pads[:half], pads[half:], strict=True) for pad in pair]
