"""Constants as they lie in a program: behind a name, expanded, or as integers with their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from backends.coreml.interpret.call import Refused, sized
from backends.coreml.interpret.ops.quant import looked_up, packed_lut, placed, spread, unpacked
from backends.coreml.package import Package
from backends.coreml.program import Operation, TensorType, Value
from backends.coreml.wire import Damaged


@dataclass(frozen=True)
class Codes:
    """Integers, of a type as MIL calls it, with scales and zero points (None: all 0) of as many axes."""

    codes: np.ndarray
    kind: str
    scale: np.ndarray
    zero: np.ndarray | None


class Constants:
    """The constants of a function whose operations are given by the names of what they make."""

    def __init__(self, package: Package, makers: Mapping[str, Operation]) -> None:
        self._package, self._makers = package, makers

    def value(self, operation: Operation, name: str) -> Value | None:
        """A constant argument as it is stored; None where it is left out."""
        given = operation.inputs.get(name) or (operation.attributes.get(name),)
        binding = given[0]
        if binding is None or isinstance(binding, Value):
            return binding
        maker = self._makers.get(binding)
        value = None if maker is None or maker.type != "const" else maker.attributes.get("val")
        if value is None:
            raise Damaged(f"'{name}' of {operation} is no constant")
        return value

    def argument(self, operation: Operation, name: str) -> np.ndarray | None:
        """The numbers of a constant argument."""
        value = self.value(operation, name)
        return None if value is None else self._package.constant(value)

    def required(self, operation: Operation, name: str) -> np.ndarray:
        """As `argument`. Raises Damaged where it is left out."""
        found = self.argument(operation, name)
        if found is None:
            raise Damaged(f"{operation} has no {name}")
        return found

    def kind(self, operation: Operation, name: str) -> str:
        """The type in which an argument is stored."""
        value = self.value(operation, name)
        if value is None or not isinstance(value.type, TensorType):
            raise Damaged(f"{operation} has no {name}")
        return value.type.dtype

    def dense(self, variable: str) -> np.ndarray:
        """The numbers of a float constant, expanded from whatever form it is stored in."""
        operation = self._makers.get(variable)
        if operation is None:
            raise Damaged(f"'{variable}' is no constant")
        try:
            match operation.type:
                case "const":
                    return self.required(operation, "val")
                case "constexpr_lut_to_dense":
                    return self._looked_up(operation)
                case "constexpr_sparse_to_dense":
                    return self._placed(operation)
        except Refused as e:
            raise Damaged(f"{operation}: {e}") from e
        raise Damaged(f"'{variable}' is no float constant")

    def _looked_up(self, operation: Operation) -> np.ndarray:
        indices, book = self.required(operation, "indices"), self.required(operation, "lut")
        shape = self._shape(operation)
        if shape is not None:
            return packed_lut(indices, book, shape)
        return self._entries(indices, book, operation)

    def _placed(self, operation: Operation) -> np.ndarray:
        inner = self.behind(operation)
        if inner is not None:
            return self._masked(inner)
        mask, shape = self.required(operation, "mask"), self._shape(operation)
        if shape is not None:
            mask = unpacked(mask, sized(shape), 1)
        return placed(self.required(operation, "nonzero_data"), mask)

    def _masked(self, operation: Operation) -> np.ndarray:
        """A palette of what is not 0."""
        if operation.type != "constexpr_lut_to_sparse":
            raise Damaged(f"{operation} makes no floats")
        mask = self.required(operation, "indices_mask")
        indices = placed(self.required(operation, "indices_nonzero_data"), mask)
        found = self._entries(indices, self.required(operation, "lut"), operation)
        return np.where(mask != 0, found, found.dtype.type(0))

    def _entries(self, indices: np.ndarray, book: np.ndarray, operation: Operation) -> np.ndarray:
        if book.ndim == indices.ndim + 2 and book.shape[-1] != 1:
            raise Damaged(f"{operation} has a codebook of vectors")
        return looked_up(indices, book, None)

    def behind(self, operation: Operation, name: str = "nonzero_data") -> Operation | None:
        """What makes the numbers of an argument; None where they are stored themselves."""
        binding = next(iter(operation.inputs.get(name, ())), None)
        inner = self._makers.get(binding) if isinstance(binding, str) else None
        return inner if inner is not None and inner.type.startswith("constexpr_") else None

    def _shape(self, operation: Operation) -> list[int] | None:
        """The sizes of a constant that lies in plain bytes, until iOS 17."""
        found = self.argument(operation, "shape")
        return None if found is None else [int(size) for size in found.reshape(-1)]

    def codes(self, operation: Operation) -> Codes:
        """Integers with their parameters, put back where zeros were left out.

        Raises Damaged where the parameters do not go into them.
        """
        found = self._codes(operation)
        for beside in (found.scale, found.zero):
            if beside is not None and beside.ndim and not _goes_into(beside.shape, found.codes.shape):
                raise Damaged(f"{operation}: blocks {list(beside.shape)} of {list(found.codes.shape)}")
        return found

    def _codes(self, operation: Operation) -> Codes:
        if operation.type == "constexpr_affine_dequantize":
            return self._affine(operation)
        if operation.type == "constexpr_blockwise_shift_scale":
            return self._blocks(operation, self.required(operation, "data"), "data")
        if operation.type == "constexpr_lut_to_dense":
            return self._looked_up_codes(operation)
        inner = self.behind(operation)
        if inner is None or inner.type != "constexpr_sparse_blockwise_shift_scale":
            raise Damaged(f"{operation} holds no integers")
        mask, values = self.required(inner, "data_mask"), self.required(inner, "nonzero_data")
        try:
            codes = placed(values, mask)
            found = self._blocks(inner, codes, "nonzero_data")
            if found.zero is None:
                return found
            return replace(found, codes=np.where(mask != 0, codes, spread(found.zero, codes.shape)))
        except Refused as e:
            raise Damaged(f"{inner}: {e}") from e

    def _affine(self, operation: Operation) -> Codes:
        codes, scale = self.required(operation, "quantized_data"), self.required(operation, "scale")
        zero = self.argument(operation, "zero_point")
        if scale.ndim:
            axis = self.argument(operation, "axis")
            along = 0 if axis is None else int(axis) if axis.ndim == 0 else codes.ndim
            there = scale.ndim == 1 and -codes.ndim <= along < codes.ndim
            if not there or scale.size not in (1, codes.shape[along]):
                raise Damaged(f"{operation}: {scale.size} scales along axis {along} of {list(codes.shape)}")
            shape = [-1 if at == along % codes.ndim else 1 for at in range(codes.ndim)]
            scale, zero = scale.reshape(shape), None if zero is None else zero.reshape(shape)
        return Codes(codes, self.kind(operation, "quantized_data"), scale, zero)

    def _looked_up_codes(self, operation: Operation) -> Codes:
        """Of a codebook of integers, which is scaled before it is looked up in."""
        inner = self.behind(operation, "lut")
        if inner is None or inner.type != "constexpr_blockwise_shift_scale":
            raise Damaged(f"{operation} holds no integers")
        book, scale = self.required(inner, "data"), self.required(inner, "scale")
        zero = self.argument(inner, "offset")
        if scale.shape[-2:] != (1, 1) or (zero is not None and zero.shape != scale.shape):
            raise Damaged(f"{inner} scales what is in a codebook one by one, which no plan has")
        try:
            codes = self._entries(self.required(operation, "indices"), book, operation)
        except Refused as e:
            raise Damaged(f"{operation}: {e}") from e
        beside = None if zero is None else zero[..., 0, 0]
        return Codes(codes, self.kind(inner, "data"), scale[..., 0, 0], beside)

    def _blocks(self, operation: Operation, codes: np.ndarray, name: str) -> Codes:
        scale, zero = self.required(operation, "scale"), self.argument(operation, "offset")
        return Codes(codes, self.kind(operation, name), scale, zero)


def _goes_into(blocks: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(blocks) == len(shape) and all(b > 0 and n % b == 0 for b, n in zip(blocks, shape, strict=True))
