"""What the system says of its processor: cores, caches, clocks, temperature, throttling.

Reading is apart from understanding: `read_files` and `sysctl` fetch texts, everything else takes them. The
files of Linux are described in its Documentation/ABI/{stable,testing}/sysfs-devices-system-cpu and
admin-guide/pm/cpufreq.rst, driver-api/thermal/sysfs-api.rst, hwmon/sysfs-interface.rst, cgroup-v2.rst,
macOS's keys in Apple's "Determining system capabilities". What a container hides is left out.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from deploy.spec.profile import Figure

Files = Mapping[str, str]
"""Texts by path, as from the root: ``/proc/cpuinfo``."""

_CPU = "/sys/devices/system/cpu/cpu"
_PATTERNS = (
    "proc/cpuinfo",
    "proc/loadavg",
    "proc/self/cgroup",
    "sys/devices/system/cpu/cpu*/cache/index*/*",
    "sys/devices/system/cpu/cpu*/topology/thread_siblings_list",
    "sys/devices/system/cpu/cpu*/cpufreq/*",
    "sys/devices/system/cpu/cpu*/acpi_cppc/nominal_freq",
)
_CHANGING = (
    "sys/devices/system/cpu/cpu*/thermal_throttle/*_count",
    "sys/class/thermal/thermal_zone*/*",
    "sys/class/thermal/cooling_device*/*",
    "sys/class/hwmon/hwmon*/*",
    "sys/devices/platform/*/*firmware/get_throttled",
)
"""What tells of heat: read before and after measuring."""
_READ = frozenset((
    "cpuinfo", "loadavg", "cgroup", "level", "type", "size", "shared_cpu_list", "thread_siblings_list",
    "cpuinfo_max_freq", "base_frequency", "scaling_governor", "nominal_freq", "core_throttle_count",
    "package_throttle_count", "temp", "cur_state", "name", "get_throttled",
))  # fmt: skip
_SENSOR = re.compile(r"temp\d+_input")
_LARGEST = 2**20
_PROCESSOR_ZONE = re.compile(r"cpu|pkg_temp|soc|tdie", re.IGNORECASE)
_PROCESSOR_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
_PROCESSOR_COOLING = re.compile(r"cpufreq|processor|cpu", re.IGNORECASE)
_PI_HELD_BACK = 0b1111
"""Under-voltage, frequency capped, throttled, soft limit of temperature, all of them now."""


@dataclass(frozen=True)
class Cache:
    """One level as a core sees it: ``shared_by`` logical processors have one together, ``count`` of them are
    within reach of this process."""

    name: str
    kib: int
    shared_by: int
    count: int
    source: str


def read_files(root: Path = Path("/"), *, changing: bool = False) -> dict[str, str]:
    """The files of Linux that are understood here, as far as they are there and may be read."""
    texts = {}
    for pattern in _CHANGING if changing else _PATTERNS:
        for path in root.glob(pattern):
            if path.name in _READ or _SENSOR.fullmatch(path.name):
                text = _text(path)
                if text is not None:
                    texts[f"/{path.relative_to(root)}"] = text
    if not changing:
        for name in quota_files(texts):
            text = _text(root / name.lstrip("/"))
            if text is not None:
                texts[name] = text
    return texts


def _text(path: Path) -> str | None:
    """None too where a sensor sleeps, or a file belongs to somebody else."""
    try:
        with path.open(errors="replace") as file:
            return file.read(_LARGEST).rstrip("\0\n")
    except OSError:
        return None


def sysctl() -> str:
    """macOS's figures of itself, empty elsewhere."""
    if platform.system() != "Darwin":
        return ""
    command = ["/usr/sbin/sysctl", "hw"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def expand(cpus: str) -> frozenset[int]:
    """A list of processors as the kernel writes it.

    >>> sorted(expand("0-2,8"))
    [0, 1, 2, 8]
    """
    found: set[int] = set()
    for part in cpus.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def fastest(files: Files, usable: Collection[int]) -> int:
    """The usable processor of the highest clock: cores may differ, and work is wanted on the fast ones."""
    return max(
        sorted(usable), key=lambda cpu: _number(files, cpu, "cpufreq/cpuinfo_max_freq") or 0, default=0
    )


def caches(files: Files, usable: Collection[int]) -> list[Cache]:
    """Data caches of the fastest core, L1 first. Empty where the system hides them, as many VMs do."""
    cpu = fastest(files, usable)
    found = []
    for index in _indexes(files, cpu):
        level, kind, size = (files.get(f"{index}/{key}", "") for key in ("level", "type", "size"))
        kib = _kibibytes(size)
        if kind not in ("Data", "Unified") or not level.isdigit() or not kib:
            continue
        groups = {
            expand(files.get(f"{i}/shared_cpu_list", "")) & set(usable) for i in _alike(files, index, usable)
        }
        groups.discard(frozenset())
        mine = next((group for group in groups if cpu in group), frozenset((cpu,)))
        name = "l1d" if level == "1" else f"l{level}"
        found.append(Cache(name, kib, len(mine), max(1, len(groups)), index))
    return sorted(found, key=lambda cache: cache.name)


def _indexes(files: Files, cpu: int) -> list[str]:
    start = f"{_CPU}{cpu}/cache/index"
    return sorted({path.rsplit("/", 1)[0] for path in files if path.startswith(start)})


def _alike(files: Files, index: str, usable: Iterable[int]) -> list[str]:
    """The same level on every usable processor, where it is as large."""
    tail, size = index.rsplit("/", 1)[1], files.get(f"{index}/size")
    places = [f"{_CPU}{cpu}/cache/{tail}" for cpu in usable]
    return [place for place in places if files.get(f"{place}/size") == size]


def _kibibytes(size: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)", size.strip())
    return int(found[1]) * {"": 1, "K": 1, "M": 2**10, "G": 2**20}[found[2]] if found else 0


def mac_caches(text: str) -> list[Cache]:
    """The same out of ``sysctl hw``. Level 0 are the fast cores; Intel's Macs have no levels."""
    keys = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    fast = "hw.perflevel0." if "hw.perflevel0.l1dcachesize" in keys else "hw."
    cores = int(keys.get(f"{fast}logicalcpu", "1"))
    found = []
    for name, key in (("l1d", "l1dcachesize"), ("l2", "l2cachesize"), ("l3", "l3cachesize")):
        size = int(keys.get(fast + key, "0")) // 1024
        shared = min(cores, int(keys.get(f"{fast}cpusper{name}", cores if name == "l3" else 1)))
        if size:
            found.append(Cache(name, size, shared, max(1, cores // shared), f"sysctl {fast}{key}"))
    return found


def cache_facts(found: Iterable[Cache], today: date) -> dict[str, Figure]:
    """Sizes, and by how many logical processors of ours each is shared."""
    facts = {}
    for cache in found:
        facts[cache.name] = Figure(value=cache.kib, unit="KiB", source=cache.source, date=today)
        facts[f"{cache.name}_shared_by"] = Figure(
            value=cache.shared_by,
            unit=f"logical processors, {cache.count} of them",
            source=cache.source,
            date=today,
        )
    return facts


def core_facts(files: Files, usable: Collection[int], today: date) -> dict[str, Figure]:
    """Physical cores among those we may use, threads of each, and the processor time that we may take."""
    facts = {}
    source = f"{_CPU}*/topology/thread_siblings_list"
    siblings = {cpu: files.get(f"{_CPU}{cpu}/topology/thread_siblings_list") for cpu in usable}
    groups = {expand(text) for text in siblings.values() if text}
    if groups:
        facts["physical_cores"] = Figure(value=len(groups), unit="cores", source=source, date=today)
        threads = max(len(group) for group in groups)
        facts["threads_per_core"] = Figure(value=threads, source=source, date=today)
    quota = cpu_quota(files)
    if quota is not None:
        facts["cpu_quota"] = Figure(value=quota[0], unit="processors' time", source=quota[1], date=today)
    return facts


def mac_core_facts(text: str, today: date) -> dict[str, Figure]:
    """The same and the clock out of ``sysctl hw``; only Intel's Macs tell the clock."""
    keys = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    physical, logical = int(keys.get("hw.physicalcpu", "0")), int(keys.get("hw.logicalcpu", "0"))
    facts = {}
    if physical:
        facts["physical_cores"] = Figure(
            value=physical, unit="cores", source="sysctl hw.physicalcpu", date=today
        )
        facts["threads_per_core"] = Figure(
            value=max(1, logical // physical), source="sysctl hw.logicalcpu", date=today
        )
    for name, key in (("clock_nominal", "hw.cpufrequency"), ("clock_max", "hw.cpufrequency_max")):
        if int(keys.get(key, "0")):
            facts[name] = Figure(value=int(keys[key]) / 1e6, unit="MHz", source=f"sysctl {key}", date=today)
    return facts


def quota_files(files: Files) -> list[str]:
    """Where this process's share of processor time is written, by version of its control groups."""
    names = []
    for line in files.get("/proc/self/cgroup", "").splitlines():
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            if controllers == "":
                names.append(str(Path("/sys/fs/cgroup") / folder / "cpu.max"))
            elif "cpu" in controllers.split(","):
                base = Path("/sys/fs/cgroup/cpu") / folder
                names += [str(base / "cpu.cfs_quota_us"), str(base / "cpu.cfs_period_us")]
    return list(dict.fromkeys(names))


def cpu_quota(files: Files) -> tuple[float, str] | None:
    """The tightest limit in processors, with its file; None where there is none."""
    limits = []
    for name in quota_files(files):
        words = files.get(name, "").split()
        if name.endswith("cpu.cfs_quota_us"):
            words += files.get(name.replace("quota", "period"), "").split()
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            limits.append((int(words[0]) / int(words[1]), name))
    return min(limits, default=None)


def clock_facts(files: Files, usable: Collection[int], today: date) -> dict[str, Figure]:
    """Nominal and highest clock of the fastest core, and who governs it."""
    cpu = fastest(files, usable)
    facts = {}

    def put(name: str, mhz: float | None, source: str) -> None:
        if mhz and name not in facts:
            facts[name] = Figure(value=round(mhz, 1), unit="MHz", source=source, date=today)

    for key, per_mhz in (("cpufreq/base_frequency", 1000), ("acpi_cppc/nominal_freq", 1)):
        said = _number(files, cpu, key)
        put("clock_nominal", said and said / per_mhz, f"{_CPU}{cpu}/{key}")
    info = files.get("/proc/cpuinfo", "")
    named = re.search(r"^model name\s*:.*@ ([\d.]+)GHz", info, re.MULTILINE)
    put("clock_nominal", float(named[1]) * 1000 if named else None, "/proc/cpuinfo, in the processor's name")
    said = _number(files, cpu, "cpufreq/cpuinfo_max_freq")
    put("clock_max", said and said / 1000, f"{_CPU}{cpu}/cpufreq/cpuinfo_max_freq")
    now = re.search(r"^cpu MHz\s*:\s*([\d.]+)", info, re.MULTILINE)
    if not facts:
        put("clock_nominal", float(now[1]) if now else None, "/proc/cpuinfo, cpu MHz: all that is said here")
    governor = files.get(f"{_CPU}{cpu}/cpufreq/scaling_governor")
    if governor:
        source = f"{_CPU}{cpu}/cpufreq/scaling_governor"
        facts["governor"] = Figure(value=governor, source=source, date=today)
    return facts


def _number(files: Files, cpu: int, key: str) -> int | None:
    text = files.get(f"{_CPU}{cpu}/{key}", "").strip()
    return int(text) if text.isdigit() else None


def temperature(files: Files) -> tuple[float, str] | None:
    """The hottest of the processor's sensors in degrees Celsius, with its file."""
    found = []
    for path, text in files.items():
        folder, _, name = path.rpartition("/")
        if name == "temp":
            ours = _PROCESSOR_ZONE.search(files.get(f"{folder}/type", ""))
        elif _SENSOR.fullmatch(name):
            ours = re.match("|".join(_PROCESSOR_SENSORS), files.get(f"{folder}/name", ""))
        else:
            continue
        degrees = int(text) / 1000 if text.strip().lstrip("-").isdigit() else 0.0
        if ours and 0 < degrees < 150:  # sensors that are off say 0, -273 or 255
            found.append((degrees, path))
    return max(found, default=None)


def throttled(before: Files, after: Files) -> tuple[bool, str] | None:
    """Whether the processor was held back by heat or power meanwhile, with the files that say so.

    Intel counts events (``core_throttle_count``), a Raspberry Pi has bits (``get_throttled``), others say by
    how many steps a core's clock is cooled. None where nothing tells.
    """
    said: list[tuple[bool, str]] = []
    for path, text in after.items():
        folder, _, name = path.rpartition("/")
        if name.endswith("_throttle_count") and text.isdigit():
            said.append((int(text) > int(before.get(path) or text), path))
        elif name == "get_throttled":
            bits = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]+)", text.strip())
            said += [(bool(int(bits[1], 16) & _PI_HELD_BACK), path)] if bits else []
        elif name == "cur_state" and _PROCESSOR_COOLING.search(after.get(f"{folder}/type", "")):
            said.append((text.strip().isdigit() and int(text) > 0, path))
    return max(said, default=None)
