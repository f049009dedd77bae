"""The child process in which LiteRT's profiler runs, through the functions in C that its library exports.

Their declarations are those of LiteRT 2.3 (litert/c: litert_environment.h, litert_model.h, litert_options.h,
litert_compiled_model.h, litert_tensor_buffer.h, litert_profiler.h). A library that lacks one is refused.
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    gc.disable()  # a third of what a child takes is looking for garbage among what it imports

import ctypes as c
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from deploy.adapter.child import serve
from deploy.adapter.message import Message
from deploy.errors import BackendError

MODULE = "backends.tflite.profile_child"
"""What the child runs."""

_WARM_UP, _RUNS, _SECONDS = 5, 30, 2.0
_CPU, _WRITE = 1, 1
_OPERATOR, _KERNEL = 2, 8
"""Kinds of events: an operator that LiteRT computes, a kernel of its delegate."""
_TYPE_BYTES = 256
"""More than a LiteRtRankedTensorType takes."""


@dataclass(frozen=True)
class Event:
    """A kernel's time in one run; ``index`` is the operator's place, of a delegate's kernel that in its
    stretch."""

    name: str
    delegate: bool
    index: int
    ms: float

    @classmethod
    def from_message(cls, entry: object) -> Self:
        """From what came of the child: the fields in a list."""
        assert isinstance(entry, list)
        name, delegate, index, ms = entry
        return cls(str(name), bool(delegate), int(index), float(ms))


class _Recorded(c.Structure):
    """ProfiledEventData. Times are in microseconds, those of a delegate's kernels rounded down."""

    _fields_ = (
        ("tag", c.c_char_p),
        ("kind", c.c_int),
        ("start", c.c_uint64),
        ("elapsed", c.c_uint64),
        ("memory", c.c_uint64 * 6),
        ("index", c.c_uint64),
        ("more", c.c_uint64),
        ("source", c.c_int),
    )


class _Library:
    """Calls by name. Raises BackendError where the library lacks a function, or one reports an error."""

    def __init__(self, path: Path) -> None:
        try:
            self._library = c.CDLL(str(path))
        except OSError as e:
            raise BackendError(f"LiteRT's library cannot be loaded: {e}", hint="reinstall LiteRT") from e
        # Freed by the library: plain functions that do nothing and stay alive.
        self._keep = c.CFUNCTYPE(None, c.c_void_p)(lambda _: None)
        self._texts: list[c.Array[c.c_char]] = []

    def call(self, name: str, *arguments: object) -> None:
        function = getattr(self._library, f"LiteRt{name}", None)
        if function is None:
            raise BackendError(f"LiteRT's library has no {name}", hint="another release of LiteRT has it")
        status = function(*arguments)
        if status:
            raise BackendError(f"LiteRT's {name} fails with status {status}", hint="build with --no-measure")

    def made(self, name: str, *arguments: object) -> c.c_void_p:
        """The handle that a function gives as its last argument."""
        handle = c.c_void_p()
        self.call(name, *arguments, c.byref(handle))
        return handle

    def add_options(self, options: c.c_void_p, identifier: bytes, text: bytes) -> None:
        payload = c.create_string_buffer(text)
        self._texts.append(payload)
        opaque = self.made("CreateOpaqueOptions", c.c_char_p(identifier), payload, self._keep)
        self.call("AddOpaqueOptions", options, opaque)


def profile(library: Path, path: Path, fed: Sequence[np.ndarray], threads: int) -> list[Event]:
    """One run's kernels in their order, each with the mean of the middle half of 30 runs (of a slow network
    fewer).

    Raises BackendError where the library has no profiler, or runs differ from one another.
    """
    lib = _Library(library)
    environment = lib.made("CreateEnvironment", 0, None)
    model = lib.made("CreateModelFromFile", environment, str(path).encode())
    options = lib.made("CreateOptions")
    lib.call("SetOptionsHardwareAccelerators", options, _CPU)
    lib.add_options(options, b"runtime_options_string", b"enable_profiling = true\n")
    lib.add_options(options, b"xnnpack", f"num_threads = {threads}\n".encode())
    compiled = lib.made("CreateCompiledModel", environment, model, options)
    graph = lib.made("GetModelSubgraph", model, c.c_size_t(0))
    inputs = _buffers(lib, environment, compiled, graph, "Input")
    outputs = _buffers(lib, environment, compiled, graph, "Output")
    for buffer, array in zip(inputs, fed, strict=True):
        _write(lib, c.c_void_p(buffer), array)

    def run() -> None:
        sizes = c.c_size_t(len(inputs)), c.c_size_t(len(outputs))
        lib.call("RunCompiledModel", compiled, c.c_size_t(0), sizes[0], inputs, sizes[1], outputs)

    for _ in range(_WARM_UP):
        run()
    profiler = lib.made("CompiledModelGetProfiler", compiled)
    runs: list[list[Event]] = []
    begin = time.perf_counter()
    while len(runs) < _RUNS and (len(runs) < 3 or time.perf_counter() - begin < _SECONDS):
        lib.call("ResetProfiler", profiler)
        lib.call("StartProfiler", profiler)
        run()
        lib.call("StopProfiler", profiler)
        runs.append(_recorded(lib, profiler))
    first = runs[0]
    if any([(e.name, e.index) for e in events] != [(e.name, e.index) for e in first] for events in runs):
        raise BackendError(
            "LiteRT's profiler tells of other kernels each run", hint="build with --no-measure"
        )
    times = np.sort([[event.ms for event in events] for events in runs], axis=0)
    means = times[len(runs) // 4 : len(runs) - len(runs) // 4].mean(axis=0)  # without those interrupted
    return [Event(e.name, e.delegate, e.index, float(ms)) for e, ms in zip(first, means, strict=True)]


def _buffers(
    lib: _Library, environment: c.c_void_p, compiled: c.c_void_p, graph: c.c_void_p, kind: str
) -> c.Array[c.c_void_p]:
    """Memory for all inputs or outputs."""
    count = c.c_size_t()
    lib.call(f"GetNumSubgraph{kind}s", graph, c.byref(count))
    made = (c.c_void_p * count.value)()
    for index in range(count.value):
        place = c.c_size_t(index)
        tensor = lib.made(f"GetSubgraph{kind}", graph, place)
        ranked = (c.c_char * _TYPE_BYTES)()
        lib.call("GetRankedTensorType", tensor, c.byref(ranked))
        needs = lib.made(f"GetCompiledModel{kind}BufferRequirements", compiled, c.c_size_t(0), place)
        made[index] = lib.made(
            "CreateManagedTensorBufferFromRequirements", environment, c.byref(ranked), needs
        ).value
    return made


def _write(lib: _Library, buffer: c.c_void_p, array: np.ndarray) -> None:
    size = c.c_size_t()
    lib.call("GetTensorBufferPackedSize", buffer, c.byref(size))
    if size.value != array.nbytes:
        raise BackendError(
            f"LiteRT wants {size.value} bytes, {array.nbytes} are fed", hint="check the shapes"
        )
    place = c.c_void_p()
    lib.call("LockTensorBuffer", buffer, c.byref(place), _WRITE)
    assert place.value is not None
    content = np.ascontiguousarray(array)
    c.memmove(place.value, content.ctypes.data, content.nbytes)
    lib.call("UnlockTensorBuffer", buffer)


def _recorded(lib: _Library, profiler: c.c_void_p) -> list[Event]:
    """The kernels of one run in their order."""
    count = c.c_int()
    lib.call("GetNumProfilerEvents", profiler, c.byref(count))
    if not count.value:
        raise BackendError("LiteRT's profiler says nothing", hint="build with --no-measure")
    found = (_Recorded * count.value)()
    lib.call("GetProfilerEvents", profiler, count, found)
    events = []
    for entry in found:
        if entry.kind not in (_OPERATOR, _KERNEL):
            continue
        # Of what is rounded down to microseconds half a one more is the better guess.
        us = entry.elapsed + (0.5 if entry.kind == _KERNEL else 0.0)
        events.append(Event(entry.tag.decode(), entry.kind == _KERNEL, entry.index, us / 1000))
    return events


def _answer(question: Message) -> Message:
    said, arrays = question.said, question.arrays
    fed = [arrays[str(i)] for i in range(len(arrays))]
    threads = said["threads"]
    assert isinstance(threads, int)
    events = profile(Path(str(said["library"])), Path(str(said["path"])), fed, threads)
    return Message({"events": [astuple(event) for event in events]})


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    serve(_answer)
