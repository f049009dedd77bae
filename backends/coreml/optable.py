"""The table of Core ML's operations: the types that they are written for, as ONNX calls them."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from backends.coreml.emitter import Emitter
from deploy.adapter import optable

Lowering = Callable[[ir.Node, Emitter], None]

FLOATS = ("float32", "float16")
NUMBERS = (*FLOATS, "int32", "int64")
ANY = (*NUMBERS, "bool")


class OpTable(optable.OpTable[Emitter]):
    """One family's operations, for float32 where nothing else is said."""

    def __init__(self) -> None:
        super().__init__(FLOATS)
