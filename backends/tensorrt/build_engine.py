#!/usr/bin/env python3
# ruff: noqa: T201
"""Builds the TensorRT engine from model.onnx, on the device that will run it, and checks it there.

    python3 build_engine.py --check ../selftest.npz --time 200

Needs Python 3.8, numpy and TensorRT's Python bindings (8.5 or later; JetPack brings them); CUDA is reached
through libcudart alone. Types are TensorRT's to keep, not to choose: from TensorRT 10 the network is strongly
typed; TensorRT 8 has no such mode in its bindings and gets the permission flags FP16 and INT8 instead.

A timing cache makes builds repeatable: `--timing-cache FILE` reads it if it is there, and writes what was
timed and, beside it, FILE.sha256. With `--locked` the cache must be the pinned one, and a build that would
have to time anything new is refused.

Exit codes: 0 good, 2 usage, 3 model not readable, 5 operations not supported, 6 TensorRT or CUDA missing or
too old, 7 TensorRT failed, 8 outputs differ from the expected ones, 10 CUDA failed.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import sys
from pathlib import Path
from typing import Any, Dict, Sequence  # noqa: UP035  JetPack 5 has Python 3.8

import numpy as np

USAGE, MODEL, UNSUPPORTED, TOOLCHAIN, BACKEND, MISMATCH, DEVICE = 2, 3, 5, 6, 7, 8, 10
HERE = Path(__file__).resolve().parent
WARM_UP_RUNS = 20
DEFAULT_TOLERANCE = 0.05

Arrays = Dict[str, np.ndarray]  # noqa: UP006
Trt = Any  # the bindings carry no types


class EngineError(Exception):
    """Ends the script with a message and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        run(arguments)
    except EngineError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.code
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build and check the TensorRT engine of model.onnx.")
    parser.add_argument("--model", type=Path, default=HERE / "model.onnx", help="default: beside this script")
    parser.add_argument("--out", type=Path, default=HERE / "model.engine", help="the engine to write")
    parser.add_argument(
        "--workspace", type=int, metavar="MIB", help="scratch memory for tactics (default: all)"
    )
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="reuse and extend measured tactics")
    parser.add_argument(
        "--locked", action="store_true", help="refuse a timing cache that is not the pinned one"
    )
    parser.add_argument(
        "--max-batch", type=int, default=1, metavar="N", help="largest batch where it is free"
    )
    parser.add_argument("--no-fp16", action="store_true", help="TensorRT 8: do not allow float16 kernels")
    parser.add_argument("--check", type=Path, metavar="NPZ", help="compare with the self-test's outputs")
    parser.add_argument(
        "--tolerance", type=float, help=f"relative error allowed (default {DEFAULT_TOLERANCE})"
    )
    parser.add_argument("--time", type=int, metavar="RUNS", help="measure the latency of one inference")
    arguments = parser.parse_args(argv)
    if arguments.locked and arguments.timing_cache is None:
        parser.error("--locked needs --timing-cache")
    if arguments.max_batch < 1 or (arguments.time is not None and arguments.time < 1):
        parser.error("--max-batch and --time take numbers from 1")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    trt = import_tensorrt()
    selftest = load_selftest(arguments.check) if arguments.check else {}
    logger = trt.Logger(trt.Logger.WARNING)
    print(f"TensorRT {trt.__version__}: building {arguments.model.name}", flush=True)
    plan = build(trt, logger, arguments, selftest)
    write(arguments.out, plan)
    print(f"wrote {arguments.out} ({arguments.out.stat().st_size / 2**20:.2f} MiB)")
    if not selftest and not arguments.time:
        return
    engine = Engine(trt, logger, plan)
    if selftest:
        check(engine, selftest, arguments)
    if arguments.time:
        measure(engine, selftest, arguments.time)


def import_tensorrt() -> Trt:
    try:
        import tensorrt as trt
    except (ImportError, OSError) as e:
        raise EngineError(
            TOOLCHAIN,
            f"TensorRT's Python bindings cannot be loaded: {e}\n"
            "On a Jetson: sudo apt install python3-libnvinfer. Elsewhere: pip install tensorrt",
        ) from e
    major, minor = version(trt)
    if (major, minor) < (8, 5):
        raise EngineError(
            TOOLCHAIN, f"TensorRT {trt.__version__} is too old: 8.5 (JetPack 5.1) or later is needed"
        )
    return trt


def version(trt: Trt) -> tuple[int, int]:
    major, minor = str(trt.__version__).split(".")[:2]
    return int(major), int(minor)


# ----------------------------------------------------------------------------------------------- the build


def build(trt: Trt, logger: Trt, arguments: argparse.Namespace, selftest: Arrays) -> bytes:
    builder = trt.Builder(logger)
    kinds = trt.NetworkDefinitionCreationFlag
    strongly_typed = hasattr(kinds, "STRONGLY_TYPED")
    # TensorRT 8 must be asked for explicit batches; 10 ignores the flag and 11 no longer has it.
    flag = kinds.STRONGLY_TYPED if strongly_typed else kinds.EXPLICIT_BATCH
    network = builder.create_network(1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    parse(parser, arguments.model, strongly_typed)
    config = builder.create_builder_config()
    if not strongly_typed:
        allow_types(trt, network, config, fp16=not arguments.no_fp16)
    if arguments.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, arguments.workspace << 20)
    add_profile(builder, network, config, arguments.max_batch, selftest)
    before = attach_timing_cache(trt, config, arguments)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        hint = (
            " (with --locked: perhaps something is missing in the timing cache)" if arguments.locked else ""
        )
        raise EngineError(BACKEND, f"TensorRT could not build the engine; its messages above say why{hint}")
    keep_timing_cache(config, arguments, before)
    return bytes(plan)


def parse(parser: Trt, model: Path, strongly_typed: bool) -> None:
    if not model.is_file():
        raise EngineError(MODEL, f"there is no {model}")
    if parser.parse_from_file(str(model)):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    lines = [f"  {describe(e)}" for e in errors] or ["  (TensorRT gave no reason)"]
    if not strongly_typed and any("scale" in str(e.desc()).lower() for e in errors):
        lines.append("TensorRT 8 reads no float16 scales: build the model for a profile whose opset is 17,")
        lines.append("or update JetPack.")
    raise EngineError(UNSUPPORTED, f"TensorRT cannot read {model.name}:\n" + "\n".join(lines))


def describe(error: Trt) -> str:
    """One parser error, with the node's name and operation from TensorRT 10 on, its index before."""
    where = f"node {error.node()}"
    if hasattr(error, "node_name") and error.node_name():
        where = f"{error.node_operator()} '{error.node_name()}'"
    return f"{where}: {error.desc()} (code {error.code()})"


def allow_types(trt: Trt, network: Trt, config: Trt, fp16: bool) -> None:
    """TensorRT 8: types are permissions. INT8 only where there is Q/DQ, else it asks for a calibrator."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    pairs = [layer for layer in layers if layer.type in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE)]
    half = [layer.name for layer in pairs if layer.get_input(1).dtype == trt.DataType.HALF]
    if half:
        # The TensorRT 8 parser takes the bytes of such a scale for float32.
        raise EngineError(
            TOOLCHAIN,
            f"TensorRT {trt.__version__} misreads float16 scales, and {half[0]} has one: build the model for "
            "a profile whose opset is 17, or update JetPack",
        )
    if fp16:
        config.set_flag(trt.BuilderFlag.FP16)
    if pairs:
        config.set_flag(trt.BuilderFlag.INT8)


def add_profile(builder: Trt, network: Trt, config: Trt, max_batch: int, selftest: Arrays) -> None:
    """Sizes for free dimensions: the first 1 to ``max_batch``, others as the self-test has them."""
    profile = builder.create_optimization_profile()
    free = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = [int(d) for d in tensor.shape]
        if -1 not in shape:
            continue
        free = True
        example = selftest.get(f"input/{tensor.name}")
        smallest = list(shape)
        for axis, size in enumerate(shape):
            if size != -1:
                continue
            if axis and example is None:
                message = (
                    f"dimension {axis} of input '{tensor.name}' is free: fix it when building the bundle,"
                )
                raise EngineError(USAGE, f"{message} or give --check, whose inputs have a size")
            smallest[axis] = int(example.shape[axis]) if axis and example is not None else 1
        largest = [max_batch, *smallest[1:]] if shape[0] == -1 else smallest
        profile.set_shape(tensor.name, tuple(smallest), tuple(smallest), tuple(largest))
    if free:
        config.add_optimization_profile(profile)


def attach_timing_cache(trt: Trt, config: Trt, arguments: argparse.Namespace) -> str:
    """Give the builder its timing cache; returns the digest of what it holds."""
    path = arguments.timing_cache
    if path is None:
        return ""
    data = path.read_bytes() if path.is_file() else b""
    if arguments.locked:
        pin = pin_of(path)
        if not pin.is_file() or not data:
            raise EngineError(
                USAGE, f"--locked needs {path} and {pin.name}, as a build without --locked writes them"
            )
        if pin.read_text().split()[:1] != [sha256(data)]:
            raise EngineError(USAGE, f"{path} is not the pinned timing cache: its SHA-256 is {sha256(data)}")
        if hasattr(trt.BuilderFlag, "ERROR_ON_TIMING_CACHE_MISS"):
            config.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(BACKEND, f"{path} was written by another TensorRT or for another device: remove it")
    return sha256(bytes(cache.serialize()))


def keep_timing_cache(config: Trt, arguments: argparse.Namespace, before: str) -> None:
    path = arguments.timing_cache
    if path is None:
        return
    data = bytes(config.get_timing_cache().serialize())
    if arguments.locked:
        if sha256(data) != before:
            raise EngineError(BACKEND, f"refused: the build timed tactics that {path} does not hold")
        return
    write(path, data)
    write(pin_of(path), f"{sha256(data)}  {path.name}\n".encode())
    print(f"timing cache {path}: sha256 {sha256(data)}")


def pin_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(path: Path, data: bytes) -> None:
    """The file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as e:
        raise EngineError(USAGE, f"cannot write {path}: {e}") from e
    finally:
        if temporary.exists():
            temporary.unlink()


# ----------------------------------------------------------------------------------------------- the device


class Cuda:
    """The few functions of the CUDA runtime that are needed, through ctypes."""

    NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
    FOLDERS = ("", "/usr/local/cuda/lib64/", "/usr/local/cuda/targets/aarch64-linux/lib/")
    TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind

    def __init__(self) -> None:
        self._library = self._load()

    def _load(self) -> ctypes.CDLL:
        for folder in self.FOLDERS:
            for name in self.NAMES:
                try:
                    return ctypes.CDLL(folder + name)
                except OSError:
                    continue
        raise EngineError(
            TOOLCHAIN, "libcudart is not found: install the CUDA runtime or set LD_LIBRARY_PATH"
        )

    def call(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            text = self._library.cudaGetErrorString
            text.restype = ctypes.c_char_p
            raise EngineError(DEVICE, f"{function} failed: {text(code).decode()} (CUDA error {code})")

    def allocate(self, size: int) -> ctypes.c_void_p:
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return pointer

    def copy(self, to: ctypes.c_void_p, source: ctypes.c_void_p, size: int, kind: int) -> None:
        self.call("cudaMemcpy", to, source, ctypes.c_size_t(size), ctypes.c_int(kind))

    def handle(self, function: str) -> ctypes.c_void_p:
        """A new stream or event."""
        made = ctypes.c_void_p()
        self.call(function, ctypes.byref(made))
        return made


class Engine:
    """A deserialized engine and the device memory of its inputs and outputs."""

    def __init__(self, trt: Trt, logger: Trt, plan: bytes) -> None:
        self._trt = trt
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(BACKEND, "TensorRT cannot load the engine it has just built")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(BACKEND, "not enough device memory to run the engine")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        self.cuda = Cuda()
        self.stream = self.cuda.handle("cudaStreamCreate")
        self._buffers: dict[str, tuple[ctypes.c_void_p, int]] = {}
        self._host: Arrays = {}

    def batches(self) -> tuple[int, int]:
        """How many samples one run takes, at least and at most."""
        name = self.inputs[0]
        shape = tuple(self._engine.get_tensor_shape(name))
        if not shape or shape[0] != -1:
            return (int(shape[0]), int(shape[0])) if shape else (1, 1)
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        return int(smallest[0]), int(largest[0])

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs for arrays that fit the engine's shapes; types are converted to the engine's."""
        for name in self.inputs:
            array = np.ascontiguousarray(feeds[name], self._dtype(name))
            if not self._context.set_input_shape(name, tuple(array.shape)):
                raise EngineError(USAGE, f"input '{name}' of shape {array.shape} does not fit the engine")
            self._bind(name, array)
        results = {}
        for name in self.outputs:
            shape = tuple(int(d) for d in self._context.get_tensor_shape(name))
            if -1 in shape:
                raise EngineError(UNSUPPORTED, f"the shape of output '{name}' depends on the data")
            results[name] = np.empty(shape, self._dtype(name))
            self._context.set_tensor_address(name, int(self._memory(name, results[name].nbytes).value or 0))
        self.launch()
        self.cuda.call("cudaStreamSynchronize", self.stream)
        for name, array in results.items():
            self.cuda.copy(address(array), self._buffers[name][0], array.nbytes, Cuda.TO_HOST)
        return results

    def launch(self) -> None:
        if not self._context.execute_async_v3(int(self.stream.value or 0)):
            raise EngineError(BACKEND, "TensorRT failed while running the engine")

    def _bind(self, name: str, array: np.ndarray) -> None:
        if self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST:
            self._host[name] = array  # a shape, which TensorRT reads on the host
            self._context.set_tensor_address(name, int(address(array).value or 0))
            return
        memory = self._memory(name, array.nbytes)
        self.cuda.copy(memory, address(array), array.nbytes, Cuda.TO_DEVICE)
        self._context.set_tensor_address(name, int(memory.value or 0))

    def _memory(self, name: str, size: int) -> ctypes.c_void_p:
        have = self._buffers.get(name)
        if have is None or have[1] < size:
            if have is not None:
                self.cuda.call("cudaFree", have[0])
            self._buffers[name] = have = (self.cuda.allocate(size), size)
        return have[0]

    def _dtype(self, name: str) -> str:
        kind = self._engine.get_tensor_dtype(name).name
        names = {"FLOAT": "float32", "HALF": "float16", "BOOL": "bool"}
        return names.get(kind, str(kind).lower())


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


# ----------------------------------------------------------------------------------------- check and measure


def load_selftest(path: Path) -> Arrays:
    if not path.is_file():
        raise EngineError(USAGE, f"there is no {path}: it lies in the bundle, one folder above this script")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def check(engine: Engine, selftest: Arrays, arguments: argparse.Namespace) -> None:
    feeds, expected = part(selftest, "input/"), part(selftest, "output/")
    missing = sorted(set(engine.inputs) - set(feeds)) + sorted(set(expected) - set(engine.outputs))
    if missing or not expected:
        raise EngineError(
            USAGE, f"{arguments.check} is not this model's self-test: no {missing or 'outputs'}"
        )
    found = run_samples(engine, feeds)
    recorded = float(selftest.get("tolerance", np.float64(DEFAULT_TOLERANCE)))
    tolerance = recorded if arguments.tolerance is None else arguments.tolerance
    worst = 0.0
    for name, want in expected.items():
        got = found[name]
        if got.shape != want.shape:
            raise EngineError(MISMATCH, f"output '{name}' has shape {got.shape}, expected {want.shape}")
        error = relative_error(want, got)
        print(f"output '{name}': max relative error {error:.3g}")
        worst = max(worst, error)
    if not worst <= tolerance:
        raise EngineError(
            MISMATCH, f"the engine's outputs differ: {worst:.3g} relative, {tolerance:.3g} allowed"
        )
    print(f"self-test passed: {worst:.3g} relative, {tolerance:.3g} allowed")


def part(selftest: Arrays, prefix: str) -> Arrays:
    return {name[len(prefix) :]: array for name, array in selftest.items() if name.startswith(prefix)}


def run_samples(engine: Engine, feeds: Arrays) -> Arrays:
    """Run any number of samples, as many at a time as the engine takes."""
    count = min(len(feeds[name]) for name in engine.inputs)
    step = engine.batches()[1]
    if count <= step:
        return engine.run(feeds)
    cuts = [slice(start, start + step) for start in range(0, count, step)]
    parts = [engine.run({name: array[cut] for name, array in feeds.items()}) for cut in cuts]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def relative_error(want: np.ndarray, got: np.ndarray) -> float:
    """Largest absolute difference over the largest expected magnitude; infinite where a number is none."""
    wide, found = want.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - wide).max(initial=0.0) / max(np.abs(wide).max(initial=0.0), 1e-12))


def measure(engine: Engine, selftest: Arrays, runs: int) -> None:
    """Time of one inference on the device, without copies, between two CUDA events; the smallest batch."""
    size = engine.batches()[0]
    feeds = {name: array[:size] for name, array in part(selftest, "input/").items()}
    if not feeds:
        raise EngineError(USAGE, "--time needs --check, whose inputs it feeds")
    engine.run(feeds)
    cuda, stream = engine.cuda, engine.stream
    begin, end = cuda.handle("cudaEventCreate"), cuda.handle("cudaEventCreate")
    times = []
    for _ in range(WARM_UP_RUNS + runs):
        cuda.call("cudaEventRecord", begin, stream)
        engine.launch()
        cuda.call("cudaEventRecord", end, stream)
        cuda.call("cudaEventSynchronize", end)
        elapsed = ctypes.c_float()
        cuda.call("cudaEventElapsedTime", ctypes.byref(elapsed), begin, end)
        times.append(elapsed.value)
    p50, p95, p99 = np.percentile(times[WARM_UP_RUNS:], (50, 95, 99))
    print(f"latency: p50 {p50:.3f} ms, p95 {p95:.3f} ms, p99 {p99:.3f} ms over {runs} runs, batch {size}")


if __name__ == "__main__":
    sys.exit(main())
