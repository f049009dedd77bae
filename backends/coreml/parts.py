"""The operations of a package, each evaluated alone by the reference interpreter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.coreml.interpret.machine import Compute, Machine
from backends.coreml.interpret.steps import Failed
from backends.coreml.notes import required_notes
from backends.coreml.package import judged, open_package
from backends.coreml.program import Block, Function, Named, Operation, TensorType, Value
from backends.coreml.wire import Damaged
from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError

_INTEGERS = {"int64": np.int32, "uint64": np.int32}
"""What Core ML has in the place of these."""


@dataclass(frozen=True)
class ProgramPart:
    """The operations between the values ``reads`` and the value ``result``. Implements the Piece protocol.

    ``variables`` are the program's names for these values.
    """

    node: str
    reads: tuple[str, ...]
    result: str
    function: Function
    variables: Mapping[str, str]
    constant: Callable[[Value], np.ndarray]
    compute: Compute
    path: Path

    def run(self, feeds: Arrays) -> np.ndarray:
        given = {
            named.name: _entered(feeds[name], named, self.compute)
            for name, named in zip(self.reads, self.function.inputs, strict=True)
        }
        try:
            with judged(self.path):
                found = Machine(self.function, self.constant, self.compute).run(given, {})
        except Failed as e:
            raise BackendError(
                f"the part that makes '{self.result}' cannot be evaluated: {e}", hint="build it again"
            ) from e
        result = found[self.variables[self.result]]
        if not isinstance(result, np.ndarray):
            raise BackendError(f"'{self.result}' is a list", hint="build it again")
        return result


def parts(path: Path, known: Collection[str], compute: Compute) -> Iterator[ProgramPart]:
    """The parts of a package of ours in the order in which they run; ``known`` are values that can be fed.

    Raises BackendError for a package that is damaged or not of our writing.
    """
    notes = required_notes(path)
    with open_package(path) as package, judged(path):
        function, _ = package.function()
        arrays = {named.name for named in function.inputs if isinstance(named.type, TensorType)}
        variables = {name: variable for name, variable in notes.values.items() if name in known}
        variables |= {
            name: own
            for own, name in notes.ends.items()
            if own in arrays and name in known and notes.images.get(own) != "NHWC"
        }
        named = {variable: name for name, variable in sorted(variables.items(), reverse=True)}
        types = {one.name: one for one in function.inputs}
        types |= {one.name: one for operation in function.block.operations for one in operation.outputs}
        makers = {one.name: op for op in function.block.operations for one in op.outputs}
        for operation in function.block.operations:
            for made in operation.outputs:
                if made.name not in named or operation.type.startswith("const"):
                    continue
                inside, reads = _between(function, made.name, makers, named)
                if not reads or not reads <= named.keys():
                    continue
                if unknown := reads - types.keys():
                    raise Damaged(f"nothing makes '{min(unknown)}'")
                order = sorted(reads, key=lambda variable: named[variable])
                part = Function(
                    inputs=tuple(types[variable] for variable in order),
                    opset=function.opset,
                    block=Block((), (made.name,), tuple(inside)),
                )
                yield ProgramPart(
                    notes.nodes.get(made.name, ""),
                    tuple(named[variable] for variable in order),
                    named[made.name],
                    part,
                    {named[made.name]: made.name},
                    package.constant,
                    compute,
                    path,
                )


def _between(
    function: Function, result: str, makers: Mapping[str, Operation], fed: Collection[str]
) -> tuple[list[Operation], set[str]]:
    """The operations that make a variable from others, in the program's order, and those others."""
    inside: set[int] = set()
    reads: set[str] = set()
    waiting = [makers[result]]
    while waiting:
        operation = waiting.pop()
        if id(operation) in inside:
            continue
        inside.add(id(operation))
        for variable in _read(operation):
            maker = makers.get(variable)
            if maker is not None and maker.type.startswith("const"):
                waiting.append(maker)
            elif variable in fed or maker is None:
                reads.add(variable)
            else:
                waiting.append(maker)
    return [op for op in function.block.operations if id(op) in inside], reads


def _read(operation: Operation) -> Iterator[str]:
    """The variables that an operation reads, in its blocks too, without those that are made there."""
    for bindings in operation.inputs.values():
        yield from (binding for binding in bindings if isinstance(binding, str))
    for block in operation.blocks:
        own = {one.name for one in block.inputs} | {one.name for op in block.operations for one in op.outputs}
        for inner in block.operations:
            yield from (variable for variable in _read(inner) if variable not in own)
        yield from (variable for variable in block.outputs if variable not in own)


def _entered(array: np.ndarray, named: Named, compute: Compute) -> np.ndarray:
    """A value of the graph as the program has it."""
    array = array.astype(_INTEGERS.get(array.dtype.name, array.dtype), copy=False)
    half = isinstance(named.type, TensorType) and named.type.dtype == "float16"
    if array.dtype == np.float32 and half and compute == "float16":
        with np.errstate(over="ignore"):
            return array.astype(np.float16).astype(np.float32)
    return array
