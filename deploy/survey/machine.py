"""The figures of the machine that runs this: what its files say of it, and what it reaches.

Keys of the facts, each left out where the system does not tell:

cores, physical_cores, threads_per_core, cpu_quota     what this process may use
memory                                                 GiB that this process may use
isa                                                    flags that runtimes choose kernels by
l1d, l2, l3, and <name>_shared_by                      KiB; how many logical processors have one together
clock_nominal, clock_max, governor                     what files say, MHz
clock_effective                                        MHz counted while measuring
temperature, temperature_after, throttled              degrees Celsius; held back while measuring
read_<level>, copy_<level>, update_<level>             GB/s of one thread; levels l1, l2, l3, memory
read_<level>_all ...                                   the same of all threads together
gemm_float, gemm_float_all                             GFLOP/s of a product of matrices in float32
load                                                   processes that ran in the last minute, for each core
noise                                                  95th percentile over median of the same short work,
                                                       done again and again meanwhile
cpu_share                                              part of that time in which the processor was ours: well
                                                       below 1 where others are at work too
"""

from __future__ import annotations

import os
import platform
import time
from datetime import date

import numpy as np

from deploy.measure.host import KERNEL_FLAGS, host
from deploy.spec.profile import Figure
from deploy.survey import readings
from deploy.survey.bandwidth import KERNELS, bandwidth, levels
from deploy.survey.clock import effective_clock
from deploy.survey.pulse import Pulse, gemm, product, timed

_SIDE = 384
_ROUNDS, _ROUNDS_QUICK = 31, 11
_LONGEST_S = 1.0
_LOOK_S = 0.02
"""Of the pulse's work between two measurements: longer than another process keeps the core."""


def machine_facts(*, quick: bool, threads: int, pulse: Pulse) -> dict[str, Figure]:
    """The figures of this machine; ``_all`` are by ``threads`` threads, left out where that is one.

    Takes up to 8 seconds of an idle machine, ``quick`` up to 3. Nothing fails where files are hidden: their
    facts are missing.
    """
    today = date.today()
    before = readings.read_files(changing=True)
    facts, caches = _said(today)
    measured = _Measured(today, _ROUNDS_QUICK if quick else _ROUNDS, caches_known=bool(caches))
    memory = host().memory_bytes
    counts = [(1, "")] + ([(threads, "_all")] if threads > 1 else [])
    watch = _Watch(pulse)
    watch.look()
    measured.put_clock()
    for count, suffix in counts:
        for level in levels(caches, memory, count, quick=quick):
            for kernel in KERNELS:
                measured.put_bandwidth(f"{kernel}_{level.name}{suffix}", kernel, level.size, count)
            watch.look()
        side = round(_SIDE * count ** (1 / 3) / 64) * 64  # as much for each thread
        measured.put_gemm(f"gemm_float{suffix}", side, count)
        watch.look()
    measured.put_clock()
    facts |= measured.facts
    facts |= watch.facts(today)
    facts |= _heat(before, readings.read_files(changing=True), today)
    return facts


def _said(today: date) -> tuple[dict[str, Figure], list[readings.Cache]]:
    """What the system tells, and its caches."""
    found = host()
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    said = f"{platform.system()}, what this process may use"
    facts = {
        "cores": Figure(value=found.cores, unit="logical processors", source=said, date=today),
        "memory": Figure(value=round(found.memory_bytes / 2**30, 2), unit="GiB", source=said, date=today),
    }
    flags = " ".join(flag for flag in KERNEL_FLAGS if flag in found.features)
    if flags:
        source = "/proc/cpuinfo" if platform.system() == "Linux" else "sysctl hw.optional machdep.cpu"
        facts["isa"] = Figure(value=flags, unit="flags", source=source, date=today)
    files, mac = readings.read_files(), readings.sysctl()
    caches = readings.mac_caches(mac) or readings.caches(files, usable)
    facts |= readings.core_facts(files, usable, today) | readings.mac_core_facts(mac, today)
    facts |= readings.cache_facts(caches, today)
    facts |= readings.clock_facts(files, usable, today)
    load = files.get("/proc/loadavg", "").split()[:1]
    if load:
        each = round(float(load[0]) / found.cores, 2)
        facts["load"] = Figure(value=each, unit="running for each core", source="/proc/loadavg", date=today)
    return facts, caches


def _heat(before: readings.Files, after: readings.Files, today: date) -> dict[str, Figure]:
    facts = {}
    for name, files in (("temperature", before), ("temperature_after", after)):
        hottest = readings.temperature(files)
        if hottest is not None:
            facts[name] = Figure(value=hottest[0], unit="degrees Celsius", source=hottest[1], date=today)
    held = readings.throttled(before, after)
    if held is not None:
        facts["throttled"] = Figure(value=held[0], unit="while measuring", source=held[1], date=today)
    return facts


class _Measured:
    """Facts as they are measured, each with how and with what spread."""

    def __init__(self, today: date, rounds: int, *, caches_known: bool) -> None:
        self.facts: dict[str, Figure] = {}
        self._today, self._rounds = today, rounds
        self._sizes = "" if caches_known else ", sizes of caches assumed"

    def put_clock(self) -> None:
        """The faster of two looks, if there are two: before a processor is warm it may be slow."""
        found = effective_clock(2 * self._rounds)
        known = self.facts.get("clock_effective")
        if found is not None and (known is None or found[0] > float(known.value)):
            self._put("clock_effective", found[0], "MHz", "a chain of dependent additions", found[1])

    def put_bandwidth(self, name: str, kernel: str, size: int, threads: int) -> None:
        rate = bandwidth(kernel, size, threads, self._rounds)
        how = f"numpy, {threads} x {size / 1024:.0f} KiB{self._sizes}"
        self._put(name, rate.gb_s, "GB/s", how, rate.spread)

    def put_gemm(self, name: str, side: int, threads: int) -> None:
        with gemm(side, threads) as session:
            work = product(session, side)
            work()
            times = [timed(work) for _ in range(3)]
            while len(times) < self._rounds and sum(times) < _LONGEST_S:
                times.append(timed(work))
        low, typical, high = np.percentile(times, [25, 50, 75])
        how = f"{session.executed_by}, {side}x{side} matrices, {threads} threads"
        self._put(name, 2 * side**3 / typical / 1e9, "GFLOP/s", how, (high - low) / typical)

    def _put(self, name: str, value: float, unit: str, how: str, spread: float) -> None:
        source = f"measured: {how}, spread {spread:.2f}"
        self.facts[name] = Figure(value=float(f"{value:.4g}"), unit=unit, source=source, date=self._today)


class _Watch:
    """How evenly the machine runs: the pulse's work, a fraction of a millisecond, throughout the survey."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._times: list[float] = []
        self._ours = 0.0

    def look(self) -> None:
        self._pulse.beat()  # what was measured before has filled the caches
        ours, start = time.thread_time(), time.perf_counter()
        while time.perf_counter() - start < _LOOK_S:
            self._times.append(timed(self._pulse.work))
        self._ours += time.thread_time() - ours

    def facts(self, today: date) -> dict[str, Figure]:
        typical, late = np.percentile(self._times, [50, 95])
        how = f"measured: {len(self._times)} runs of the same work, median {typical * 1e3:.3f} ms"
        unit, share = "95th percentile over median", min(1.0, self._ours / sum(self._times))
        return {
            "noise": Figure(value=round(float(late / typical), 3), unit=unit, source=how, date=today),
            "cpu_share": Figure(value=round(share, 3), unit="of the time at work", source=how, date=today),
        }
