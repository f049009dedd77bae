"""Figures of an accelerator as a whole: memory, launches, transfers, clocks, heat, what 2:4 sparsity wins."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import numpy as np

from deploy.spec.overlay import Cost, Failure
from deploy.spec.profile import Figure
from deploy.spec.tensors import Precision
from deploy.survey.torch_kernels import (
    REFUSALS,
    Effort,
    Timing,
    Work,
    dtype,
    numbers,
    reason,
    repeated,
    stopwatch,
    timed,
)

if TYPE_CHECKING:
    from torch import Tensor

_QUERY = {
    "driver": ("driver_version", ""),
    "clock_sm": ("clocks.sm", "MHz at work"),
    "clock_sm_max": ("clocks.max.sm", "MHz"),
    "clock_memory": ("clocks.mem", "MHz at work"),
    "temperature": ("temperature.gpu", "degrees Celsius at work"),
    "power": ("power.draw", "W at work"),
    "power_limit": ("power.limit", "W"),
}
"""Facts, the fields of nvidia-smi that they are, and their units."""
_HELD_BACK = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of nvidia-smi's reasons for a lower clock (nvml.h, nvmlClocksEventReasons) that nobody chose."""
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""The newer and the older name of the same field."""
_COPIES = (2**16, 2**20, 2**24)


@dataclass(frozen=True)
class Scale:
    """How large the work is by which a device is judged: bytes of an array, side of a matrix."""

    array: int
    side: int


LARGE, SMALL = Scale(2**30, 4096), Scale(2**23, 256)
"""For an accelerator, whose caches hold 60 MB, and for a CPU."""


def bandwidth_facts(device: str, scale: Scale, effort: Effort, today: date) -> dict[str, Figure]:
    """GB/s of the device's memory: a sum, a copy, and ``y += x``, which reads two arrays and writes one."""
    import torch

    x, y = (numbers((scale.array // 4,), "float", device) for _ in range(2))
    works: dict[str, tuple[Callable[[], object], int]] = {
        "read_memory": (lambda: torch.sum(x), 1),
        "copy_memory": (lambda: y.copy_(x), 2),
        "update_memory": (lambda: y.add_(x), 3),
    }
    facts = {}
    for name, (work, arrays) in works.items():
        timing = timed(work, device, effort)
        rate = arrays * x.nbytes / timing.ms / 1e6
        facts[name] = _measured(rate, "GB/s", f"float32 arrays of {x.nbytes >> 20} MiB", timing.spread, today)
    return facts


def launch_facts(device: str, effort: Effort, today: date) -> dict[str, Figure]:
    """Microseconds that the smallest kernel takes when Python launches it, and within a captured graph."""
    x = numbers((16,), "float", device)
    eager = timed(lambda: x.add_(1), device, effort, captured=False)
    inside = timed(lambda: x.add_(1), device, effort)
    return {
        "launch": _measured(eager.ms * 1e3, "us", "x += 1 from Python", eager.spread, today),
        "kernel": _measured(inside.ms * 1e3, "us", "x += 1 in a graph", inside.spread, today),
    }


def ends(device: str, effort: Effort) -> list[Cost | Failure]:
    """What a graph costs besides its kernels: ``overhead`` until a graph of next to nothing is through as the
    caller sees it, ``entry`` for bringing so many bytes to the device and back from pinned memory."""
    import torch

    on_cuda = torch.device(device).type == "cuda"
    x = numbers((16,), "float", device)
    graph = repeated(lambda: x.add_(1), 1, device)

    def to_the_end(work: Work) -> Work:
        def run() -> None:
            work()
            if on_cuda:
                torch.cuda.synchronize()

        return run

    clock = stopwatch("cpu")
    nothing = _rounds(clock, to_the_end(graph), effort)
    found: list[Cost | Failure] = [
        _end("overhead", 64, nothing, "a graph of one addition, launched and waited for")
    ]
    for size in _COPIES:
        there = numbers((size // 4,), "float", device)
        here = torch.empty(size // 4, pin_memory=on_cuda)

        def both(there: Tensor = there, here: Tensor = here) -> None:
            there.copy_(here, non_blocking=True)
            here.copy_(there, non_blocking=True)

        timing = _rounds(clock, to_the_end(both), effort)
        found.append(_end("entry", 2 * size, timing, f"{size >> 10} KiB to the device and back"))
    return found


def _rounds(clock: Callable[[Work], float], work: Work, effort: Effort) -> Timing:
    work()
    return Timing(np.asarray([np.median([clock(work) for _ in range(5)]) for _ in range(effort.rounds)]))


def _end(op: str, moved: int, timing: Timing, shape: str) -> Cost:
    ms, spread = float(f"{timing.ms:.4g}"), round(timing.spread, 3)
    kind = "overhead" if op == "overhead" else "entry"
    return Cost(op=kind, precision="float", macs=0, bytes=moved, ms=ms, spread=spread, shape=shape)


def sparsity(
    precision: Precision, device: str, scale: Scale, effort: Effort, today: date
) -> Figure | Failure:
    """How many times faster a product is when its constant matrix has two zeros among every four numbers.

    Dense and sparse in turn on the same sizes, as streams of launches: ``torch.mm``, for INT8 ``_int_mm``
    into int32, against cuSPARSELt through ``to_sparse_semi_structured`` (INT8 into INT8) by its default
    algorithm, so the gain is what it is at least. A Failure where the device or PyTorch cannot. Needs CUDA
    from compute capability 8.0, and has never run there yet: on the CPU it ends in the Failure that the tests
    see.
    """
    import torch

    side = scale.side
    shape = f"2:4, {side}x{side} by {side}x{side}"
    try:
        weight = numbers((side, side), precision, device) * torch.tensor(
            [0, 1, 1, 0], dtype=dtype(precision), device=device
        ).repeat(side // 4)
        x = numbers((side, side), precision, device).t()
        packed = torch.sparse.to_sparse_semi_structured(weight)
        product = torch._int_mm if precision == "int8" else torch.mm
        watch = stopwatch(device)
        pair = [lambda: product(weight, x), lambda: torch.mm(packed, x)]
        counts = [max(1, round(effort.window_ms / timed(w, device, effort, captured=False).ms)) for w in pair]
        runs = [repeated(w, n, device, captured=False) for w, n in zip(pair, counts, strict=True)]
        times = np.asarray([[watch(run) for run in runs] for _ in range(effort.rounds)]) / counts
    except REFUSALS as e:
        return Failure(op="gemm", precision=precision, shape=shape, reason=reason(e))
    low, gain, high = np.percentile(times[:, 0] / times[:, 1], [25, 50, 75])
    return _measured(gain, "times", shape, (high - low) / gain, today)


def device_facts(device: str, today: date) -> dict[str, Figure]:
    """What PyTorch knows of a CUDA device; nothing of others."""
    import torch

    if torch.device(device).type != "cuda":
        return {}
    found = torch.cuda.get_device_properties(device)
    said: dict[str, tuple[str | float | int, str]] = {
        "name": (found.name, ""),
        "compute_capability": (f"{found.major}.{found.minor}", ""),
        "multiprocessors": (found.multi_processor_count, ""),
        "memory": (round(found.total_memory / 2**30, 2), "GiB"),
        "l2": (getattr(found, "L2_cache_size", 0) // 1024, "KiB"),
    }
    source = "torch.cuda.get_device_properties"
    return {k: Figure(value=v, unit=u, source=source, date=today) for k, (v, u) in said.items() if v}


def states(device: str, scale: Scale, today: date) -> dict[str, Figure]:
    """What nvidia-smi says of a CUDA device while it multiplies matrices; nothing of others."""
    import torch

    if torch.device(device).type != "cuda":
        return {}
    a = numbers((scale.side, scale.side), "fp16", device)

    def busy() -> None:
        for _ in range(50):
            torch.mm(a, a)
        torch.cuda.synchronize()

    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    return smi_facts(f"GPU-{uuid.removeprefix('GPU-')}" if uuid else "0", busy, today)


def smi_facts(which: str, busy: Work, today: date) -> dict[str, Figure]:
    """Clocks, temperature, power and what holds a device back, as nvidia-smi has them while ``busy`` runs
    again and again. Empty where there is no nvidia-smi, as on a Jetson."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}

    def ask(*fields: str) -> str:
        command = [program, "-i", which, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return run.stdout if run.returncode == 0 else ""

    def questions() -> dict[str, Figure]:
        facts = read_smi(ask(*(field for field, _ in _QUERY.values())), today)
        held = next(filter(None, (read_reasons(ask(field), field, today) for field in _REASONS)), None)
        return facts if held is None else {**facts, "throttled": held}

    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(questions)
        while not answers.done():
            busy()
        return answers.result()


def read_smi(text: str, today: date) -> dict[str, Figure]:
    """One line of nvidia-smi's answer, what the device does not tell left out.

    >>> facts = read_smi("580.159.04, 1980, 1980, 3201, 45, [N/A], 700.00", date(2026, 11, 21))
    >>> facts["clock_sm"].value, "power" in facts
    (1980, False)
    """
    facts = {}
    words = [word.strip() for word in text.partition("\n")[0].split(",")]
    for (name, (field, unit)), word in zip(_QUERY.items(), words, strict=False):
        value = _value(word, name)
        if value is not None:
            facts[name] = Figure(value=value, unit=unit, source=f"nvidia-smi, {field}", date=today)
    return facts


def read_reasons(text: str, field: str, today: date) -> Figure | None:
    """Whether the device is held back, out of nvidia-smi's mask of bits; the unit says by what."""
    mask = re.match(r"0x([0-9a-fA-F]+)", text.strip())
    if mask is None:
        return None
    held = [name for bit, name in _HELD_BACK.items() if int(mask[1], 16) & bit]
    return Figure(value=bool(held), unit=", ".join(held), source=f"nvidia-smi, {field}", date=today)


def _value(word: str, name: str) -> str | int | float | None:
    if name == "driver":
        return word if re.fullmatch(r"[\d.]+", word) else None
    if re.fullmatch(r"\d+", word):
        return int(word)
    return float(word) if re.fullmatch(r"\d+\.\d+", word) else None


def _measured(value: float, unit: str, how: str, spread: float, today: date) -> Figure:
    source = f"measured: PyTorch, {how}, spread {spread:.2f}"
    return Figure(value=float(f"{value:.4g}"), unit=unit, source=source, date=today)
