"""The points of `torch_points.py` as PyTorch computes them, and how long that takes on a device.

On CUDA the work is captured as a graph and replayed between two events, so that neither Python nor launches
count; elsewhere a wall clock is held beside it. Which of the two is decided in `stopwatch` and `repeated`.
On CUDA itself nothing here has run yet (2026-11-21); everything has on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deploy.spec.overlay import Cost, Failure
from deploy.spec.tensors import Precision
from deploy.survey.torch_points import BYTES, Point

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Work = Callable[[], object]

_MOST_WEIGHTS = 256 * 2**20
REFUSALS = (RuntimeError, AssertionError, AttributeError, TypeError, ValueError, ImportError)
"""What PyTorch raises where a device, a type or a size is not supported: RuntimeError mostly; AssertionError
where it was built without the device, AttributeError where a version lacks a function."""


@dataclass(frozen=True)
class Effort:
    """How much time a point gets: a window holds so many repetitions as fill it, a round is one window.

    ``links`` are the kernels of a chain, each with weights of its own, which so come from as far as in a
    network.
    """

    rounds: int
    window_ms: float
    links: int = 8


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one kernel in each round."""

    rounds: np.ndarray

    @property
    def ms(self) -> float:
        return float(np.median(self.rounds))

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, high = np.percentile(self.rounds, [25, 75])
        return float((high - low) / self.ms)


def measure_point(point: Point, precision: Precision, device: str, effort: Effort) -> Cost | Failure:
    """The cost of a point, or why the device has none."""
    try:
        work, links = _chain(point, precision, device, effort.links)
        timing = timed(work, device, effort, links=links)
    except REFUSALS as e:
        return Failure(op=point.op, precision=precision, shape=point.shape, reason=reason(e))
    return Cost(
        op=point.op,
        precision=precision,
        macs=point.macs,
        bytes=point.bytes(precision),
        depth=point.depth,
        align=point.align,
        ms=float(f"{timing.ms:.4g}"),
        spread=round(timing.spread, 3),
        shape=point.shape,
    )


def reason(error: BaseException) -> str:
    """The first line of what PyTorch says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[
        :300
    ]


def timed(work: Work, device: str, effort: Effort, *, links: int = 1, captured: bool = True) -> Timing:
    """How long one of the ``links`` kernels in ``work`` takes; ``captured`` as a graph on CUDA."""
    watch = stopwatch(device)
    work()
    once = watch(work)
    count = max(1, min(1000, math.ceil(effort.window_ms / max(once, 1e-6))))
    run = repeated(work, count, device, captured=captured)
    run()
    return Timing(np.asarray([watch(run) for _ in range(effort.rounds)]) / (count * links))


def stopwatch(device: str) -> Callable[[Work], float]:
    """What tells the milliseconds that work takes: CUDA's events on CUDA, a wall clock elsewhere."""
    import torch

    def by_events(work: Work) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def by_clock(work: Work) -> float:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3

    return by_events if torch.device(device).type == "cuda" else by_clock


def repeated(work: Work, count: int, device: str, *, captured: bool = True) -> Work:
    """``work`` so many times in one call, on CUDA as a captured graph if wanted.

    Capturing wants a stream of its own that is warm (PyTorch's notes on CUDA graphs). Keep ``work`` as long
    as the result: what it reads belongs to it.
    """
    import torch

    def loop() -> None:
        for _ in range(count):
            work()

    if not captured or torch.device(device).type != "cuda":
        return loop
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loop()
    return graph.replay


def exact_floats() -> None:
    """Plain float32, never TF32, and the fastest of cuDNN's algorithms."""
    import torch

    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # made at run time
    torch.backends.cudnn.benchmark = True


def dtype(precision: Precision) -> torch.dtype:
    """PyTorch's type of a precision. Raises KeyError for one that is not measured."""
    import torch

    types = {
        "float": torch.float32,
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
        "int8": torch.int8,
        "fp8": torch.float8_e4m3fn,
    }
    return types[precision]


def numbers(shape: tuple[int, ...], precision: Precision, device: str, scale: float = 1.0) -> Tensor:
    """Random ones: a device draws less power on zeros, and is faster."""
    import torch

    if precision == "int8":
        return torch.randint(-127, 128, shape, dtype=torch.int8, device=device)
    return (torch.randn(shape, device=device) * scale).to(dtype(precision))


def _chain(point: Point, precision: Precision, device: str, most: int) -> tuple[Work, int]:
    """The kernel several times, each with weights of its own; how many times."""
    import torch

    make = _MAKERS[point.op]
    links = max(1, min(most, _MOST_WEIGHTS // (point.moved * BYTES[precision])))
    with torch.inference_mode():
        kernels = make(point, precision, device, links)

    def work() -> None:
        with torch.inference_mode():
            for kernel in kernels:
                kernel()

    return work, links


def _convolutions(point: Point, precision: Precision, device: str, links: int) -> list[Work]:
    """Channels last, as tensor cores read them; a bias as in any network whose norms are folded."""
    import torch
    from torch.nn import functional

    batch, channels, side = point.sizes
    kernel = 1 if point.op == "pointwise" else 3
    groups = channels if point.op == "depthwise" else 1
    shape = (channels, channels // groups, kernel, kernel)
    last = torch.channels_last
    x = numbers((batch, channels, side, side), precision, device).to(memory_format=last)
    scale = 1 / math.sqrt(point.depth)
    weights = [numbers(shape, precision, device, scale).to(memory_format=last) for _ in range(links)]
    bias = numbers((channels,), precision, device)

    def kernel_of(weight: Tensor) -> Work:
        return lambda: functional.conv2d(x, weight, bias, padding=kernel // 2, groups=groups)

    return [kernel_of(weight) for weight in weights]


def _products(point: Point, precision: Precision, device: str, links: int) -> list[Work]:
    """Weights lie by output, as layers keep them and as integer and 8-bit kernels demand.

    INT8 sums into int32 (``_int_mm``), FP8 into bfloat16 with one scale for each tensor (``_scaled_mm``).
    """
    import torch

    rows, depth, columns = point.sizes
    x = numbers((rows, depth), precision, device)
    scale = 1 / math.sqrt(depth)
    weights = [numbers((columns, depth), precision, device, scale).t() for _ in range(links)]
    one = torch.ones((), device=device)

    def kernel_of(weight: Tensor) -> Work:
        if precision == "int8":
            return lambda: torch._int_mm(x, weight)
        if precision == "fp8":
            return lambda: torch._scaled_mm(
                x, weight, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
            )
        return lambda: torch.mm(x, weight)

    return [kernel_of(weight) for weight in weights]


def _batched(point: Point, precision: Precision, device: str, links: int) -> list[Work]:
    import torch

    batch, rows, depth, columns = point.sizes
    a = numbers((batch, rows, depth), precision, device)
    others = [numbers((batch, depth, columns), precision, device) for _ in range(links)]

    def kernel_of(b: Tensor) -> Work:
        return lambda: torch.bmm(a, b)

    return [kernel_of(b) for b in others]


def _sums(point: Point, precision: Precision, device: str, links: int) -> list[Work]:
    import torch

    a = numbers(point.sizes, precision, device)
    others = [numbers(point.sizes, precision, device) for _ in range(links)]

    def kernel_of(b: Tensor) -> Work:
        return lambda: torch.add(a, b)

    return [kernel_of(b) for b in others]


def _rows(point: Point, precision: Precision, device: str, links: int) -> list[Work]:
    import torch
    from torch.nn import functional

    inputs = [numbers(point.sizes, precision, device) for _ in range(links)]
    columns = point.sizes[1]
    scale, bias = numbers((columns,), precision, device), numbers((columns,), precision, device)

    def kernel_of(x: Tensor) -> Work:
        if point.op == "softmax":
            return lambda: torch.softmax(x, -1)
        return lambda: functional.layer_norm(x, (columns,), scale, bias)

    return [kernel_of(x) for x in inputs]


_Maker = Callable[[Point, Precision, str, int], list[Work]]
_MAKERS: dict[str, _Maker] = {
    "conv": _convolutions,
    "pointwise": _convolutions,
    "depthwise": _convolutions,
    "gemm": _products,
    "batched": _batched,
    "elementwise": _sums,
    "softmax": _rows,
    "norm": _rows,
}
