"""Where the time of one inference goes, from LiteRT's own profiler.

LiteRT's Python has no way to it, its library has: functions in C, called here by name through ctypes. Nobody
promises that they stay as they are, so they are called in a child process, for the releases that they were
tried with; what goes wrong there costs the times and nothing else.

The profiler reports kernels in the order in which they run: those of LiteRT with the place of their operator,
those of XNNPACK stretch by stretch with a name and no more. The latter are laid beside the operators of their
stretch so that the most names fit.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import flatbuffers
import numpy as np

from backends.tflite.partitions import operators_by_stretch
from backends.tflite.profile_child import MODULE, Event
from backends.tflite.runner import TFLiteOptions, open_interpreter
from backends.tflite.sdk import schema, version
from backends.tflite.write import aligned_buffer, notes, read_file
from deploy.adapter.child import Allowance, Child
from deploy.adapter.message import Message
from deploy.errors import BackendError, DeployError

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as tfl
    from ai_edge_litert.interpreter import Interpreter

logger = logging.getLogger(__name__)

_TRIED = ("2.3.",)
"""Releases of LiteRT whose library has been seen to take these calls."""
_MEMORY, _PER_BYTE, _SECONDS = 2 * 2**30, 16, 60.0

_FAMILIES = {
    "CONV_2D": "Convolution", "DEPTHWISE_CONV_2D": "Convolution", "TRANSPOSE_CONV": "Deconvolution",
    "FULLY_CONNECTED": "Fully Connected", "BATCH_MATMUL": "Batch Matrix Multiply",
    "ADD": "Add", "SUB": "Subtract", "MUL": "Multiply", "DIV": "Divide", "MAXIMUM": "Maximum",
    "MINIMUM": "Minimum", "POW": "Power", "PRELU": "PReLU", "SQUARED_DIFFERENCE": "Squared Difference",
    "ABS": "Abs", "CEIL": "Ceiling", "COS": "Cosine", "EXP": "Exp", "FLOOR": "Floor", "LOG": "Log",
    "NEG": "Negate", "ROUND": "Bankders Rounding", "RSQRT": "Reciprocal Square Root", "SIGN": "Sign",
    "SIN": "Sine", "SQRT": "Square Root", "SQUARE": "Square",
    "RELU": "Clamp", "RELU6": "Clamp", "RELU_N1_TO_1": "Clamp", "RELU_0_TO_1": "Clamp",
    "ELU": "ELU", "GELU": "GELU", "HARD_SWISH": "HardSwish", "LEAKY_RELU": "LeakyReLU",
    "LOGISTIC": "Sigmoid", "SOFTMAX": "Softmax", "TANH": "TanH",
    "QUANTIZE": "Convert", "DEQUANTIZE": "Convert", "CAST": "Convert",
    "AVERAGE_POOL_2D": "Average Pooling", "MAX_POOL_2D": "Max Pooling",
    "MEAN": "Mean", "SUM": "Sum", "REDUCE_MAX": "Reduce Max", "REDUCE_MIN": "Reduce Min",
    "CONCATENATION": "Copy", "SPLIT": "Slice", "SLICE": "Slice", "STRIDED_SLICE": "Slice",
    "PAD": "Constant Pad", "RESHAPE": "Static Reshape", "EXPAND_DIMS": "Static Reshape",
    "SQUEEZE": "Static Reshape", "TRANSPOSE": "Transpose", "DEPTH_TO_SPACE": "Depth To Space",
    "SPACE_TO_DEPTH": "Space To Depth", "RESIZE_BILINEAR": "Resize Bilinear",
}  # fmt: skip
"""How XNNPACK calls the kernel of an operator."""

_ALSO = {
    "CONV_2D": ("Fully Connected",), "BATCH_MATMUL": ("Fully Connected", "Dynamic Fully Connected"),
    "FULLY_CONNECTED": ("Dynamic Fully Connected", "Batch Matrix Multiply"),
    "GELU": ("ApproxGELU",), "AVERAGE_POOL_2D": ("Mean",),
    "RESHAPE": ("Copy", "Fuse Dims", "Split Dims", "Static Expand Dims"),
}  # fmt: skip
"""What else it makes of some: of a convolution without a window a product."""


def operation_times(path: Path, feeds: Mapping[str, np.ndarray], options: TFLiteOptions) -> dict[str, float]:
    """Milliseconds by node of the graph that a file of ours was lowered from, over 30 runs.

    A kernel that several nodes became counts for the node whose result it makes; changes of type and order
    stand under an empty name. Empty where this LiteRT's profiler has not been tried, or fails. Raises
    BackendError where LiteRT cannot open the file.
    """
    if options.micro or options.delegate != "xnnpack" or not version().startswith(_TRIED):
        return {}
    model = read_file(path)
    nodes = [str(name) for name in _listed(notes(model)["nodes"])]
    try:
        engine = open_interpreter(options, path=path)
        fed = _fit(engine, feeds)
    except (RuntimeError, ValueError) as e:
        raise BackendError(f"LiteRT cannot profile {path.name}: {e}", hint="build with --no-measure") from e
    operators, stretches = operators_by_stretch(engine)
    try:
        with tempfile.TemporaryDirectory(prefix="deploy-profile-") as scratch:
            events = _events(_fixed(model, engine, path, Path(scratch)), fed, options.threads)
    except DeployError as e:
        logger.info("no times of single operations: %s", e)
        return {}
    times: dict[str, float] = {}
    for index, ms in by_operator(events, operators, stretches).items():
        name = nodes[index] if 0 <= index < len(nodes) else ""
        times[name] = times.get(name, 0.0) + ms
    return times


def by_operator(
    events: Sequence[Event], operators: Sequence[str], stretches: Sequence[Sequence[int]]
) -> dict[int, float]:
    """Milliseconds by place of the operator; under -1 what belongs to none.

    ``operators`` are the names of all, ``stretches`` the places of those that XNNPACK took, in order.
    """
    times: dict[int, float] = {}
    groups: list[list[Event]] = []
    for event in events:
        if not event.delegate:
            times[event.index] = times.get(event.index, 0.0) + event.ms
        elif event.index == 0 or not groups:
            groups.append([event])
        else:
            groups[-1].append(event)
    known = len(groups) == len(stretches)
    for number, group in enumerate(groups):
        places = stretches[number] if known else ()
        kernels = [event.name.partition(" (")[0] for event in group]
        for event, place in zip(group, beside(kernels, [operators[i] for i in places]), strict=True):
            index = places[place] if place >= 0 else -1
            times[index] = times.get(index, 0.0) + event.ms
    return times


def beside(kernels: Sequence[str], operators: Sequence[str]) -> list[int]:
    """For each kernel the place of the operator that it computes or helps to compute; -1 where there is none.

    Kernels and operators are laid side by side in their order so that the most kinds fit. What is left over
    helps the operator before it, a change of type the one behind it.

    >>> beside(["Convert", "Convolution", "Clamp", "Mean", "Static Reshape"], ["CONV_2D", "MEAN"])
    [0, 0, 0, 1, 1]
    """
    if not operators or not kernels:
        return [-1] * len(kernels)
    kinds = [(_FAMILIES.get(name, ""), *_ALSO.get(name, ())) for name in operators]
    best = np.zeros((len(kinds) + 1, len(kernels) + 1), np.int32)
    for i, kind in enumerate(kinds, 1):
        fits = np.array([kernel in kind for kernel in kernels])
        best[i, 1:] = np.maximum(best[i - 1, 1:], best[i - 1, :-1] + fits)
        best[i] = np.maximum.accumulate(best[i])
    found = [-1] * len(kernels)
    i, j = len(kinds), len(kernels)
    while i and j:  # of several ways that in which an operator's own kernel comes last
        if kernels[j - 1] in kinds[i - 1] and best[i, j] == best[i - 1, j - 1] + 1:
            i, j = i - 1, j - 1
            found[j] = i
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i -= 1
    return _filled(found, kernels)


def _filled(found: Sequence[int], kernels: Sequence[str]) -> list[int]:
    behind = [*found]
    for j in reversed(range(len(found) - 1)):
        behind[j] = found[j] if found[j] >= 0 else behind[j + 1]
    filled: list[int] = []
    for j, place in enumerate(found):
        before = filled[-1] if filled else -1
        forward = behind[j] >= 0 and (kernels[j] == "Convert" or before < 0)
        filled.append(place if place >= 0 else behind[j] if forward else before)
    return filled


def _fit(engine: Interpreter, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What is fed in the order of the file's inputs, which get its sizes. Raises ValueError, RuntimeError."""
    ports = engine.get_input_details()
    arrays = [np.ascontiguousarray(array) for array in feeds.values()]
    if len(arrays) != len(ports):
        raise ValueError(f"{len(arrays)} arrays for {len(ports)} inputs")
    for port, array in zip(ports, arrays, strict=True):
        engine.resize_tensor_input(port["index"], list(array.shape))
    engine.allocate_tensors()
    return arrays


def _fixed(model: tfl.ModelT, engine: Interpreter, path: Path, scratch: Path) -> Path:
    """The file with the sizes that it has now: the profiled interpreter takes no free ones."""
    tensors = model.subgraphs[0].tensors
    if all(tensor.shapeSignature is None for tensor in tensors):
        return path
    sizes = {int(d["index"]): d["shape"] for d in (*engine.get_input_details(), *engine.get_output_details())}
    for index, tensor in enumerate(tensors):
        tensor.shapeSignature = None
        tensor.shape = np.asarray(sizes.get(index, tensor.shape), np.int32)
    model.buffers = [b if b.data is None else aligned_buffer(bytes(b.data)) for b in model.buffers]
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    made = scratch / "fixed.tflite"
    made.write_bytes(bytes(builder.Output()))
    return made


def _events(path: Path, fed: Sequence[np.ndarray], threads: int) -> list[Event]:
    """What one run is made of, each kernel with its time. Raises DeployError where that cannot be had."""
    size = path.stat().st_size + sum(array.nbytes for array in fed)
    child = Child(MODULE, path.name, "LiteRT")
    library = Path(str(schema().__file__)).with_name("libLiteRt.so")
    said = {"path": str(path.resolve()), "library": str(library), "threads": threads}
    try:
        arrays = {str(i): array for i, array in enumerate(fed)}
        allowed = Allowance(_MEMORY + _PER_BYTE * size, _SECONDS * threads, _SECONDS)
        answer = child.ask(Message(said, arrays), allowed)
    finally:
        child.close()
    return [Event.from_message(entry) for entry in _listed(answer.said["events"])]


def _listed(found: object) -> list[object]:
    assert isinstance(found, list)
    return found
