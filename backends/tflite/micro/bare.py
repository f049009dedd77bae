"""A .tflite file without what a device has no use for, which for small networks is half of it.

Names, our notes and the signature go. The zero points of weights are all 0, so one will do for all channels,
which TensorFlow Lite Micro accepts (LiteRT does not); of biases with a scale a channel no kernel reads any.
What is left has the same tensors and operators under the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flatbuffers
import numpy as np

from backends.tflite.sdk import schema
from backends.tflite.write import aligned_buffer

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as tfl


def bare(content: bytes) -> bytes:
    """The bytes of a file as they go onto a device."""
    model: tfl.ModelT = schema().ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    biases = {int(operator.inputs[2]) for operator in graph.operators if len(operator.inputs) > 2}
    needed = sorted({int(tensor.buffer) for tensor in graph.tensors} | {0})
    place = {old: new for new, old in enumerate(needed)}
    model.buffers = [_copied(model.buffers[old]) for old in needed]
    model.metadata = model.signatureDefs = model.description = graph.name = None
    for index, tensor in enumerate(graph.tensors):
        tensor.name, tensor.buffer = None, place[int(tensor.buffer)]
        params = tensor.quantization
        if params is not None and params.scale is not None and len(params.scale) > 1:
            tensor.quantization = None if index in biases else params
            params.zeroPoint = np.zeros(1, np.int64)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _copied(buffer: tfl.BufferT) -> tfl.BufferT:
    data = buffer.data
    return (
        schema().BufferT()
        if data is None or not len(data)
        else aligned_buffer(np.asarray(data, np.uint8).tobytes())
    )
