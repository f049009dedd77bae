"""The plan as it stands in a .tflite file: its tensors' parameters by the names of the graph's values."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from backends.tflite.layout import plain, restored, unflattened
from backends.tflite.sdk import schema
from backends.tflite.write import blocks, flattened, notes_in, orders, unpacked
from deploy.graph.qdq import data_digest
from deploy.spec.plan import QuantParams, TensorPlan, with_overrides
from deploy.spec.tensors import QuantType

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as tfl

_KINDS: tuple[QuantType, ...] = ("int8", "int16", "int32", "int4")


def read_tensors(file: tfl.Model) -> dict[str, TensorPlan]:
    """The parameters of every planned value; origins read ``imported``."""
    graph = _Graph(file)
    tensors: dict[str, TensorPlan] = {}
    overrides: dict[str, dict[str, QuantParams]] = {}
    for name, index, partial, moved, along in graph.planned:
        params, codes = graph.params(index, along), graph.codes(index)
        if codes is not None:
            digest = data_digest(codes)
            tensors[name] = TensorPlan(**params.model_dump(), origin="imported", digest=digest)
            continue
        readers = tuple(sorted(set(graph.readers(index))))
        if partial:
            overrides.setdefault(name, {}).update(dict.fromkeys(readers, params))
            continue
        floats = not moved and graph.read_as_float_too(index)
        if floats and not readers:
            continue  # nobody reads it quantized
        tensors[name] = TensorPlan(
            **params.model_dump(), origin="imported", readers=readers if floats else ()
        )
    return with_overrides(tensors, overrides)


def read_codes(file: tfl.Model) -> dict[str, np.ndarray]:
    """The integers of every planned constant, axes in ONNX's order."""
    graph = _Graph(file)
    read = {str(name): graph.codes(index) for name, index, *_ in graph.planned}
    return {name: codes for name, codes in read.items() if codes is not None}


class _Graph:
    """The file's only graph, with who reads and who makes each tensor."""

    def __init__(self, file: tfl.Model) -> None:
        self._file, self._graph = file, file.Subgraphs(0)
        found = notes_in(file)
        planned, nodes = found["planned"], found["nodes"]
        assert isinstance(planned, list) and isinstance(nodes, list)
        self.planned, self._nodes = planned, nodes
        self._orders, self._flattened, self._blocks = orders(found), flattened(found), blocks(found)
        self._users: dict[int, list[int]] = {}
        self._maker: dict[int, int] = {}
        self._operators = [self._graph.Operators(i) for i in range(self._graph.OperatorsLength())]
        for number, operator in enumerate(self._operators):
            for slot in range(operator.InputsLength()):
                self._users.setdefault(operator.Inputs(slot), []).append(number)
            for slot in range(operator.OutputsLength()):
                self._maker[operator.Outputs(slot)] = number
        codes = [file.OperatorCodes(i).BuiltinCode() for i in range(file.OperatorCodesLength())]
        names = {value: name for name, value in vars(schema().BuiltinOperator).items() if name.isupper()}
        self._codes: list[str] = [names[code] for code in codes]

    def params(self, index: int, along: bool) -> QuantParams:
        """``along``: one scale a channel; where there is a single channel the file does not tell."""
        tensor = self._graph.Tensors(index)
        found = tensor.Quantization()
        scale, zero = found.ScaleAsNumpy(), found.ZeroPointAsNumpy()
        order = self._orders.get(index, plain(tensor.ShapeLength()))
        axis = order[found.QuantizedDimension()]
        if index in self._blocks:
            axis, count = self._blocks[index].channels, self._blocks[index].count if along else 1
            scale, zero = scale[: len(scale) // count], zero[: len(zero) // count]
        return QuantParams(
            type=self._kind(index),
            scale=tuple(scale.tolist()),
            zero_point=tuple(zero.tolist()),
            axis=axis if along else None,
        )

    def codes(self, index: int) -> np.ndarray | None:
        """The integers of a constant with their axes in ONNX's order."""
        buffer = self._buffer(index)
        if buffer is None:
            return None
        shape = tuple(self._graph.Tensors(index).ShapeAsNumpy().tolist())
        kind = self._kind(index)
        shaped = (unpacked(buffer, prod(shape)) if kind == "int4" else buffer.view(kind)).reshape(shape)
        if index in self._flattened:
            shaped = unflattened(shaped, *self._flattened[index])
        if index in self._blocks:
            return self._blocks[index].whole(shaped)
        order = self._orders.get(index)
        return shaped if order is None else restored(shaped, order)

    def _kind(self, index: int) -> QuantType:
        types, stored = schema().TensorType, self._graph.Tensors(index).Type()
        return next(name for name in _KINDS if getattr(types, name.upper()) == stored)

    def _buffer(self, index: int) -> np.ndarray | None:
        buffer = self._file.Buffers(self._graph.Tensors(index).Buffer())
        return buffer.DataAsNumpy() if buffer.DataLength() else None

    def readers(self, index: int) -> Iterator[str]:
        """Nodes that read a tensor, through changes of type and order."""
        for number in self._users.get(index, ()):
            if self._nodes[number]:
                yield self._nodes[number]
            elif self._code(number) != "QUANTIZE":
                yield from self.readers(self._operators[number].Outputs(0))

    def read_as_float_too(self, index: int) -> bool:
        """Whether the floats from which a tensor was quantized have other readers."""
        maker = self._maker.get(index)
        if maker is None or self._code(maker) != "QUANTIZE":
            return False
        source = self._operators[maker].Inputs(0)
        if self._graph.Tensors(source).Type() != schema().TensorType.FLOAT32:
            return False
        outside = source in [self._graph.Outputs(i) for i in range(self._graph.OutputsLength())]
        return outside or any(self._code(user) != "QUANTIZE" for user in self._users[source])

    def _code(self, number: int) -> str:
        return self._codes[int(self._operators[number].OpcodeIndex())]
