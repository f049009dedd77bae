"""This machine: which processor, what it can compute in, how many cores and how much memory we may use."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy.spec.overlay import Machine

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_MAC_FEATURES = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512vnni": "avx512_vnni",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_FP16": "fphp",
}
"""macOS's names of what Linux calls otherwise."""


@dataclass(frozen=True)
class Host:
    """``arch`` as Linux says it (x86_64, aarch64). ``features`` are the CPU flags of /proc/cpuinfo, such as
    avx2, avx_vnni, avx512_vnni, amx_int8 or asimddp, i8mm; empty where the system does not tell. ``cores``
    and ``memory_bytes`` are what this process may use, inside a container less than the machine has.
    """

    cpu: str
    arch: str
    cores: int
    features: frozenset[str]
    memory_bytes: int


KERNEL_FLAGS = (
    "sse4_1", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx_vnni_int8", "avx_ne_convert",
    "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "neon", "asimd", "fphp", "asimdhp", "asimddp", "asimdfhm", "i8mm", "bf16",
    "sve", "sve2", "svei8mm", "svebf16", "sme", "sme2",
)  # fmt: skip
"""The CPU features that runtimes choose their kernels by, among the hundred that a CPU lists."""


def this_machine(device: str = "") -> Machine:
    """What measurements taken here belong to; ``device`` is the accelerator's name where it was measured.

    A newer kernel lists more flags of the same CPU: only those by which kernels are chosen count.
    """
    here = host()
    features = tuple(flag for flag in KERNEL_FLAGS if flag in here.features)
    return Machine(cpu=here.cpu, arch=here.arch, features=features, cores=here.cores, device=device)


@functools.cache
def host() -> Host:
    """The machine we run on, looked at once."""
    machine = platform.machine().lower()
    name, features = _processor()
    return Host(
        cpu=name or platform.processor() or machine,
        arch=_ARCHITECTURES.get(machine, machine),
        cores=_cores(),
        features=features,
        memory_bytes=_memory(),
    )


def physical_cores() -> int:
    """How many cores we may use, two that share one counted as one."""
    return max(1, min(host().cores, psutil.cpu_count(logical=False) or host().cores))


def read_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Name and flags out of /proc/cpuinfo; only flags that all cores share, as a thread may run on any.

    The name is empty where the file has none, as on most ARM boards.

    >>> name, flags = read_cpuinfo("model name : Some CPU\\nflags : fma avx2\\nflags : avx2\\n")
    >>> name, sorted(flags)
    ('Some CPU', ['avx2'])
    """
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), []).append(value.strip())
    flags = [frozenset(value.split()) for key in ("flags", "Features") for value in fields.get(key, ())]
    names = [fields[key][0] for key in ("model name", "Model", "Hardware") if key in fields]
    return names[0] if names else "", frozenset.intersection(*flags) if flags else frozenset()


def read_sysctl(text: str) -> tuple[str, frozenset[str]]:
    """Name and features out of macOS's ``sysctl machdep.cpu hw.optional``, features as Linux spells them."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    listed = " ".join(fields.get(f"machdep.cpu.{key}", "") for key in ("features", "leaf7_features"))
    present = set(listed.lower().split()) | {key for key, value in fields.items() if value.strip() == "1"}
    features = frozenset(ours for theirs, ours in _MAC_FEATURES.items() if theirs in present)
    return fields.get("machdep.cpu.brand_string", "").strip(), features


def memory_limit(root: Path = Path("/")) -> int | None:
    """The tightest memory limit of this process's control groups in bytes, None where there is none.

    Version 2 (memory.max) and 1 (memory.limit_in_bytes), each from the process's own group up to the root,
    as a limit on any of them holds.
    """
    groups = root / "proc/self/cgroup"
    if not groups.is_file():
        return None
    limits: list[int] = []
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            limit = mount / folder / file
            text = limit.read_text().strip() if limit.is_file() else "max"
            limits += [int(text)] if text.isdigit() else []
    return min(limits, default=None)


def _processor() -> tuple[str, frozenset[str]]:
    system = platform.system()
    if system == "Darwin":
        command = ["/usr/sbin/sysctl", "machdep.cpu", "hw.optional"]
        return read_sysctl(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    if system != "Linux":
        return "", frozenset()
    name, features = read_cpuinfo(Path("/proc/cpuinfo").read_text())
    board = Path("/proc/device-tree/model")  # ARM boards say here what they are, ending in a zero byte
    if not name and board.is_file():
        name = board.read_text().rstrip("\0")
    return re.sub(r"\s+", " ", name), features


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int:
    total = int(psutil.virtual_memory().total)
    limit = memory_limit()
    return total if limit is None else min(total, limit)
