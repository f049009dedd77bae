"""The plan as it stands in a package: its tensors' parameters by the names of the graph's values.

Which variable carries which value stands in our metadata; what the parameters are is read out of the
operations and the weights that a device reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np

from backends.coreml.notes import Notes, notes_of
from backends.coreml.package import Package, judged, open_package
from backends.coreml.program import Operation, TensorType, Value
from backends.coreml.wire import Damaged
from deploy.errors import BackendError
from deploy.graph.qdq import data_digest
from deploy.spec.plan import QuantParams, TensorPlan, with_overrides
from deploy.spec.tensors import QuantType


def read_tensors(path: Path) -> dict[str, TensorPlan]:
    """The parameters of every planned value; origins read ``imported``. Raises BackendError for a package
    that is damaged or not of our writing."""
    with open_package(path) as package, judged(path):
        notes = notes_of(package)
        if notes is None:
            raise BackendError(f"{path.name} holds no plan of ours", hint="read a package that deploy wrote")
        return _Program(package, notes).tensors()


class _Program:
    """The operations of the main function, with who reads and who makes each variable."""

    def __init__(self, package: Package, notes: Notes) -> None:
        self._package, self._notes = package, notes
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

    def tensors(self) -> dict[str, TensorPlan]:
        found: dict[str, TensorPlan] = {}
        overrides: dict[str, dict[str, QuantParams]] = {}
        for name, variable, partial in self._notes.planned:
            operation = self._maker.get(variable)
            if operation is None:
                raise Damaged(f"no operation makes '{variable}'")
            if operation.type.startswith("constexpr"):
                params, codes = self._constant(operation, name in self._notes.by_outputs)
                found[name] = TensorPlan(**params.model_dump(), origin="imported", digest=data_digest(codes))
                continue
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

    def _value(self, operation: Operation, name: str) -> Value | None:
        """A constant argument as it is stored; None where it is left out."""
        given = operation.inputs.get(name) or (operation.attributes.get(name),)
        binding = given[0]
        if binding is None or isinstance(binding, Value):
            return binding
        maker = self._maker.get(binding)
        value = None if maker is None or maker.type != "const" else maker.attributes.get("val")
        if value is None:
            raise Damaged(f"'{name}' of {operation} is no constant")
        return value

    def _argument(self, operation: Operation, name: str) -> np.ndarray | None:
        value = self._value(operation, name)
        return None if value is None else self._package.constant(value)

    def _activation(self, operation: Operation) -> QuantParams:
        scale, zero = self._argument(operation, "scale"), self._argument(operation, "zero_point")
        axis, dtype = self._argument(operation, "axis"), self._argument(operation, "output_dtype")
        if scale is None or dtype is None:
            raise Damaged(f"{operation} has no scale or type")
        return QuantParams(
            type=_kind(str(dtype.reshape(-1)[0])),
            scale=tuple(float(s) for s in scale.astype(np.float32).ravel()),
            zero_point=_zeros(zero, scale.size),
            axis=None if axis is None or not scale.ndim else int(axis),
        )

    def _constant(self, operation: Operation, turned: bool) -> tuple[QuantParams, np.ndarray]:
        affine = operation.type == "constexpr_affine_dequantize"
        stored = self._value(operation, "quantized_data" if affine else "data")
        scale = self._argument(operation, "scale")
        zero = self._argument(operation, "zero_point" if affine else "offset")
        if stored is None or scale is None or not isinstance(stored.type, TensorType):
            raise Damaged(f"{operation} has no data or scale")
        codes, kind = self._package.constant(stored), _kind(stored.type.dtype)
        if affine and scale.ndim:
            axis = self._argument(operation, "axis")
            along = 0 if axis is None else int(axis)
            scale = scale.reshape([-1 if at == along else 1 for at in range(codes.ndim)])
            zero = None if zero is None else zero.reshape(scale.shape)
        if turned:
            codes, scale = codes.T, scale.T
            zero = None if zero is None else zero.T
        varying = [at for at in range(scale.ndim) if scale.shape[at] > 1]
        grouped = [at for at in varying if scale.shape[at] < codes.shape[at]]
        return QuantParams(
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
        source = operation.inputs["input"][0]
        if not isinstance(source, str):
            return False
        others = [user for user in self._users.get(source, ()) if user.type not in ("quantize", "cast")]
        return bool(others) or source in self._outputs


def _kind(name: str) -> QuantType:
    if name not in get_args(QuantType):
        raise Damaged(f"integers of type {name}")
    return name  # type: ignore[return-value]  # mypy does not narrow by get_args


def _zeros(zero: np.ndarray | None, count: int) -> tuple[int, ...]:
    return (0,) * count if zero is None else tuple(int(z) for z in np.broadcast_to(zero.ravel(), (count,)))
