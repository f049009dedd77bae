"""The table of TensorFlow Lite Micro's kernels against its interpreter: every operator with every type."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")
from backends.tflite.emitter import Emitter
from backends.tflite.layout import plain
from backends.tflite.micro.bare import bare
from backends.tflite.micro.fit import refusal
from backends.tflite.micro.interpreter import MicroInterpreter
from backends.tflite.micro.kernels import KERNELS
from backends.tflite.micro.sdk import runtime
from backends.tflite.network import Operator, Options, Setting, Tensor
from backends.tflite.sdk import schema
from backends.tflite.write import to_bytes
from deploy.spec.plan import QuantParams

MICRO = runtime()
needs_micro = pytest.mark.skipif(MICRO is None, reason="tflite-micro is not installed")
TYPES = ("float32", "int8", "int32", "int64", "uint8", "bool")
IMAGE = (1, 4, 4, 8)
FIXED = {
    "LOGISTIC": (1 / 256, -128),
    "SOFTMAX": (1 / 256, -128),
    "TANH": (1 / 128, 0),
    "LOG_SOFTMAX": (1 / 16, 127),
}
COMPUTED = {"EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"}


class Sketch:
    """A network of one operator, written down by its operands."""

    def __init__(self, code: str, dtype: str) -> None:
        self.out, self.code, self.dtype = Emitter(), code, dtype
        self.reads: list[int] = []
        self.makes: list[int] = []

    def _add(
        self, shape: tuple[int, ...], dtype: str, data: np.ndarray | None, scale: tuple[float, int]
    ) -> int:
        params = None
        if dtype in ("int8", "uint8"):
            params = QuantParams(type=dtype, scale=scale[:1], zero_point=scale[1:])
        return self.out.add(Tensor("t", shape, dtype, plain(len(shape)), params, data))

    def feed(self, shape: tuple[int, ...] = IMAGE, dtype: str = "") -> Sketch:
        index = self._add(shape, dtype or self.dtype, None, (1 / 256, 0))
        self.out.inputs.append(index)
        self.reads.append(index)
        return self

    def numbers(self, *values: int, shape: tuple[int, ...] | None = None) -> Sketch:
        array = np.array(values if len(values) != 1 or shape != () else values[0], np.int32)
        array = array if shape is None else array.reshape(shape)
        self.reads.append(self._add(array.shape, "int32", array, (1, 0)))
        return self

    def ones(self, shape: tuple[int, ...], dtype: str = "", scale: float = 0.01) -> Sketch:
        kind = dtype or self.dtype
        self.reads.append(self._add(shape, kind, np.ones(shape, kind), (scale, 0)))
        return self

    def bias(self, size: int) -> Sketch:
        if self.dtype != "int8":
            return self.ones((size,))
        data = np.ones(size, np.int32)
        params = QuantParams(type="int32", scale=(0.01 / 256,), zero_point=(0,))
        self.reads.append(self.out.add(Tensor("bias", (size,), "int32", (0,), params, data)))
        return self

    def gives(self, shape: tuple[int, ...] = IMAGE, dtype: str = "") -> Sketch:
        kind = dtype or self.dtype
        scale = FIXED.get(self.code, (1 / 256, 0)) if kind == "int8" else (1 / 256, 0)
        index = self._add(shape, kind, None, scale)
        self.out.outputs.append(index)
        self.makes.append(index)
        return self

    def file(self, options: Options = ("", {})) -> tuple[bytes, Operator]:
        operator = Operator(self.code, 1, tuple(self.reads), tuple(self.makes), options, "node")
        self.out.operators.append(operator)
        return _written(self.out), operator


def _written(out: Emitter) -> bytes:
    from deploy.spec.tensors import TensorSpec

    def ports(indices: list[int]) -> list[TensorSpec]:
        return [TensorSpec(name=f"p{i}", dtype="float32", shape=(1,)) for i in indices]

    return bare(to_bytes(out, ports(out.inputs), ports(out.outputs)))


def _plain(
    table: str = "", reads: int = 1, **fields: int | float
) -> Callable[[Sketch], tuple[bytes, Operator]]:
    def make(sketch: Sketch) -> tuple[bytes, Operator]:
        for _ in range(reads):
            sketch.feed()
        return sketch.gives(dtype="bool" if sketch.code in COMPUTED else "").file((table, {**fields}))

    return make


def _with_ones(table: str) -> Callable[[Sketch], tuple[bytes, Operator]]:
    return lambda s: s.feed().ones(IMAGE, scale=1 / 256).gives().file((table, {}))


def _pool(s: Sketch) -> tuple[bytes, Operator]:
    fields: dict[str, Setting] = {"padding": "VALID", "strideH": 2, "strideW": 2}
    fields |= {"filterHeight": 2, "filterWidth": 2}
    return s.feed().gives((1, 2, 2, 8)).file(("Pool2DOptions", {**fields}))


def _reduce(s: Sketch) -> tuple[bytes, Operator]:
    return s.feed().numbers(1, 2).gives((1, 1, 1, 8)).file(("ReducerOptions", {"keepDims": True}))


def _conv(s: Sketch) -> tuple[bytes, Operator]:
    weights = "int8" if s.dtype == "int8" else s.dtype
    fields: dict[str, Setting] = {"padding": "VALID", "strideH": 1, "strideW": 1}
    if s.code == "TRANSPOSE_CONV":
        made = s.numbers(1, 6, 6, 8).ones((8, 3, 3, 8), weights).feed().bias(8).gives((1, 6, 6, 8))
        return made.file(("TransposeConvOptions", {**fields}))
    if s.code == "CONV_2D":
        return (
            s.feed()
            .ones((4, 3, 3, 8), weights)
            .bias(4)
            .gives((1, 2, 2, 4))
            .file(("Conv2DOptions", {**fields}))
        )
    made = s.feed().ones((1, 3, 3, 8), weights).bias(8).gives((1, 2, 2, 8))
    return made.file(("DepthwiseConv2DOptions", {**fields, "depthMultiplier": 1}))


def _arg(table: str) -> Callable[[Sketch], tuple[bytes, Operator]]:
    options: Options = (table, {"outputType": "INT32"})
    return lambda s: s.feed().numbers(3, shape=()).gives((1, 4, 4), "int32").file(options)


MAKE: dict[str, Callable[[Sketch], tuple[bytes, Operator]]] = {
    **dict.fromkeys(
        ("CEIL", "ELU", "FLOOR", "LOG", "LOGISTIC", "RELU", "RELU6", "ROUND", "RSQRT", "SIN", "SQRT", "TANH"),
        _plain(),
    ),
    "ABS": _plain("AbsOptions"),
    "COS": _plain("CosOptions"),
    "EXP": _plain("ExpOptions"),
    "HARD_SWISH": _plain("HardSwishOptions"),
    "NEG": _plain("NegOptions"),
    "SQUARE": _plain("SquareOptions"),
    "LOGICAL_NOT": _plain("LogicalNotOptions"),
    "ZEROS_LIKE": _plain("ZerosLikeOptions"),
    "LOG_SOFTMAX": _plain("LogSoftmaxOptions"),
    "L2_NORMALIZATION": _plain("L2NormOptions"),
    "LEAKY_RELU": _plain("LeakyReluOptions", alpha=0.1),
    "SOFTMAX": _plain("SoftmaxOptions", beta=1.0),
    "EQUAL": _plain("EqualOptions", 2),
    "NOT_EQUAL": _plain("NotEqualOptions", 2),
    "LESS": _plain("LessOptions", 2),
    "LESS_EQUAL": _plain("LessEqualOptions", 2),
    "GREATER": _plain("GreaterOptions", 2),
    "GREATER_EQUAL": _plain("GreaterEqualOptions", 2),
    "ADD_N": _plain("AddNOptions", 2),
    "ADD": _with_ones("AddOptions"),
    "SUB": _with_ones("SubOptions"),
    "MUL": _with_ones("MulOptions"),
    "DIV": _with_ones("DivOptions"),
    "MAXIMUM": _with_ones("MaximumMinimumOptions"),
    "MINIMUM": _with_ones("MaximumMinimumOptions"),
    "SQUARED_DIFFERENCE": _with_ones("SquaredDifferenceOptions"),
    "FLOOR_DIV": _with_ones("FloorDivOptions"),
    "FLOOR_MOD": _with_ones("FloorModOptions"),
    "LOGICAL_AND": _with_ones("LogicalAndOptions"),
    "LOGICAL_OR": _with_ones("LogicalOrOptions"),
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "L2_POOL_2D": _pool,
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_ALL"), _reduce),
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"), _conv),
    "ARG_MAX": _arg("ArgMaxOptions"),
    "ARG_MIN": _arg("ArgMinOptions"),
    "FULLY_CONNECTED": lambda s: (
        s.feed((4, 8)).ones((8, 8)).bias(8).gives((4, 8)).file(("FullyConnectedOptions", {}))
    ),
    "BATCH_MATMUL": lambda s: (
        s.feed((1, 4, 8)).feed((1, 8, 4)).gives((1, 4, 4)).file(("BatchMatMulOptions", {}))
    ),
    "BATCH_TO_SPACE_ND": lambda s: (
        s.feed((4, 2, 2, 3))
        .numbers(2, 2)
        .numbers(0, 0, 0, 0, shape=(2, 2))
        .gives((1, 4, 4, 3))
        .file(("BatchToSpaceNDOptions", {}))
    ),
    "SPACE_TO_BATCH_ND": lambda s: (
        s.feed((1, 4, 4, 3))
        .numbers(2, 2)
        .numbers(0, 0, 0, 0, shape=(2, 2))
        .gives((4, 2, 2, 3))
        .file(("SpaceToBatchNDOptions", {}))
    ),
    "BROADCAST_ARGS": lambda s: s.feed((2,)).feed((2,)).gives((2,)).file(),
    "BROADCAST_TO": lambda s: s.feed((1, 1, 1, 8)).numbers(*IMAGE).gives().file(("BroadcastToOptions", {})),
    "CAST": lambda s: (
        s.feed()
        .gives(dtype="float32")
        .file(("CastOptions", {"inDataType": s.dtype.upper(), "outDataType": "FLOAT32"}))
    ),
    "CONCATENATION": lambda s: (
        s.feed().feed().gives((1, 4, 4, 16)).file(("ConcatenationOptions", {"axis": 3}))
    ),
    "CUMSUM": lambda s: s.feed().numbers(1, shape=()).gives().file(("CumsumOptions", {})),
    "DEPTH_TO_SPACE": lambda s: s.feed().gives((1, 8, 8, 2)).file(("DepthToSpaceOptions", {"blockSize": 2})),
    "SPACE_TO_DEPTH": lambda s: s.feed().gives((1, 2, 2, 32)).file(("SpaceToDepthOptions", {"blockSize": 2})),
    "DEQUANTIZE": lambda s: s.feed().gives(dtype="float32").file(("DequantizeOptions", {})),
    "QUANTIZE": lambda s: s.feed().gives(dtype="int8").file(("QuantizeOptions", {})),
    "DYNAMIC_UPDATE_SLICE": lambda s: s.feed().feed((1, 1, 1, 8)).numbers(0, 0, 0, 0).gives().file(),
    "EMBEDDING_LOOKUP": lambda s: s.feed((2,), "int32").ones((8, 4)).gives((2, 4)).file(),
    "EXPAND_DIMS": lambda s: s.feed().numbers(0, shape=()).gives((1, *IMAGE)).file(("ExpandDimsOptions", {})),
    "SQUEEZE": lambda s: s.feed().gives(IMAGE[1:]).file(("SqueezeOptions", {})),
    "FILL": lambda s: s.numbers(3, 4).feed(()).gives((3, 4)).file(("FillOptions", {})),
    "GATHER": lambda s: s.feed().numbers(0, 1, 2).gives((1, 4, 4, 3)).file(("GatherOptions", {"axis": 3})),
    "GATHER_ND": lambda s: (
        s.feed((4, 8)).numbers(0, 1, shape=(2, 1)).gives((2, 8)).file(("GatherNdOptions", {}))
    ),
    "MIRROR_PAD": lambda s: (
        s.feed()
        .numbers(0, 0, 1, 1, 1, 1, 0, 0, shape=(4, 2))
        .gives((1, 6, 6, 8))
        .file(("MirrorPadOptions", {}))
    ),
    "PAD": lambda s: (
        s.feed().numbers(0, 0, 1, 1, 1, 1, 0, 0, shape=(4, 2)).gives((1, 6, 6, 8)).file(("PadOptions", {}))
    ),
    "PADV2": lambda s: (
        s.feed()
        .numbers(0, 0, 1, 1, 1, 1, 0, 0, shape=(4, 2))
        .ones((), scale=1 / 256)
        .gives((1, 6, 6, 8))
        .file(("PadV2Options", {}))
    ),
    "PACK": lambda s: s.feed((4, 8)).feed((4, 8)).gives((2, 4, 8)).file(("PackOptions", {"valuesCount": 2})),
    "UNPACK": lambda s: s.feed((2, 4, 8)).gives((4, 8)).gives((4, 8)).file(("UnpackOptions", {"num": 2})),
    "PRELU": lambda s: s.feed().ones((1, 1, 8)).gives().file(),
    "RESHAPE": lambda s: s.feed().numbers(4, 32).gives((4, 32)).file(),
    "RESIZE_BILINEAR": lambda s: (
        s.feed().numbers(8, 8).gives((1, 8, 8, 8)).file(("ResizeBilinearOptions", {"halfPixelCenters": True}))
    ),
    "RESIZE_NEAREST_NEIGHBOR": lambda s: (
        s.feed()
        .numbers(8, 8)
        .gives((1, 8, 8, 8))
        .file(("ResizeNearestNeighborOptions", {"halfPixelCenters": True}))
    ),
    "REVERSE_V2": lambda s: s.feed().numbers(1).gives().file(("ReverseV2Options", {})),
    "SELECT_V2": lambda s: s.feed(dtype="bool").feed().feed().gives().file(("SelectV2Options", {})),
    "SHAPE": lambda s: s.feed().gives((4,), "int32").file(("ShapeOptions", {"outType": "INT32"})),
    "SLICE": lambda s: (
        s.feed().numbers(0, 0, 0, 0).numbers(1, 2, 2, 8).gives((1, 2, 2, 8)).file(("SliceOptions", {}))
    ),
    "STRIDED_SLICE": lambda s: (
        s.feed()
        .numbers(0, 0, 0, 0)
        .numbers(1, 2, 2, 8)
        .numbers(1, 1, 1, 1)
        .gives((1, 2, 2, 8))
        .file(("StridedSliceOptions", {}))
    ),
    "SPLIT": lambda s: (
        s.numbers(3, shape=())
        .feed()
        .gives((1, 4, 4, 4))
        .gives((1, 4, 4, 4))
        .file(("SplitOptions", {"numSplits": 2}))
    ),
    "SPLIT_V": lambda s: (
        s.feed()
        .numbers(3, 5)
        .numbers(3, shape=())
        .gives((1, 4, 4, 3))
        .gives((1, 4, 4, 5))
        .file(("SplitVOptions", {"numSplits": 2}))
    ),
    "TRANSPOSE": lambda s: s.feed().numbers(0, 3, 1, 2).gives((1, 8, 4, 4)).file(("TransposeOptions", {})),
}

NOT_TOLD = (
    {("LOGICAL_AND", dtype) for dtype in TYPES}
    | {("LOGICAL_OR", dtype) for dtype in TYPES}
    | {("RSQRT", "int8")}
)
"""What kernels read as if it were of their type, or refuse for the numbers here."""


def test_every_kernel_is_tried() -> None:
    assert MAKE.keys() == KERNELS.keys()


@needs_micro
@pytest.mark.parametrize("code", sorted(KERNELS))
def test_a_kernel_takes_the_types_of_the_table_and_no_others(code: str) -> None:
    assert MICRO is not None
    for dtype in TYPES:
        sketch = Sketch(code, dtype)
        content, operator = MAKE[code](sketch)
        refused = refusal(operator, sketch.out)
        try:
            engine = MicroInterpreter(MICRO, content, inner=False)
            for port in engine.get_input_details():
                engine.set_tensor(
                    port["index"], np.zeros(tuple(port["shape"]), sketch.out.tensors[port["index"]].dtype)
                )
            engine.invoke()
        except RuntimeError as e:
            assert refused or (code, dtype) in NOT_TOLD, f"{dtype}: {e}"
        else:
            assert not refused or (code, dtype) in NOT_TOLD, f"{dtype}: {refused}"


@needs_micro
def test_what_stands_in_no_line_of_the_table_has_no_kernel() -> None:
    """Operators of one operand are enough: an unknown one is told before its operands are looked at."""
    assert MICRO is not None
    stateful = {
        "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM", "IF", "WHILE", "CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE",
        "ASSIGN_VARIABLE", "CUSTOM",
    }  # fmt: skip
    known = [name for name in vars(schema().BuiltinOperator) if name.isupper()]
    found = set()
    for code in set(known) - KERNELS.keys() - stateful:
        content, _ = Sketch(code, "float32").feed().gives().file()
        try:
            MicroInterpreter(MICRO, content, inner=False)
        except RuntimeError as e:
            if "find op" in str(e) or "opcode" in str(e).lower():
                continue
        found.add(code)
    assert not found
