"""Operations made ready before the first run: constants bound, types of results known, lifetimes decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends.coreml.interpret.call import Call, Fixed, Kernel, Operand, Refused, Result
from backends.coreml.interpret.half import half
from backends.coreml.interpret.ops import EXACT, READY
from backends.coreml.program import Named, Operation, TensorType, Value

Environment = dict[str, Operand]

_FLOATS = ("float16", "float32", "bfloat16")
_NARROW = {
    "int4": "int8", "uint1": "uint8", "uint2": "uint8", "uint3": "uint8", "uint4": "uint8", "uint6": "uint8",
}  # fmt: skip
NUMPY_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What NumPy raises where operands do not fit."""


class Failed(Exception):  # noqa: N818 (the runner makes an error of it)
    """An operation that could not be evaluated, named, with the reason."""


def numpy_type(dtype: str) -> np.dtype:
    """The type in which values of a program's type travel. Raises Refused for those that have none."""
    if dtype in _FLOATS:
        return np.dtype(np.float32)
    if dtype == "string":
        return np.dtype(np.str_)
    if dtype.startswith("float8"):
        raise Refused(f"values of {dtype}")
    return np.dtype(_NARROW.get(dtype, dtype))


class Ending:
    """What is made of one result: it gets its name, and the type that the program says.

    ``rounds``: float16 is rounded to. Raises Failed for types that are not evaluated.
    """

    __slots__ = ("_dtype", "_kind", "_operation", "_rounds", "_shape", "name")

    def __init__(self, operation: Operation, named: Named, rounds: bool) -> None:
        self.name, self._operation, self._kind = named.name, operation, named.type
        self._dtype: np.dtype | None = None
        self._shape: tuple[int | None, ...] | None = None
        self._rounds = False
        if isinstance(named.type, TensorType):
            try:
                self._dtype = numpy_type(named.type.dtype)
            except Refused as e:
                raise Failed(f"{operation}: {e}") from e
            self._shape = named.type.shape
            self._rounds = rounds and named.type.dtype == "float16" and operation.type not in EXACT

    def __call__(self, value: Operand) -> Operand:
        """The result as the program types it. Raises Failed where it is another one."""
        dtype = self._dtype
        if not isinstance(value, tuple):
            value = np.asarray(value)  # NumPy makes bare numbers of tensors of rank 0
        if isinstance(value, tuple) or dtype is None:
            if isinstance(value, tuple) == (dtype is not None):
                raise Failed(f"{self._operation}: the file gives '{self.name}' another kind of value")
            return value
        if value.dtype != dtype:
            if (value.dtype.kind == "U") != (dtype.kind == "U"):
                text = f"the file says that its result is {self._kind}, and it is {value.dtype}"
                raise Failed(f"{self._operation}: {text}")
            value = value if dtype.kind == "U" else value.astype(dtype)
        if self._rounds:
            value = half(value)
        if value.shape != self._shape and self._shape is not None and not _fits(value.shape, self._shape):
            raise Failed(f"{self._operation} makes {list(value.shape)}, the file says {self._kind}")
        return value


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    return len(shape) == len(declared) and all(
        want is None or have == want for have, want in zip(shape, declared, strict=True)
    )


class Evaluation:
    """One operation that a kernel evaluates, with what of it is the same in every run.

    ``constants`` are the values by name that are known now, ``numbers`` reads those that stand in the
    operation itself; ``given`` are operands besides.
    """

    __slots__ = (
        "_declared", "_endings", "_fed", "_fixed", "_kernel", "_listed", "_operation", "_ready", "_single",
        "_sources",
    )  # fmt: skip

    def __init__(
        self,
        operation: Operation,
        kernel: Kernel,
        constants: Mapping[str, Operand],
        numbers: Callable[[Value], np.ndarray],
        rounds: bool,
        given: Mapping[str, Sequence[Operand]] | None = None,
    ) -> None:
        self._operation, self._kernel = operation, kernel
        fixed = dict(given or {})
        fed: list[tuple[str, list[str | Operand]]] = []
        for parameter, bindings in operation.inputs.items():
            bound = [constants.get(b, b) if isinstance(b, str) else numbers(b) for b in bindings]
            known = [value for value in bound if not isinstance(value, str)]
            if len(known) == len(bound):
                fixed[parameter] = known
            else:
                fed.append((parameter, bound))
        self._fed = tuple(fed)
        self._fixed = Fixed(fixed)
        types = [named.type for named in operation.outputs]
        self._declared = [kind.dtype if isinstance(kind, TensorType) else "" for kind in types]
        self._listed = len(types) == 1 and not isinstance(types[0], TensorType)
        self._endings = tuple(Ending(operation, named, rounds) for named in operation.outputs)
        self._single = self._endings[0] if len(self._endings) == 1 else None
        self._ready, self._sources = self._readied()

    def _readied(self) -> tuple[Callable[..., np.ndarray] | None, tuple[str | Operand, ...]]:
        """What is left to compute, and of what; None where the kernel itself is called."""
        ready = READY.get(self._operation.type)
        if ready is None or self._single is None:
            return None, ()
        try:
            found = ready(Call(self._operation.type, self._fixed.operands, self._fixed, self._declared))
        except (Refused, *NUMPY_ERRORS):  # the kernel says so when it is called
            return None, ()
        left = dict(self._fed)
        if found is None or not left.keys() <= set(found[0]):
            return None, ()
        bound = [left.get(name) or self._fixed.operands.get(name, ()) for name in found[0]]
        if any(len(one) != 1 for one in bound):
            return None, ()
        return found[1], tuple(one[0] for one in bound)

    def _computed(self, environment: Environment) -> Result:
        """Raises Refused, and whatever NumPy does where operands do not fit or are not there."""
        if self._ready is not None:
            given = [environment[s] if isinstance(s, str) else s for s in self._sources]
            if all(isinstance(value, np.ndarray) for value in given):
                return self._ready(*given)
        operands = dict(self._fixed.operands)
        for parameter, bound in self._fed:
            operands[parameter] = [environment[b] if isinstance(b, str) else b for b in bound]
        return self._kernel(Call(self._operation.type, operands, self._fixed, self._declared))

    def __call__(self, environment: Environment) -> None:
        """Put the results into the ``environment``. Raises Failed."""
        operation = self._operation
        try:
            result = self._computed(environment)
        except Refused as e:
            raise Failed(f"{operation}: {e}") from e
        except MemoryError as e:
            raise Failed(f"{operation} takes more memory than there is") from e
        except NUMPY_ERRORS as e:
            self._require_there(environment)
            raise Failed(f"{operation}: {str(e)[:300] or type(e).__name__}") from e
        if self._single is not None and isinstance(result, np.ndarray):
            environment[self._single.name] = self._single(result)
            return
        for ending, value in zip(self._endings, self._results(result), strict=False):
            environment[ending.name] = ending(value)

    def _require_there(self, environment: Environment) -> None:
        for _, bound in self._fed:
            for one in bound:
                if isinstance(one, str) and one not in environment:
                    raise Failed(f"{self._operation} reads '{one}', which nothing before it makes")

    def _results(self, result: Result) -> Sequence[Operand]:
        results: Sequence[Operand] = (
            result if isinstance(result, tuple) and not self._listed else (result,)  # type: ignore[assignment]
        )
        if len(results) < len(self._endings):
            said = len(self._endings)
            raise Failed(f"{self._operation} makes {len(results)} results, the file says {said}")
        return results


@dataclass(frozen=True)
class Step:
    """An operation ready to run; ``free`` are the values that nothing reads after it.

    Without an ``evaluation`` it is one of those that the machine itself carries out.
    """

    operation: Operation
    evaluation: Evaluation | None
    blocks: tuple[ReadyBlock, ...]
    free: tuple[str, ...]


@dataclass(frozen=True)
class ReadyBlock:
    """``reads`` are the names that it reads, its own or those of the blocks around it."""

    inputs: tuple[Named, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    constants: Environment
    reads: frozenset[str]
