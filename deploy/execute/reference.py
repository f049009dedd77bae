"""The reference executor: ONNX Runtime over a graph or a file, optimised or taken literally.

Taken literally (no graph optimisation) every node computes what ONNX says, in order; that is the meaning
against which artifacts are verified. Optimised it is the float baseline that an artifact has to beat.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import onnx_ir as ir

from deploy.adapter.feeds import require_fit
from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError
from deploy.frontend.onnx_file import release, to_bytes, to_parts
from deploy.graph.edit import weight_bytes
from deploy.spec.tensors import TensorSpec

if TYPE_CHECKING:
    import onnxruntime

_ONE_MESSAGE = 64 * 2**20
"""Bytes of weights from which they are handed over beside the message, which would hold them once more."""

_BROKEN = ("QDQPropagationTransformer",)
"""ONNX Runtime 1.31 (its pull request 28144) makes an invalid graph of int8 pairs at operator set 21 where it
moves them past a Slice or Reshape. Artifacts with int8 activations are written at operator set 20 instead."""

_ALWAYS = {
    "optimization.disable_specified_optimizers": "WeightBiasQuantization",
    "session.use_device_allocator_for_initializers": "1",
}
"""ONNX Runtime would turn float weights and biases between quantized values into integers of its own choice:
the blocks that the plan leaves float would not be. And it would keep weights in the outputs' arena, which
outlives the session for as long as one output is kept."""

YIELDING = {"session.intra_op.allow_spinning": "0"}
"""Threads that wait sleep: networks of small operations take half the processor time so, on a busy machine
half of all time."""

_PLACE = re.compile(r"/onnxruntime_src/\S+:\d+ \S.*?\)(?: const)?(?: \[with [^\]]*\])? ")

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({t})": t for t in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")},
}


class Session:
    """An ONNX Runtime session that speaks arrays by name. Implements the Runner protocol."""

    def __init__(
        self,
        model: bytes | Path,
        *,
        optimised: bool = True,
        threads: int = 1,
        settings: Mapping[str, str] | None = None,
        disabled: Sequence[str] = (),
        exposed: int = 0,
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        import onnxruntime as ort

        options = session_options(optimised=optimised, threads=threads, settings=settings)
        given = model if isinstance(model, bytes) else str(model)
        try:
            if weights:
                values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
                options.add_external_initializers(list(weights), values)
            self._session: onnxruntime.InferenceSession | None = ort.InferenceSession(
                given, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled)
            )
        except Exception as e:
            raise BackendError(
                f"ONNX Runtime cannot open the model: {_first_line(e)}",
                hint="run `deploy inspect` on the model; if it is valid, report this graph",
            ) from e
        self.executed_by = f"ONNX Runtime {ort.__version__}"
        self._path = model if isinstance(model, Path) else None
        self._optimised, self._threads, self._settings = optimised, threads, settings
        self.inputs = tuple(_spec(a) for a in self._session.get_inputs())
        outputs = [_spec(a) for a in self._session.get_outputs()]
        self.outputs = tuple(outputs[: len(outputs) - exposed])
        self._names = [o.name for o in self.outputs]
        self._inner = {o.name for o in outputs[len(outputs) - exposed :]}

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """The outputs by name, and the inner values named in ``want``.

        Inner values must have been exposed when a graph was opened; a file is opened once more for them.
        """
        if self._session is None:
            raise BackendError("the runner is closed", hint="open the artifact again")
        names = self._names
        if want:
            inner = [name for name in want if name not in self._names]
            if self._path is not None and not self._inner.issuperset(inner):
                return self._run_exposed(self._path, feeds, inner)
            names = names + inner
        try:
            results = self._session.run(names, feeds if isinstance(feeds, dict) else dict(feeds))
        except Exception as e:
            require_fit(self.inputs, feeds)
            raise BackendError(
                f"ONNX Runtime failed while running: {_first_line(e)}",
                hint="check the shapes fed against `deploy inspect`",
            ) from e
        return dict(zip(names, results, strict=True))

    def _run_exposed(self, path: Path, feeds: Arrays, inner: Sequence[str]) -> dict[str, np.ndarray]:
        """Run the file with those of ``inner`` that it has as additional outputs."""
        model = ir.load(path)
        present = {out.name for node in model.graph for out in node.outputs}
        known = [name for name in inner if name in present]
        with open_graph(
            model, optimised=self._optimised, threads=self._threads, expose=known, settings=self._settings
        ) as session:
            return session.run(feeds, known)

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def session_options(
    *, optimised: bool = True, threads: int = 1, settings: Mapping[str, str] | None = None
) -> onnxruntime.SessionOptions:
    """What every session of ours is opened with; ``settings`` are ONNX Runtime's configuration keys."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # An arena would keep the memory of all values at once, and for as long as any output lives.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        # Nor does it pack a second copy of the weights: speed is not what it is for.
        options.add_session_config_entry("session.disable_prepacking", "1")
    for key, value in {**_ALWAYS, **(settings or {})}.items():
        options.add_session_config_entry(key, value)
    return options


def open_graph(
    model: ir.Model,
    *,
    optimised: bool = True,
    threads: int = 1,
    expose: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> Session:
    """A session over a graph. Inner values named in ``expose`` can then be asked for in ``run``."""
    with _showing(model, expose) as extra:
        if weight_bytes(model) < _ONE_MESSAGE:
            content, weights = to_bytes(model, inner=optimised), None
        else:
            content, weights = to_parts(model)
    session = Session(
        content,
        optimised=optimised,
        threads=threads,
        settings=settings,
        disabled=_BROKEN,
        exposed=extra,
        weights=weights,
    )
    release(model)  # the session has a copy
    return session


@contextmanager
def _showing(model: ir.Model, names: Sequence[str]) -> Iterator[int]:
    """The graph returns the inner values ``names`` too, as long as this lasts: so many more."""
    outputs = model.graph.outputs
    before = list(outputs)
    for value in _hidden(model, names):
        outputs.append(value)
    try:
        yield len(outputs) - len(before)
    finally:
        outputs[:] = before


def _hidden(model: ir.Model, names: Sequence[str]) -> list[ir.Value]:
    """Those of the values ``names`` that are no outputs, each once. Raises KeyError for one unknown."""
    if not names:
        return []
    values = {out.name: out for node in model.graph for out in node.outputs}
    values |= {v.name: v for v in model.graph.inputs}
    present = {v.name for v in model.graph.outputs}
    return [values[name] for name in dict.fromkeys(names) if name not in present]


def exposed(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of the graph that also returns the inner values ``names``. Raises KeyError for one unknown."""
    copy = model.clone()
    copy.graph.outputs.extend(_hidden(copy, names))
    return copy


def _spec(argument: onnxruntime.NodeArg) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else (d or f"d{i}") for i, d in enumerate(argument.shape))
    return TensorSpec(
        name=argument.name, dtype=_DTYPES.get(argument.type, argument.type), shape=shape, layout="any"
    )


def _first_line(error: Exception) -> str:
    """What is said, without the place in ONNX Runtime's own source and the function's signature there."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _PLACE.sub("", line)[:300]
