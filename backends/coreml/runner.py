"""A package that speaks arrays by name, evaluated by the reference interpreter on any machine.

What passes in and out is what Core ML gives a program, as arrays: images as bytes with the colour last, a
classifier's class as a text or number and its probabilities in the order of the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from backends.coreml.classes import class_names
from backends.coreml.features import Feature
from backends.coreml.interpret.call import Operand, Refused
from backends.coreml.interpret.machine import Compute, Machine, state_types
from backends.coreml.interpret.steps import Failed, numpy_type
from backends.coreml.notes import notes_of
from backends.coreml.package import Package, judged, open_package
from backends.coreml.program import Function, Named, TensorType
from deploy.adapter.feeds import Feeding
from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError, DataError
from deploy.spec.artifact import Options
from deploy.spec.tensors import TensorSpec

EXECUTED_BY = "reference interpreter"
CLASSES = "classes"
"""The size of a dictionary of probabilities."""
_HINT = "the package needs Core ML itself (macOS), or is damaged"
_UNKNOWN = "run it on a Mac, where Core ML computes it, or convert the model without these operations"
States = dict[str, np.ndarray]


class CoreMLOptions(Options):
    """``compute``: whether what the program says is float16 is rounded to it after every operation.

    ``function`` of a package that has several; the package's default one without a name. NumPy takes its
    number of threads from the environment, not from ``threads``.
    """

    compute: Compute = "float16"
    function: str = ""


class CoreMLRunner:
    """A package made ready. Implements the Runner protocol.

    ``inputs`` and ``outputs`` may be given where they are known better than the package says them: an image
    in NCHW order, names of free sizes. ``classes`` are the names of a classifier's classes; ``usual`` the
    sizes that the package itself names for an input, also where others are allowed; ``notes`` what we wrote
    into it. Raises BackendError for a package that is damaged or needs what is not evaluated.
    """

    def __init__(
        self,
        path: Path,
        options: CoreMLOptions,
        inputs: tuple[TensorSpec, ...] = (),
        outputs: tuple[TensorSpec, ...] = (),
    ) -> None:
        self._path = path
        with open_package(path) as package, judged(path):
            self._function, self._interface = package.function(options.function)
            self._machine = self._made(package, options.compute)
            self.classes = class_names(package, self._function)
            self.notes = notes_of(package)
        self.executed_by = EXECUTED_BY
        self._arguments = {named.name: named for named in self._function.inputs}
        self._fed = {feature.name: feature for feature in self._interface.inputs}
        self._given = {feature.name: feature for feature in self._interface.outputs}
        self.inputs = inputs or tuple(self._input(feature) for feature in self._interface.inputs)
        self.usual = {f.name: _usual(f) for f in self._interface.inputs if f.shape}
        self.outputs = outputs or tuple(
            _output(self._function, feature) for feature in self._interface.outputs
        )
        self._require(self.inputs, self._fed, "input")
        self._require(self.outputs, self._given, "output")
        self._feeding = Feeding(self.inputs)
        self._closed = False

    def run(
        self, feeds: Arrays, want: Sequence[str] = (), state: States | None = None
    ) -> dict[str, np.ndarray]:
        """The outputs by name, and those of the inner values named in ``want`` that the program has.

        A stateful model begins with zeros, unless it is given a ``state``, which is changed: `fresh_state`.
        Inner values come as the program types them. Raises DataError where the feeds do not fit.
        """
        if self._closed:
            raise BackendError("the runner is closed", hint="open the artifact again")
        given = {**self._defaults(feeds), **feeds}
        self._feeding.require_fit(given)
        entered = {spec.name: self._entered(spec, given[spec.name]) for spec in self.inputs}
        states = self.fresh_state() if state is None else state
        inner = frozenset(want) - set(self._given)
        try:
            found = self._machine.run(entered, states, tuple(inner))
        except Failed as e:
            raise BackendError(f"{self._path.name}: {e}", hint=_HINT) from e
        results = {spec.name: self._left(spec, found) for spec in self.outputs}
        extra = {name: _outside(value) for name, value in found.items() if name in inner}
        return {**extra, **results}

    def fresh_state(self) -> States:
        """Zeros for every state, which `run` may be given again and again."""
        found: States = {}
        for name, kind in state_types(self._function).items():
            if kind.shape is None or None in kind.shape:
                raise BackendError(f"{self._path.name}: state '{name}' is {kind}", hint=_HINT)
            found[name] = np.zeros([n or 0 for n in kind.shape], _travels(kind))
        return found

    def _made(self, package: Package, compute: Compute) -> Machine:
        try:
            return Machine(self._function, package.constant, compute)
        except Failed as e:
            raise BackendError(f"{self._path.name} cannot be evaluated: {e}", hint=_UNKNOWN) from e

    # --- in -----------------------------------------------------------------------------------------------

    def _input(self, feature: Feature) -> TensorSpec:
        if feature.kind not in ("array", "image"):
            raise BackendError(
                f"{self._path.name}: input '{feature.name}' is a {feature.kind}",
                hint="arrays and images are fed",
            )
        shape = _free(feature, self._arguments.get(feature.name))
        if feature.kind == "image":
            return TensorSpec(
                name=feature.name,
                dtype=feature.dtype,
                shape=(1, *shape[-2:], _channels(feature)),
                layout="NHWC",
                colours="BGR" if feature.colour == "bgr" else "RGB",
            )
        return TensorSpec(name=feature.name, dtype=feature.dtype, shape=shape)

    def _require(self, specs: Sequence[TensorSpec], features: Mapping[str, Feature], what: str) -> None:
        for spec in specs:
            if spec.name not in features:
                raise BackendError(
                    f"{self._path.name} has no {what} '{spec.name}'",
                    hint=f"it has: {', '.join(sorted(features)) or 'none'}; copy the bundle again",
                )
        missing = set(features) - {spec.name for spec in specs}
        if missing and what == "input":
            raise BackendError(
                f"{self._path.name} takes '{min(missing)}' besides", hint="copy the bundle again"
            )

    def _defaults(self, feeds: Arrays) -> dict[str, np.ndarray]:
        found = {}
        for name, feature in self._fed.items():
            if feature.optional and name not in feeds and feature.kind == "array":
                found[name] = np.full(feature.shape, feature.default or 0, feature.dtype)
        return found

    def _entered(self, spec: TensorSpec, array: np.ndarray) -> np.ndarray:
        """What is fed, as the program takes it."""
        feature, named = self._fed[spec.name], self._arguments.get(spec.name)
        if named is None or not isinstance(named.type, TensorType):
            raise BackendError(f"{self._path.name}: the program takes no '{spec.name}'", hint=_HINT)
        if feature.kind == "image":
            if spec.layout == "NHWC":
                array = np.moveaxis(array, -1, 1)
            if feature.colour == "bgr":
                array = array[:, ::-1]
        sizes = array.shape[-2:] if feature.kind == "image" else array.shape
        if feature.choices and sizes not in feature.choices:
            listed = ", ".join(str(list(c)) for c in feature.choices[:8])
            raise DataError(f"input '{spec.name}' is {list(sizes)}", hint=f"the package takes {listed}")
        for size, (low, high) in zip(sizes, feature.bounds, strict=False):
            if size < low or (high is not None and size > high):
                raise DataError(
                    f"input '{spec.name}' is {list(sizes)}",
                    hint=f"the package takes {low} to {'any size' if high is None else high} there",
                )
        entered = array.astype(_travels(named.type), copy=False)
        if named.type.dtype == "float16" and entered.dtype == np.float32 and array.dtype != np.float16:
            with np.errstate(over="ignore"):
                entered = entered.astype(np.float16).astype(np.float32)
        return np.ascontiguousarray(entered)

    # --- out ----------------------------------------------------------------------------------------------

    def _left(self, spec: TensorSpec, found: Mapping[str, Operand]) -> np.ndarray:
        """A result, as a program that uses Core ML gets it, which knows no arrays without axes."""
        value = found.get(spec.name)
        if not isinstance(value, np.ndarray):
            raise BackendError(f"{self._path.name}: the program makes no '{spec.name}'", hint=_HINT)
        feature = self._given[spec.name]
        if feature.kind == "image":
            if feature.colour == "bgr":
                value = value[:, ::-1]
            if feature.dtype == "uint8":
                value = np.clip(np.rint(value), 0, 255)
            value = np.moveaxis(value, 1, -1) if spec.layout == "NHWC" else value
        if feature.kind == "array" and value.ndim == 0:
            value = value.reshape(1)
        if value.dtype.kind != "U":
            value = value.astype(spec.dtype, copy=False)
        return np.array(value, order="C")

    def close(self) -> None:
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _travels(kind: TensorType) -> np.dtype:
    try:
        return numpy_type(kind.dtype)
    except Refused as e:
        raise BackendError(f"a package with {e}", hint=_HINT) from e


def _free(feature: Feature, named: Named | None) -> tuple[int | str, ...]:
    """The sizes of an input, with names for those that the program leaves open."""
    shape: list[int | str] = list(feature.shape)
    kind = named.type if named is not None else None
    if isinstance(kind, TensorType) and kind.shape is not None:
        open_ = [size is None for size in kind.shape][-len(shape) or len(kind.shape) :]
        if not shape:
            shape = [0] * len(open_)
        shape = [
            f"{feature.name}.{axis}" if free else n
            for axis, (n, free) in enumerate(zip(shape, open_, strict=False))
        ]
    return tuple(shape)


def _usual(feature: Feature) -> tuple[int, ...]:
    if feature.kind == "image":
        return (1, *feature.shape[-2:], _channels(feature))
    return feature.shape


def _output(function: Function, feature: Feature) -> TensorSpec:
    """An output as the package says it. Of a dictionary, the numbers of its entries in order."""
    made = {named.name: named.type for operation in function.block.operations for named in operation.outputs}
    made |= {named.name: named.type for named in function.inputs}
    kind = made.get(feature.name)
    dtype = "float32" if feature.kind == "dictionary" else feature.dtype or "float32"
    if feature.kind == "image":
        shape = (1, *feature.shape, _channels(feature))
        return TensorSpec(name=feature.name, dtype=dtype, shape=shape, layout="NHWC")
    sizes: tuple[int | str, ...] = feature.shape
    if isinstance(kind, TensorType) and kind.shape is not None:
        sizes = tuple(f"{feature.name}.{i}" if n is None else n for i, n in enumerate(kind.shape))
        sizes = sizes or ((1,) if feature.kind == "array" else ())
    elif feature.kind == "dictionary":
        sizes = (CLASSES,)
    return TensorSpec(name=feature.name, dtype=dtype, shape=sizes)


def _channels(feature: Feature) -> int:
    return 3 if feature.colour in ("rgb", "bgr") else 1


def _outside(value: Operand) -> np.ndarray:
    """An inner value; of a list, its elements one behind the other."""
    if isinstance(value, np.ndarray):
        return value
    return np.stack(value) if value else np.zeros(0, np.float32)
