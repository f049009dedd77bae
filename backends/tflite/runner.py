"""A .tflite file opened in LiteRT's interpreter, on the CPU of this machine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from backends.tflite.layout import restored, unflattened
from backends.tflite.micro.bare import bare
from backends.tflite.micro.interpreter import MicroInterpreter
from backends.tflite.micro.sdk import runtime
from backends.tflite.micro.sdk import version as micro_version
from backends.tflite.sdk import interpreter, quiet, version
from backends.tflite.write import flattened, notes_in, opened, orders
from deploy.adapter.feeds import Feeding
from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError
from deploy.spec.artifact import Options
from deploy.spec.tensors import TensorSpec

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as tfl
    from ai_edge_litert.interpreter import Interpreter

_Scale = tuple[np.float64, np.float64]


class TFLiteOptions(Options):
    """``delegate`` runs what it can of the graph: XNNPACK, or none for LiteRT's own kernels.

    ``micro``: TensorFlow Lite Micro computes, or LiteRT's reference kernels where it is not installed.
    ``integer_outputs``: the file was written with outputs as integers where they are computed so.
    """

    delegate: Literal["xnnpack", "none"] = "xnnpack"
    micro: bool = False
    integer_outputs: bool = False


class TFLiteRunner:
    """A file that speaks arrays by name. Implements the Runner protocol."""

    def __init__(
        self,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        values: Mapping[str, str],
        options: TFLiteOptions,
    ) -> None:
        self._path, self._options, self._values = path, options, values
        self.inputs, self.outputs = inputs, outputs
        with opened(path) as file:
            said, graph = notes_in(file), file.Subgraphs(0)
            if graph.InputsLength() != len(inputs) or graph.OutputsLength() != len(outputs):
                raise BackendError(
                    f"{path.name} has other inputs or outputs than were written",
                    hint="the file was exchanged: copy the bundle again",
                )
            self._orders, self._flattened = orders(said), flattened(said)
            self._scales = [_scale(graph.Tensors(graph.Outputs(i))) for i in range(len(outputs))]
            """Of each output, None where it is not quantized."""
        self._feeding = Feeding(inputs)
        self._engines: dict[bool, _Engine] = {}
        self._closed = False
        self.executed_by = _spoken(self._for(inner=False).interpreter, options)

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """The outputs by name, and those of the inner values named in ``want`` that the file has.

        For inner values the file is opened a second time, keeping all tensors.
        """
        if self._closed:
            raise BackendError("the runner is closed", hint="open the artifact again")
        self._feeding.require_fit(feeds)
        engine = self._for(inner=bool(want))
        try:
            engine.feed(feeds)
            engine.interpreter.invoke()
        except (RuntimeError, ValueError) as e:
            raise BackendError(
                f"LiteRT failed while running: {e}", hint="check the shapes fed against `deploy inspect`"
            ) from e
        found = {
            spec.name: _meant(engine.made(place), self._scales[place])
            for place, spec in enumerate(self.outputs)
        }
        for name in want:
            index = self._tensors.numbers.get(self._values.get(name, name))
            if name not in found and index is not None:
                found[name] = self._inner(engine.interpreter, index)
        return found

    def _inner(self, engine: Interpreter | MicroInterpreter, index: int) -> np.ndarray:
        """A tensor in ONNX's order, as floats where it is quantized."""
        array = _meant(np.asarray(engine.get_tensor(index)), self._tensors.scales[index])
        if index in self._flattened:
            array = unflattened(array, *self._flattened[index])
        order = self._orders.get(index)
        return array if order is None else restored(array, order)

    @cached_property
    def _tensors(self) -> _Tensors:
        with opened(self._path) as file:
            return _tensors(file)

    def _for(self, *, inner: bool) -> _Engine:
        if inner not in self._engines:
            try:
                made = open_interpreter(self._options, path=self._path, inner=inner)
            except (RuntimeError, ValueError) as e:
                raise BackendError(
                    f"LiteRT cannot open {self._path.name}: {e}",
                    hint="the file is damaged, or needs a newer LiteRT: copy the bundle again",
                ) from e
            self._engines[inner] = _Engine(made, [spec.name for spec in self.inputs])
        return self._engines[inner]

    def close(self) -> None:
        self._engines.clear()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Tensors:
    """The numbers by name of those that are no constants, and the scales of all by number."""

    numbers: Mapping[str, int]
    scales: Sequence[_Scale | None]


def _tensors(file: tfl.Model) -> _Tensors:
    graph = file.Subgraphs(0)
    tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
    numbers = {
        t.Name().decode(): i for i, t in enumerate(tensors) if not file.Buffers(t.Buffer()).DataLength()
    }
    return _Tensors(numbers, [_scale(tensor) for tensor in tensors])


def _scale(tensor: tfl.Tensor) -> _Scale | None:
    """Scale and zero point of a quantized tensor: the single pair of an activation."""
    found = tensor.Quantization()
    if found is None or not found.ScaleLength():
        return None
    return np.float64(found.Scale(0)), np.float64(found.ZeroPoint(0))


def _meant(array: np.ndarray, params: _Scale | None) -> np.ndarray:
    """The numbers that a quantized tensor's integers stand for; any other tensor as it is."""
    if params is None:
        return array
    scale, zero = params
    return ((array.astype(np.float64) - zero) * scale).astype(np.float32)


class _Engine:
    """The runtime over a file, and what of it need not be asked again for every run."""

    def __init__(self, interpreter: Interpreter | MicroInterpreter, names: Sequence[str]) -> None:
        self.interpreter = interpreter
        ports = interpreter.get_input_details()
        self._inputs = [(name, port["index"]) for name, port in zip(names, ports, strict=True)]
        self._shapes = [tuple(map(int, port["shape"])) for port in ports]
        self.outputs = [port["index"] for port in interpreter.get_output_details()]
        """Where they stand among the tensors."""

    def feed(self, feeds: Arrays) -> None:
        changed = False
        for place, (name, index) in enumerate(self._inputs):
            shape = feeds[name].shape
            if shape != self._shapes[place]:
                self.interpreter.resize_tensor_input(index, list(shape))
                self._shapes[place] = shape
                changed = True
        if changed:
            self.interpreter.allocate_tensors()
        for name, index in self._inputs:
            self.interpreter.set_tensor(index, of_own_type(feeds[name]))

    def made(self, place: int) -> np.ndarray:
        """An output as it is stored."""
        try:
            return self.interpreter.get_tensor(self.outputs[place])
        except ValueError:  # what is empty cannot be asked for
            if isinstance(self.interpreter, MicroInterpreter):
                raise
            port = self.interpreter.get_output_details()[place]
            if 0 not in port["shape"]:
                raise
            return np.zeros(port["shape"], port["dtype"])


def _spoken(engine: Interpreter | MicroInterpreter, options: TFLiteOptions) -> str:
    if isinstance(engine, MicroInterpreter):
        taken = engine.arena_bytes()
        return f"TensorFlow Lite Micro {micro_version()} on the CPU, in {taken:,} bytes of arena"
    if options.micro:
        return f"LiteRT {version()}'s reference kernels in place of TensorFlow Lite Micro"
    return f"LiteRT {version()} on the CPU"


def of_own_type(array: np.ndarray) -> np.ndarray:
    """The same array of the type that LiteRT knows: NumPy has two integers of 64 bits, and it takes one."""
    own = _own(array.dtype)
    return array if array.dtype.num == own.num else array.view(own)


@cache
def _own(dtype: np.dtype) -> np.dtype:
    return np.dtype(dtype.str)


def open_interpreter(
    options: TFLiteOptions,
    *,
    path: Path | None = None,
    content: bytes | None = None,
    inner: bool = False,
    ready: bool = True,
) -> Interpreter | MicroInterpreter:
    """The runtime over a file or its bytes; with ``inner`` it keeps the tensors on the way.

    Without ``ready`` whoever asks sets the sizes of the inputs first, and allocates.

    Raises RuntimeError or ValueError where it refuses the file.
    """
    if options.micro and (micro := runtime()) is not None:
        content = path.read_bytes() if content is None and path is not None else content
        assert content is not None
        return MicroInterpreter(micro, bare(content), inner=inner)
    kinds = interpreter().OpResolverType
    if options.micro:
        kind = kinds.BUILTIN_REF
    else:
        kind = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if options.delegate == "none" else kinds.AUTO
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore", UserWarning)  # keeping all tensors takes memory: it is wanted
        made: Interpreter = interpreter().Interpreter(
            model_path=None if path is None else str(path),
            model_content=content,
            num_threads=options.threads,
            experimental_op_resolver_type=kind,
            experimental_preserve_all_tensors=inner,
        )
        if ready:
            made.allocate_tensors()
    return made
