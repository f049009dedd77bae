"""The plan as it stands in a .tflite file: its tensors' parameters by the names of the graph's values."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from backends.tflite.layout import plain, restored, unflattened
from backends.tflite.sdk import schema
from backends.tflite.write import blocks, flattened, notes, orders, unpacked
from deploy.graph.qdq import data_digest
from deploy.spec.plan import QuantParams, TensorPlan, with_overrides
from deploy.spec.tensors import QuantType

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as tfl

_KINDS: tuple[QuantType, ...] = ("int8", "int16", "int32", "int4")


def read_tensors(model: tfl.ModelT) -> dict[str, TensorPlan]:
    """The parameters of every planned value; origins read ``imported``."""
    found = notes(model)
    planned, nodes = found["planned"], found["nodes"]
    assert isinstance(planned, list) and isinstance(nodes, list)
    graph = _Graph(model, [str(node) for node in nodes])
    tensors: dict[str, TensorPlan] = {}
    overrides: dict[str, dict[str, QuantParams]] = {}
    for name, index, partial, moved, along in planned:
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


def read_codes(model: tfl.ModelT) -> dict[str, np.ndarray]:
    """The integers of every planned constant, axes in ONNX's order."""
    found = notes(model)
    planned, nodes = found["planned"], found["nodes"]
    assert isinstance(planned, list) and isinstance(nodes, list)
    graph = _Graph(model, [str(node) for node in nodes])
    read = {str(name): graph.codes(index) for name, index, *_ in planned}
    return {name: codes for name, codes in read.items() if codes is not None}


class _Graph:
    """The file's only graph, with who reads and who makes each tensor."""

    def __init__(self, model: tfl.ModelT, nodes: list[str]) -> None:
        self._model, self._nodes = model, nodes
        self._orders, self._flattened = orders(notes(model)), flattened(notes(model))
        self._blocks = blocks(notes(model))
        self._graph = model.subgraphs[0]
        self._users: dict[int, list[int]] = {}
        self._maker: dict[int, int] = {}
        for number, operator in enumerate(self._graph.operators):
            for index in operator.inputs:
                self._users.setdefault(int(index), []).append(number)
            for index in operator.outputs:
                self._maker[int(index)] = number

    def params(self, index: int, along: bool) -> QuantParams:
        """``along``: one scale a channel; where there is a single channel the file does not tell."""
        tensor = self._graph.tensors[index]
        scale, zero = tensor.quantization.scale, tensor.quantization.zeroPoint
        order = self._orders.get(index, plain(len(tensor.shape)))
        axis = order[tensor.quantization.quantizedDimension]
        if index in self._blocks:
            axis, count = self._blocks[index].channels, self._blocks[index].count if along else 1
            scale, zero = scale[: len(scale) // count], zero[: len(zero) // count]
        return QuantParams(
            type=self._kind(index),
            scale=tuple(float(s) for s in scale),
            zero_point=tuple(int(z) for z in zero),
            axis=axis if along else None,
        )

    def codes(self, index: int) -> np.ndarray | None:
        """The integers of a constant with their axes in ONNX's order."""
        buffer = self._buffer(index)
        if buffer is None:
            return None
        tensor = self._graph.tensors[index]
        shape = tuple(int(size) for size in tensor.shape)
        kind = self._kind(index)
        shaped = (unpacked(buffer, prod(shape)) if kind == "int4" else buffer.view(kind)).reshape(shape)
        if index in self._flattened:
            shaped = unflattened(shaped, *self._flattened[index])
        if index in self._blocks:
            return self._blocks[index].whole(shaped)
        order = self._orders.get(index)
        return shaped if order is None else restored(shaped, order)

    def _kind(self, index: int) -> QuantType:
        types, stored = schema().TensorType, self._graph.tensors[index].type
        return next(name for name in _KINDS if getattr(types, name.upper()) == stored)

    def _buffer(self, index: int) -> np.ndarray | None:
        data = self._model.buffers[self._graph.tensors[index].buffer].data
        return None if data is None or not len(data) else np.asarray(data, np.uint8)

    def readers(self, index: int) -> Iterator[str]:
        """Nodes that read a tensor, through changes of type and order."""
        for number in self._users.get(index, ()):
            if self._nodes[number]:
                yield self._nodes[number]
            elif self._code(number) != "QUANTIZE":
                yield from self.readers(int(self._graph.operators[number].outputs[0]))

    def read_as_float_too(self, index: int) -> bool:
        """Whether the floats from which a tensor was quantized have other readers."""
        maker = self._maker.get(index)
        if maker is None or self._code(maker) != "QUANTIZE":
            return False
        source = int(self._graph.operators[maker].inputs[0])
        if self._graph.tensors[source].type != schema().TensorType.FLOAT32:
            return False
        outside = source in [int(i) for i in self._graph.outputs]
        return outside or any(self._code(user) != "QUANTIZE" for user in self._users[source])

    def _code(self, number: int) -> str:
        code = self._model.operatorCodes[self._graph.operators[number].opcodeIndex].builtinCode
        names = {value: name for name, value in vars(schema().BuiltinOperator).items() if name.isupper()}
        return str(names[code])
