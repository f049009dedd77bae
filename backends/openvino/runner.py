"""An IR file opened in OpenVINO: on the device that it is for, or on the CPU in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from backends.openvino.sdk import core, reason, sdk, version
from deploy.adapter.feeds import Feeding
from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError
from deploy.spec.artifact import Options
from deploy.spec.tensors import TensorSpec

if TYPE_CHECKING:
    import openvino


DTYPES = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "boolean": "bool",
    **{f"{kind[0]}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
"""OpenVINO's types of which there are arrays, with NumPy's names."""

_Shapes = tuple[tuple[int, ...], ...]
_SHAPES_KEPT = 4
"""For so many combinations of shapes a model is compiled; further ones share one that takes any."""
_COPIED = 1 << 15
"""Bytes of an input up to which copying it costs less than telling OpenVINO where it lies."""


class OpenVinoOptions(Options):
    """``inference_precision`` is what floats are computed in: by itself the CPU takes bf16 where it can.

    ``hint`` prefers the time of one inference or the number of them; ``streams`` run side by side.
    ``pinned``: threads are bound to cores. ``dynamic_group``: by so many numbers of a row products by integer
    weights round what they read; 0 none.
    """

    device: Literal["CPU", "NPU"] = "CPU"
    hint: Literal["latency", "throughput"] = "latency"
    inference_precision: Literal["f32", "bf16"] = "f32"
    streams: int = 1
    dynamic_group: int = 0
    pinned: bool = False


def settings(options: OpenVinoOptions, device: str) -> dict[str, str | int]:
    """OpenVINO's own configuration keys. What would depart from the plan or the machine's state is off."""
    if device != "CPU":
        return {"PERFORMANCE_HINT": options.hint.upper()}
    return {
        "PERFORMANCE_HINT": options.hint.upper(),
        "INFERENCE_PRECISION_HINT": options.inference_precision,
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": options.streams,
        "ENABLE_CPU_PINNING": "YES" if options.pinned else "NO",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": options.dynamic_group,
    }


def read_file(path: Path) -> openvino.Model:
    """The model in an IR file. Raises BackendError where it is damaged or its weights are missing."""
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise BackendError(f"{weights}: the weights are missing", hint="copy the whole bundle again")
    try:
        return core().read_model(path, weights)
    except Exception as e:
        raise BackendError(
            f"OpenVINO cannot open {path.name}: {reason(e)}",
            hint="the file is damaged, or written by a newer OpenVINO: copy the bundle again",
        ) from e


class OpenVinoRunner:
    """A compiled IR that speaks arrays by name. Implements the Runner protocol."""

    def __init__(
        self,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: OpenVinoOptions,
    ) -> None:
        self._path, self._options = path, options
        available = core().available_devices
        self._device = options.device if options.device in available else "CPU"
        self.executed_by = f"OpenVINO {version()} on the {self._device}"
        if self._device != options.device:
            self.executed_by += f", in place of the {options.device}"
        self.inputs, self.outputs = inputs, outputs
        self._compiled: dict[tuple[frozenset[str], _Shapes], _Compiled] = {}
        self._feeding = Feeding(inputs)
        self._free = any(isinstance(size, str) for spec in inputs for size in spec.shape)
        self._last: _Compiled | None = None
        """What the last feeds went into, unless it was for inner values."""
        self._closed = False
        _require_ports(read_file(path), inputs, outputs, path)

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """The outputs by name, and those of the inner values named in ``want`` that the file has.

        For inner values, and for each of the first few combinations of shapes, the file is compiled anew and
        that is kept: with all sizes known, OpenVINO is up to a fifth faster.
        """
        if self._closed:
            raise BackendError("the runner is closed", hint="open the artifact again")
        if not want and self._last is not None and self._feeding.like_the_last(feeds):
            return self._last.run(feeds)
        self._feeding.require_fit(feeds)
        shapes = tuple(feeds[spec.name].shape for spec in self.inputs) if self._free else ()
        compiled = self._for(frozenset(want) - {spec.name for spec in self.outputs}, shapes)
        self._last = None if want else compiled
        return compiled.run(feeds)

    def _for(self, inner: frozenset[str], shapes: _Shapes) -> _Compiled:
        known = sum(key[0] == inner for key in self._compiled)
        if (inner, shapes) not in self._compiled and known >= _SHAPES_KEPT:
            shapes = ()
        if (inner, shapes) not in self._compiled:
            self._compiled[inner, shapes] = self._compile(inner, shapes)
        return self._compiled[inner, shapes]

    def _compile(self, inner: frozenset[str], shapes: _Shapes) -> _Compiled:
        """For feeds of these ``shapes``, of any without them."""
        model = read_file(self._path)
        present = {name for op in model.get_ops() for out in op.outputs() for name in out.get_names()}
        wanted = sorted(inner & present)
        try:
            if wanted:
                model.add_outputs(wanted)
            if shapes:
                names = [spec.name for spec in self.inputs]
                model.reshape({name: list(shape) for name, shape in zip(names, shapes, strict=True)})
            inputs = _places(model.inputs, [spec.name for spec in self.inputs])
            outputs = _places(model.outputs, [spec.name for spec in self.outputs] + wanted)
            compiled = core().compile_model(model, self._device, settings(self._options, self._device))
        except Exception as e:
            raise BackendError(
                f"OpenVINO cannot compile {self._path.name}: {reason(e)}",
                hint="check the shapes fed against `deploy inspect`, or build with this version of OpenVINO",
            ) from e
        return _Compiled(compiled, inputs, outputs)

    def close(self) -> None:
        self._compiled.clear()
        self._last = None
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Compiled:
    """One compiled model with its request, and where each name stands in it.

    Small inputs are copied into memory of its own, and outputs are copied out of where it makes them: what is
    looked up again for every run costs more than a small network's layer.
    """

    def __init__(
        self, compiled: openvino.CompiledModel, inputs: Mapping[str, int], outputs: Mapping[str, int]
    ) -> None:
        self.request = compiled.create_infer_request()
        self._copied: list[tuple[str, np.ndarray]] = []
        self._shared: list[tuple[str, int]] = []
        for name, index in inputs.items():
            if not compiled.input(index).get_partial_shape().is_dynamic:
                tensor = self.request.get_input_tensor(index)
                if tensor.byte_size <= _COPIED:
                    self._copied.append((name, tensor.data))
                    continue
            self._shared.append((name, index))
        self._outputs = outputs
        static = not any(port.get_partial_shape().is_dynamic for port in compiled.outputs)
        self._made = (
            {name: self.request.get_output_tensor(index).data for name, index in outputs.items()}
            if static
            else None
        )
        """Where the outputs are made, if that stays the same."""

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        try:
            for name, place in self._copied:
                np.copyto(place, feeds[name])
            for name, index in self._shared:
                array = np.asarray(feeds[name], order="C")
                array = array if array.flags.writeable else array.copy()
                self.request.set_input_tensor(index, sdk().Tensor(array, shared_memory=True))
            self.request.infer(share_outputs=True)
            if self._made is not None:
                return {name: place.copy() for name, place in self._made.items()}
            return {
                name: self.request.get_output_tensor(index).data.copy()
                for name, index in self._outputs.items()
            }
        except Exception as e:
            raise BackendError(
                f"OpenVINO failed while running: {reason(e)}",
                hint="check the shapes fed against `deploy inspect`",
            ) from e


def _places(ports: Sequence[openvino.Output], names: Sequence[str]) -> dict[str, int]:
    """Where each name stands. Compiled, a model keeps the order, while a name may move to another value."""
    found = {name: index for index, port in enumerate(ports) for name in port.get_names()}
    return {name: found[name] for name in names}


def _require_ports(
    model: openvino.Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], path: Path
) -> None:
    """Raise BackendError where the file has other inputs or outputs than the artifact says."""
    for what, specs, ports in (("input", inputs, model.inputs), ("output", outputs, model.outputs)):
        present = {name: port for port in ports for name in port.get_names()}
        for spec in specs:
            port = present.get(spec.name)
            if port is None or _dtype(port) != spec.dtype:
                raise BackendError(
                    f"{path.name} has no {what} {spec}", hint="the file was exchanged: copy the bundle again"
                )
        if len(specs) < len(ports):
            raise BackendError(
                f"{path.name} has {len(ports)} {what}s, {len(specs)} were written",
                hint="the file was exchanged: copy the bundle again",
            )


def _dtype(port: openvino.Output) -> str:
    name = str(port.get_element_type().get_type_name())
    return DTYPES.get(name, name)
