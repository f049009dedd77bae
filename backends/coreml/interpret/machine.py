"""Runs a function of a program: operation by operation, every result in the type that the program gives it.

**float16** is computed in float32 and every result rounded to float16, which is what is known of Core ML: its
processors differ in what they keep between operations, and none of them is this. With ``compute="float32"``
nothing is rounded, and what is left is the program's meaning.

Constants are read, and weights brought from the form in which they are stored, once, before the first run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Operand, Refused, Result
from backends.coreml.interpret.ops import EXACT, KERNELS
from backends.coreml.program import Block, Function, Named, Operation, StateType, TensorType, Value
from backends.coreml.wire import Damaged

Compute = Literal["float16", "float32"]
"""Whether results that the program says are float16 are rounded to it."""
Constant = Callable[[Value], np.ndarray]
Environment = dict[str, Operand]

_FLOATS = ("float16", "float32", "bfloat16")
_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What NumPy raises where operands do not fit."""
_WITH_BLOCKS = ("cond", "while_loop")
_STATE = ("read_state", "write_state")


class Failed(Exception):  # noqa: N818 (the runner makes an error of it)
    """An operation that could not be evaluated, named, with the reason."""


@dataclass(frozen=True)
class _Step:
    """An operation ready to run; ``free`` are the values that nothing reads after it."""

    operation: Operation
    kernel: Kernel | None
    blocks: tuple[_Block, ...]
    free: tuple[str, ...]


@dataclass(frozen=True)
class _Block:
    inputs: tuple[Named, ...]
    outputs: tuple[str, ...]
    steps: tuple[_Step, ...]
    constants: Environment
    reads: frozenset[str]


def unknown_operations(function: Function) -> list[Operation]:
    """The operations that are not evaluated."""

    def of(block: Block) -> list[Operation]:
        found = []
        for operation in block.operations:
            known = operation.type in KERNELS or operation.type in (
                *_WITH_BLOCKS,
                *_STATE,
                "const",
                "classify",
            )
            found += [] if known else [operation]
            for inner in operation.blocks:
                found += of(inner)
        return found

    return of(function.block)


def numpy_type(dtype: str) -> np.dtype:
    """The type in which values of a program's type travel. Raises Refused for those that have none."""
    if dtype in _FLOATS:
        return np.dtype(np.float32)
    if dtype == "string":
        return np.dtype(np.str_)
    narrow = {
        "int4": "int8",
        "uint1": "uint8",
        "uint2": "uint8",
        "uint3": "uint8",
        "uint4": "uint8",
        "uint6": "uint8",
    }
    if dtype.startswith("float8"):
        raise Refused(f"values of {dtype}")
    return np.dtype(narrow.get(dtype, dtype))


class Machine:
    """A function made ready. Raises Failed or Damaged for operations that are not known or cannot be.

    ``keep`` are names of values that are not given up before the end of a run.
    """

    def __init__(self, function: Function, constant: Constant, compute: Compute = "float16") -> None:
        self._constant, self._rounds = constant, compute == "float16"
        self.function = function
        unknown = unknown_operations(function)
        if unknown:
            types = sorted({operation.type for operation in unknown})
            raise Failed(f"operations that are not evaluated: {', '.join(types)}")
        with np.errstate(all="ignore"):
            self._main = self._ready(function.block, function.inputs)

    def run(
        self, feeds: Mapping[str, np.ndarray], states: dict[str, np.ndarray], want: Sequence[str] = ()
    ) -> dict[str, Operand]:
        """The function's results by name, and inner values in ``want``; ``states`` are changed in place."""
        environment: Environment = dict(feeds)
        kept: Environment = {}
        with np.errstate(all="ignore"):
            self._run(self._main, environment, states, frozenset(want), kept)
        missing = [name for name in self._main.outputs if name not in environment]
        if missing:
            raise Failed(f"nothing makes the result '{missing[0]}'")
        return {**kept, **{name: environment[name] for name in self._main.outputs}}

    # --- before the first run -----------------------------------------------------------------------------

    def _ready(self, block: Block, inputs: tuple[Named, ...]) -> _Block:
        constants: Environment = {}
        running: list[Operation] = []
        for operation in block.operations:
            if operation.type == "const" or operation.type.startswith("constexpr_"):
                self._fold(operation, constants)
            else:
                running.append(operation)
        blocks = [
            tuple(self._ready(inner, inner.inputs) for inner in operation.blocks) for operation in running
        ]
        last: dict[str, int] = {}
        for index, (operation, inner) in enumerate(zip(running, blocks, strict=True)):
            for name in _reads(operation, inner):
                last[name] = index
        ends: dict[int, list[str]] = {}
        made = {named.name for operation in running for named in operation.outputs}
        for name, index in last.items():
            if name in made and name not in block.outputs:
                ends.setdefault(index, []).append(name)
        steps = tuple(
            _Step(operation, KERNELS.get(operation.type), inner, tuple(ends.get(index, ())))
            for index, (operation, inner) in enumerate(zip(running, blocks, strict=True))
        )
        reads = frozenset(last) | frozenset(block.outputs)
        return _Block(inputs, block.outputs, steps, constants, reads)

    def _fold(self, operation: Operation, constants: Environment) -> None:
        """Put a constant's numbers among the ``constants``."""
        if operation.type == "const":
            value = operation.attributes.get("val")
            if value is None or len(operation.outputs) != 1:
                raise Damaged(f"{operation} without a value")
            constants[operation.outputs[0].name] = self._numbers(value)
            return
        operands = {name: [self._numbers(value)] for name, value in operation.attributes.items()}
        self._finish(operation, self._call(operation, operands, constants), constants)

    def _numbers(self, value: Value) -> np.ndarray:
        found = self._constant(value)
        return found.astype(np.float32) if found.dtype == np.float16 else found

    # --- running ------------------------------------------------------------------------------------------

    def _run(
        self,
        block: _Block,
        environment: Environment,
        states: dict[str, np.ndarray],
        want: frozenset[str],
        kept: Environment,
    ) -> None:
        environment.update(block.constants)
        for step in block.steps:
            operation = step.operation
            if operation.type in _WITH_BLOCKS:
                self._branch(step, environment, states)
            elif operation.type in _STATE:
                self._state(operation, environment, states)
            elif operation.type == "classify":
                self._classify(operation, environment)
            else:
                self._finish(operation, self._call(operation, {}, environment), environment)
            if want:
                for named in operation.outputs:
                    if named.name in want:
                        kept[named.name] = environment[named.name]
            for name in step.free:
                environment.pop(name, None)

    def _call(
        self, operation: Operation, given: Mapping[str, Sequence[Operand]], environment: Environment
    ) -> Result:
        operands: dict[str, Sequence[Operand]] = dict(given)
        for parameter, bindings in operation.inputs.items():
            operands[parameter] = [self._bound(operation, binding, environment) for binding in bindings]
        kernel = KERNELS.get(operation.type)
        if kernel is None:
            raise Failed(f"{operation} is not evaluated")
        declared = [
            named.type.dtype if isinstance(named.type, TensorType) else "" for named in operation.outputs
        ]
        try:
            return kernel(Call(operation.type, operands, declared))
        except Refused as e:
            raise Failed(f"{operation}: {e}") from e
        except MemoryError as e:
            raise Failed(f"{operation} takes more memory than there is") from e
        except _ERRORS as e:
            raise Failed(f"{operation}: {str(e)[:300] or type(e).__name__}") from e

    def _bound(self, operation: Operation, binding: str | Value, environment: Environment) -> Operand:
        if isinstance(binding, Value):  # a small one, unless it is what a constant is made of
            return self._numbers(binding)
        found = environment.get(binding)
        if found is None:
            raise Failed(f"{operation} reads '{binding}', which nothing before it makes")
        return found

    def _finish(self, operation: Operation, result: Result, environment: Environment) -> None:
        """Give results their names, in the types that the program says."""
        listed = len(operation.outputs) == 1 and not isinstance(operation.outputs[0].type, TensorType)
        results: Sequence[Operand] = (
            result if isinstance(result, tuple) and not listed else (result,)  # type: ignore[assignment]
        )
        if len(results) < len(operation.outputs):
            raise Failed(f"{operation} makes {len(results)} results, the file says {len(operation.outputs)}")
        for named, value in zip(operation.outputs, results, strict=False):
            environment[named.name] = self._typed(operation, named, value)

    def _typed(self, operation: Operation, named: Named, value: Operand) -> Operand:
        kind = named.type
        if not isinstance(value, tuple):
            value = np.asarray(value)  # NumPy makes bare numbers of tensors of rank 0
        if isinstance(value, tuple) or not isinstance(kind, TensorType):
            if isinstance(value, tuple) == isinstance(kind, TensorType):
                raise Failed(f"{operation}: the file gives '{named.name}' another kind of value")
            return value
        try:
            dtype = numpy_type(kind.dtype)
        except Refused as e:
            raise Failed(f"{operation}: {e}") from e
        if (value.dtype.kind == "U") != (dtype.kind == "U"):
            raise Failed(f"{operation}: the file says that its result is {kind}, and it is {value.dtype}")
        if value.dtype != dtype and dtype.kind != "U":
            value = value.astype(dtype)
        if kind.dtype == "float16" and self._rounds and operation.type not in EXACT:
            value = value.astype(np.float16).astype(np.float32)
        if kind.shape is not None and not _fits(value.shape, kind.shape):
            raise Failed(f"{operation} makes {list(value.shape)}, the file says {kind}")
        return value

    # --- what is no kernel --------------------------------------------------------------------------------

    def _branch(self, step: _Step, environment: Environment, states: dict[str, np.ndarray]) -> None:
        operation = step.operation
        if len(step.blocks) != 2:
            raise Failed(f"{operation} has {len(step.blocks)} blocks")
        if operation.type == "cond":
            chosen = step.blocks[0 if self._truth(operation, "pred", environment) else 1]
            results = self._block(operation, chosen, (), environment, states)
        else:
            results = tuple(
                self._bound(operation, b, environment) for b in operation.inputs.get("loop_vars", ())
            )
            while True:
                (going,) = self._block(operation, step.blocks[0], results, environment, states) or (None,)
                if not isinstance(going, np.ndarray) or going.size != 1:
                    raise Failed(f"{operation}: its condition is no truth value")
                if not bool(going.reshape(-1)[0]):
                    break
                results = self._block(operation, step.blocks[1], results, environment, states)
        if len(results) != len(operation.outputs):
            raise Failed(f"{operation} makes {len(results)} results, the file says {len(operation.outputs)}")
        for named, value in zip(operation.outputs, results, strict=True):
            environment[named.name] = value

    def _block(
        self,
        operation: Operation,
        block: _Block,
        arguments: Sequence[Operand],
        environment: Environment,
        states: dict[str, np.ndarray],
    ) -> tuple[Operand, ...]:
        if len(arguments) != len(block.inputs):
            raise Failed(f"{operation}: a block takes {len(block.inputs)} values, {len(arguments)} are given")
        inner = dict(environment)
        inner.update(zip((named.name for named in block.inputs), arguments, strict=True))
        self._run(block, inner, states, frozenset(), {})
        missing = [name for name in block.outputs if name not in inner]
        if missing:
            raise Failed(f"{operation}: nothing in a block makes '{missing[0]}'")
        return tuple(inner[name] for name in block.outputs)

    def _truth(self, operation: Operation, parameter: str, environment: Environment) -> bool:
        (binding, *_) = operation.inputs.get(parameter) or ("",)
        value = self._bound(operation, binding, environment)
        if not isinstance(value, np.ndarray) or value.size != 1:
            raise Failed(f"{operation}: '{parameter}' is no truth value")
        return bool(value.reshape(-1)[0])

    def _state(self, operation: Operation, environment: Environment, states: dict[str, np.ndarray]) -> None:
        bindings = operation.inputs.get("input") or ("",)
        name = bindings[0]
        if not isinstance(name, str) or name not in states:
            raise Failed(f"{operation} names no state")
        if operation.type == "read_state":
            self._finish(operation, states[name].copy(), environment)
            return
        data = self._bound(operation, (operation.inputs.get("data") or ("",))[0], environment)
        if not isinstance(data, np.ndarray) or data.shape != states[name].shape:
            raise Failed(f"{operation}: what is written does not fit state '{name}'")
        states[name] = data.astype(states[name].dtype)

    def _classify(self, operation: Operation, environment: Environment) -> None:
        """The class of the greatest probability, and all probabilities in the order of the classes."""
        bound = {
            name: self._bound(operation, (operation.inputs.get(name) or ("",))[0], environment)
            for name in ("probabilities", "classes")
        }
        found, classes = bound["probabilities"], bound["classes"]
        if not isinstance(found, np.ndarray) or not isinstance(classes, np.ndarray) or not classes.size:
            raise Failed(f"{operation}: no probabilities")
        if found.size != classes.size or len(operation.outputs) != 2:
            raise Failed(f"{operation}: {found.size} probabilities for {classes.size} classes")
        label, all_ = operation.outputs
        environment[all_.name] = found.reshape(-1)
        environment[label.name] = np.asarray(classes.reshape(-1)[int(found.argmax())])


def _reads(operation: Operation, blocks: Sequence[_Block]) -> frozenset[str]:
    bound = {b for bindings in operation.inputs.values() for b in bindings if isinstance(b, str)}
    return frozenset(bound).union(*(block.reads for block in blocks))


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    return len(shape) == len(declared) and all(
        want is None or have == want for have, want in zip(shape, declared, strict=True)
    )


def state_types(function: Function) -> dict[str, TensorType]:
    """The states that a function reads and writes."""
    return {named.name: named.type.of for named in function.inputs if isinstance(named.type, StateType)}
