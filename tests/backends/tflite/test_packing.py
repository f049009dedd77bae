"""Tables written at once are the bytes of FlatBuffers' own builder."""

from __future__ import annotations

import struct

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")
import flatbuffers
from ai_edge_litert import schema_py_generated as tfl

from backends.tflite.packing import Packer

KINDS = sorted(name for name in vars(tfl) if name.endswith("OptionsT"))
NAMES = [b"", b"a", b"of nine b", b"sixteen letters!"]
SIZES = [[], [1], [2, 3], [-1, 7, 7, 16]]


def drawn(value: object, rng: np.random.Generator) -> object:
    """Another number of the type of ``value``, the default often among them; none for what is no number."""
    if isinstance(value, bool):
        return bool(rng.integers(2))
    if isinstance(value, int):
        return int(rng.integers(3))
    return float(rng.choice([0.0, 0.5, -3.25])) if isinstance(value, float) else None


def options(kind: str, rng: np.random.Generator) -> object:
    made = getattr(tfl, kind)()
    for name, value in vars(made).items():
        setattr(made, name, drawn(value, rng))
    return made


def tensor(rng: np.random.Generator) -> object:
    made = tfl.TensorT()
    made.name = NAMES[rng.integers(4)]
    made.shape, made.shapeSignature = SIZES[rng.integers(4)], rng.choice([None, 1]) and SIZES[3]
    made.type, made.buffer, made.hasRank = int(rng.integers(12)), int(rng.integers(3)), bool(rng.integers(2))
    if rng.integers(2):
        made.quantization = tfl.QuantizationParametersT()
        made.quantization.scale = rng.random(rng.integers(1, 5)).astype(np.float32)
        made.quantization.zeroPoint = rng.integers(-9, 9, rng.integers(1, 3))
        made.quantization.quantizedDimension = int(rng.integers(2))
    return made


def model(rng: np.random.Generator) -> object:
    made, graph = tfl.ModelT(), tfl.SubGraphT()
    graph.tensors = [tensor(rng) for _ in range(60)]
    graph.operators = []
    for kind in KINDS * 3:
        operator = tfl.OperatorT()
        operator.opcodeIndex, operator.builtinOptionsType = int(rng.integers(3)), int(rng.integers(99))
        operator.inputs, operator.outputs = SIZES[rng.integers(4)], SIZES[rng.integers(4)]
        operator.builtinOptions, operator.largeCustomOptionsSize = options(kind, rng), int(rng.integers(2))
        graph.operators.append(operator)
    made.subgraphs, made.buffers, made.version = [graph], [tfl.BufferT()], 3
    return made


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("room", [16, 1 << 20])
def test_as_flatbuffers_writes_them(seed, room):
    written = []
    for builder in (flatbuffers.Builder(room), Packer(room)):
        builder.Finish(model(np.random.default_rng(seed)).Pack(builder), file_identifier=b"TFL3")
        written.append(bytes(builder.Output()))
    assert written[0] == written[1]


def test_a_number_too_large_is_an_error():
    builder = Packer(64)
    for type_ in (1, 1, 300):
        made = tfl.TensorT()
        made.type = type_
        if type_ < 128:
            made.Pack(builder)
    with pytest.raises(struct.error):
        made.Pack(builder)
