"""The plan as it stands in a package: its tensors' parameters by the names of the graph's values.

Which variable carries which value stands in our metadata; what the parameters are is read out of the
operations and the weights that a device reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
from pydantic import ValidationError

from backends.coreml.constants import Constants
from backends.coreml.interpret.steps import NUMPY_ERRORS
from backends.coreml.notes import Notes, notes_of
from backends.coreml.package import Package, judged, open_package
from backends.coreml.program import Operation
from backends.coreml.storage import NARROW
from backends.coreml.wire import Damaged
from deploy.errors import BackendError
from deploy.graph.palette import palette_of
from deploy.graph.qdq import data_digest
from deploy.spec.plan import PalettePlan, QuantParams, TensorPlan, with_overrides
from deploy.spec.tensors import QuantType


def read_stored(path: Path) -> tuple[dict[str, TensorPlan], dict[str, PalettePlan]]:
    """The parameters of every planned value, origins read ``imported``, and the palettes of float weights.

    Raises BackendError for a package that is damaged or not of our writing.
    """
    with _opened(path) as program:
        return program.tensors(), program.palettes()


def read_weights(path: Path, names: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The float constants called ``names`` that a package holds, expanded, with the graph's order of axes.

    Raises BackendError as `read_stored`.
    """
    with _opened(path) as program:
        yield from program.weights(names)


@contextmanager
def _opened(path: Path) -> Iterator[_Program]:
    with open_package(path) as package, judged(path):
        notes = notes_of(package)
        if notes is None:
            raise BackendError(f"{path.name} holds no plan of ours", hint="read a package that deploy wrote")
        yield _Program(package, notes)


class _Program:
    """The operations of the main function, with who reads and who makes each variable."""

    def __init__(self, package: Package, notes: Notes) -> None:
        self._notes = notes
        function, _ = package.function()
        self._outputs = set(function.block.outputs)
        self._maker: dict[str, Operation] = {}
        self._users: dict[str, list[Operation]] = {}
        for operation in function.block.operations:
            for named in operation.outputs:
                self._maker[named.name] = operation
            for bindings in operation.inputs.values():
                for binding in bindings:
                    if isinstance(binding, str):
                        self._users.setdefault(binding, []).append(operation)
        self._constants = Constants(package, self._maker)

    def tensors(self) -> dict[str, TensorPlan]:
        found: dict[str, TensorPlan] = {}
        overrides: dict[str, dict[str, QuantParams]] = {}
        for name, variable, partial in self._notes.planned:
            operation = self._maker.get(variable)
            if operation is None:
                raise Damaged(f"no operation makes '{variable}'")
            if operation.type.startswith("constexpr"):
                with _fitting(operation):
                    params, codes = self._constant(operation, name in self._notes.by_outputs)
                found[name] = TensorPlan(**params.model_dump(), origin="imported", digest=data_digest(codes))
                continue
            with _fitting(operation):
                params, readers = self._activation(operation), self._readers(variable)
            if partial:
                overrides.setdefault(name, {}).update(dict.fromkeys(readers, params))
                continue
            floats = self._read_as_float(operation)
            if floats and not readers:
                continue  # nobody reads it quantized
            found[name] = TensorPlan(
                **params.model_dump(), origin="imported", readers=readers if floats else ()
            )
        return with_overrides(found, overrides)

    def weights(self, names: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Float constants, expanded."""
        for name in sorted(self._notes.weights.keys() & set(names)):
            with _fitting(f"'{name}'"):
                array = self._constants.dense(self._notes.weights[name])
            yield name, array.T if name in self._notes.by_outputs else array

    def palettes(self) -> dict[str, PalettePlan]:
        """Codebooks as they are stored, and what they make of the indices."""
        found = {}
        for name, variable in self._notes.weights.items():
            operation = self._maker.get(variable)
            masked = operation is not None and operation.type == "constexpr_sparse_to_dense"
            inner = self._constants.behind(operation) if operation is not None and masked else operation
            if inner is not None and inner.type.startswith("constexpr_lut_"):
                with _fitting(inner):
                    found[name] = self._palette(inner, variable, name in self._notes.by_outputs)
        return found

    def _palette(self, operation: Operation, variable: str, turned: bool) -> PalettePlan:
        book, array = self._constants.required(operation, "lut"), self._constants.dense(variable)
        masked = operation.type == "constexpr_lut_to_sparse"
        groups = [at for at in range(array.ndim) if book.ndim > array.ndim and book.shape[at] > 1]
        if len(groups) > 1 or (book.ndim > array.ndim and book.shape[-1] != 1):
            raise Damaged(f"{operation} has codebooks {list(book.shape)}, which no plan has")
        axis = next(iter(groups), None)
        size = 0 if axis is None else array.shape[axis] // book.shape[axis]
        kind = self._constants.kind(operation, "indices_nonzero_data" if masked else "indices")
        bits = (book.size - 1).bit_length() if book.ndim == 1 else NARROW.get(kind, 8)
        if turned:
            array, axis = array.T, None if axis is None else 1 - axis
        palette = palette_of(array, axis, size)
        if palette is None:
            raise Damaged(f"{operation} has more than 256 values")
        return PalettePlan(
            values=palette.codebook.shape[1],
            bits=bits,
            axis=axis,
            size=size,
            masked=masked,
            digest=data_digest(array),
        )

    def _activation(self, operation: Operation) -> QuantParams:
        scale, zero, axis, dtype = (
            self._constants.argument(operation, name)
            for name in ("scale", "zero_point", "axis", "output_dtype")
        )
        if scale is None or dtype is None:
            raise Damaged(f"{operation} has no scale or type")
        return _params(
            type=_kind(str(dtype.reshape(-1)[0])),
            scale=tuple(float(s) for s in scale.astype(np.float32).ravel()),
            zero_point=_zeros(zero, scale.size),
            axis=None if axis is None or not scale.ndim else int(axis),
        )

    def _constant(self, operation: Operation, turned: bool) -> tuple[QuantParams, np.ndarray]:
        stored = self._constants.codes(operation)
        codes, kind, scale, zero = stored.codes, _kind(stored.kind), stored.scale, stored.zero
        if turned:
            codes, scale = codes.T, scale.T
            zero = None if zero is None else zero.T
        varying = [at for at in range(scale.ndim) if scale.shape[at] > 1]
        grouped = [at for at in varying if scale.shape[at] < codes.shape[at]]
        return _params(
            type=kind,
            scale=tuple(float(s) for s in scale.astype(np.float32).ravel()),
            zero_point=_zeros(zero, scale.size),
            axis=next(iter(grouped or varying), None),
            group=codes.shape[grouped[0]] // scale.shape[grouped[0]] if grouped else None,
        ), np.ascontiguousarray(codes)

    def _readers(self, variable: str) -> tuple[str, ...]:
        made = [user.name for user in self._users.get(variable, ()) if user.type == "dequantize"]
        nodes = {self._notes.nodes.get(user.name, "") for name in made for user in self._users.get(name, ())}
        return tuple(sorted(nodes - {""}))

    def _read_as_float(self, operation: Operation) -> bool:
        """Whether somebody reads what is quantized as it is."""
        source = next(iter(operation.inputs.get("input", ())), None)
        if not isinstance(source, str):
            return False
        others = [user for user in self._users.get(source, ()) if user.type not in ("quantize", "cast")]
        return bool(others) or source in self._outputs


@contextmanager
def _fitting(what: object) -> Iterator[None]:
    """Numbers that do not fit together are the file's fault, wherever NumPy finds out."""
    try:
        yield
    except NUMPY_ERRORS as e:
        raise Damaged(f"{what}: {str(e)[:300] or type(e).__name__}") from e


def _kind(name: str) -> QuantType:
    if name not in get_args(QuantType):
        raise Damaged(f"integers of type {name}")
    return name  # type: ignore[return-value]  # mypy does not narrow by get_args


def _params(**given: object) -> QuantParams:
    """Parameters as they stand in a file. Raises Damaged for scales that are none."""
    try:
        return QuantParams.model_validate(given)
    except ValidationError as e:
        raise Damaged(f"parameters that mean nothing: {e.errors()[0]['msg']}") from e


def _zeros(zero: np.ndarray | None, count: int) -> tuple[int, ...]:
    if zero is None:
        return (0,) * count
    if zero.size not in (1, count):
        raise Damaged(f"{zero.size} zero points for {count} scales")
    return tuple(int(z) for z in np.broadcast_to(zero.ravel(), (count,)))
