"""Runs a function of a program: operation by operation, every result in the type that the program gives it.

**float16** is computed in float32 and every result rounded to float16, which is what is known of Core ML: its
processors differ in what they keep between operations, and none of them is this. With ``compute="float32"``
nothing is rounded, and what is left is the program's meaning.

Constants are read, and weights brought from the form in which they are stored, once, before the first run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from backends.coreml.interpret.call import Operand
from backends.coreml.interpret.ops import KERNELS
from backends.coreml.interpret.steps import Ending, Environment, Evaluation, Failed, ReadyBlock, Step
from backends.coreml.program import Block, Function, Named, Operation, StateType, TensorType, Value
from backends.coreml.wire import Damaged

Compute = Literal["float16", "float32"]
"""Whether results that the program says are float16 are rounded to it."""
Constant = Callable[[Value], np.ndarray]

_WITH_BLOCKS = ("cond", "while_loop")
_STATE = ("read_state", "write_state")


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
            self._main = self._ready(function.block, function.inputs, {})

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

    def _ready(self, block: Block, inputs: tuple[Named, ...], around: Mapping[str, Operand]) -> ReadyBlock:
        """``around`` are the constants of the blocks around it."""
        constants: Environment = {}
        running: list[Operation] = []
        for operation in block.operations:
            if operation.type == "const" or operation.type.startswith("constexpr_"):
                self._fold(operation, constants)
            else:
                running.append(operation)
        made = {named.name for operation in running for named in operation.outputs}
        own = made | {named.name for named in inputs}
        known = {name: value for name, value in around.items() if name not in own} | constants
        blocks = [
            tuple(self._ready(inner, inner.inputs, known) for inner in operation.blocks)
            for operation in running
        ]
        last: dict[str, int] = {}
        for index, (operation, inner) in enumerate(zip(running, blocks, strict=True)):
            for name in _reads(operation, inner):
                last[name] = index
        ends: dict[int, list[str]] = {}
        for name, index in last.items():
            if name in made and name not in block.outputs:
                ends.setdefault(index, []).append(name)
        steps = tuple(
            Step(operation, self._evaluation(operation, known), inner, tuple(ends.get(index, ())))
            for index, (operation, inner) in enumerate(zip(running, blocks, strict=True))
        )
        reads = frozenset(last) | frozenset(block.outputs)
        return ReadyBlock(inputs, block.outputs, steps, constants, reads)

    def _evaluation(self, operation: Operation, constants: Mapping[str, Operand]) -> Evaluation | None:
        kernel = KERNELS.get(operation.type)
        if kernel is None:
            return None
        return Evaluation(operation, kernel, constants, self._numbers, self._rounds)

    def _fold(self, operation: Operation, constants: Environment) -> None:
        """Put a constant's numbers among the ``constants``."""
        if operation.type == "const":
            value = operation.attributes.get("val")
            if value is None or len(operation.outputs) != 1:
                raise Damaged(f"{operation} without a value")
            constants[operation.outputs[0].name] = self._numbers(value)
            return
        given = {name: [self._numbers(value)] for name, value in operation.attributes.items()}
        kernel = KERNELS[operation.type]
        Evaluation(operation, kernel, constants, self._numbers, self._rounds, given)(constants)

    def _numbers(self, value: Value) -> np.ndarray:
        found = self._constant(value)
        return found.astype(np.float32) if found.dtype == np.float16 else found

    # --- running ------------------------------------------------------------------------------------------

    def _run(
        self,
        block: ReadyBlock,
        environment: Environment,
        states: dict[str, np.ndarray],
        want: frozenset[str],
        kept: Environment,
    ) -> None:
        environment.update(block.constants)
        for step in block.steps:
            if step.evaluation is not None:
                step.evaluation(environment)
            elif step.operation.type in _WITH_BLOCKS:
                self._branch(step, environment, states)
            elif step.operation.type in _STATE:
                self._state(step.operation, environment, states)
            else:
                self._classify(step.operation, environment)
            if want:
                for named in step.operation.outputs:
                    if named.name in want:
                        kept[named.name] = environment[named.name]
            for name in step.free:
                environment.pop(name, None)

    def _bound(self, operation: Operation, binding: str | Value, environment: Environment) -> Operand:
        if isinstance(binding, Value):
            return self._numbers(binding)
        found = environment.get(binding)
        if found is None:
            raise Failed(f"{operation} reads '{binding}', which nothing before it makes")
        return found

    # --- what is no kernel --------------------------------------------------------------------------------

    def _branch(self, step: Step, environment: Environment, states: dict[str, np.ndarray]) -> None:
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
        block: ReadyBlock,
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
            for named in operation.outputs:
                environment[named.name] = Ending(operation, named, self._rounds)(states[name].copy())
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


def _reads(operation: Operation, blocks: Sequence[ReadyBlock]) -> frozenset[str]:
    bound = {b for bindings in operation.inputs.values() for b in bindings if isinstance(b, str)}
    return frozenset(bound).union(*(block.reads for block in blocks))


def state_types(function: Function) -> dict[str, TensorType]:
    """The states that a function reads and writes."""
    return {named.name: named.type.of for named in function.inputs if isinstance(named.type, StateType)}
