"""Joules of an inference, by the counters of energy that this machine has, for several runners in turn.

The counters are of whole processor packages: what a runner is charged with is everything that they used
while it alone ran, idle power and whatever else was at work included. Who is slower pays idle power for
longer, as on a device. All run in turn, so that a machine which warms up or is busy is so for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.adapter.protocol import Arrays, Runner
from deploy.errors import DeviceError, ToolchainError

_LOOK_S, _AT_WORK, _PATIENCE_S = 0.002, 0.1, 0.5
"""Other threads are at work where they take this share of a look; for so long that is waited for to end."""
ROOT = Path("/sys/class")
"""Where Linux lists its zones of power capping and its monitors of hardware."""
_PACKAGES, _PLATFORM, _MEMORY = "package-", "psys", "dram"
_SOCKETS = "Esocket"


@dataclass(frozen=True)
class Counter:
    """A counter of microjoules. ``most`` is its largest value, after which it begins again at 0; None where
    it has 64 bits and never does."""

    name: str
    file: Path
    most: int | None


@dataclass(frozen=True)
class EnergyPlan:
    """How long to measure. A round runs every runner once, for ``slice_s`` seconds, one inference at least;
    after ``seconds`` no round begins but the first ``least``.

    Counters move about once in a millisecond (Intel SDM volume 3B, "RAPL Interfaces"; amd_energy.rst): half a
    percent of a slice.
    """

    slice_s: float = 0.2
    rounds: int = 8
    seconds: float = 30.0
    least: int = 3


def find_counters(root: Path | None = None) -> tuple[Counter, ...]:
    """The counters that together hold all that the processors use, each joule once.

    Zones of Linux's power capping framework (Documentation/power/powercap/powercap.rst: ``energy_uj``, and
    ``max_energy_range_uj``, its range): packages, and their memory, which is not part of them. Their subzones
    ``core`` and ``uncore`` are. ``psys``, the whole platform, holds the packages too and counts where it
    stands alone. Where several control types count the same packages (intel-rapl, intel-rapl-mmio) the first
    does. Without zones the sockets of the driver amd_energy (Documentation/hwmon/amd_energy.rst: labels
    ``Esocket0``, 64 bits, microjoules), whose cores are part of them; other monitors do not say whose energy
    it is.

    ``root`` stands for /sys/class. Raises ToolchainError where there is none, or one that must not be read.
    """
    try:
        found = tuple(_zones((root or ROOT) / "powercap")) or tuple(_sockets((root or ROOT) / "hwmon"))
        for counter in found:
            _value(counter)
    except PermissionError as e:  # CVE-2020-8694: who reads them may guess at other people's secrets
        raise ToolchainError(
            f"{e.filename}: this counter of joules may not be read by this user",
            hint=f"kernels keep it to root since CVE-2020-8694: run as root, or sudo chmod a+r {e.filename}",
        ) from e
    except (OSError, ValueError) as e:
        raise ToolchainError(
            f"a counter of joules of this machine cannot be read: {e}",
            hint="read it with cat: where that fails too, its driver has to be loaded anew",
        ) from e
    if not found:
        raise ToolchainError(
            "this machine shows no counter of joules: neither packages under /sys/class/powercap nor sockets "
            "under /sys/class/hwmon",
            hint="virtual machines and containers mostly hide them; elsewhere Linux may want their driver: "
            "modprobe intel_rapl_msr (Intel, and AMD from Zen on) or amd_energy",
        )
    return found


def joules(counters: Sequence[Counter], before: Sequence[int], after: Sequence[int]) -> float:
    """What was used between two readings, which lie less than one turn of a counter apart.

    Raises DeviceError for a counter that ran backwards and has no turns, and where none moved.

    >>> counters = [Counter("package-0", Path("energy_uj"), most=999_999)]
    >>> joules(counters, [100_000], [350_000]), joules(counters, [900_000], [150_000])
    (0.25, 0.25)
    """
    total = 0
    for counter, start, end in zip(counters, before, after, strict=True):
        if end < start and counter.most is None:
            raise _misbehaves(counter, "ran backwards")
        total += end - start if counter.most is None else (end - start) % (counter.most + 1)
    if total == 0:
        raise _misbehaves(counters[0], "did not move while a model ran")
    return total / 1e6


def energies(
    runners: Mapping[str, Runner],
    feeds: Arrays,
    counters: Sequence[Counter],
    plan: EnergyPlan = EnergyPlan(),
) -> dict[str, np.ndarray]:
    """Joules of one inference of every runner, by round: shape [rounds], the same for all.

    All run on the same feeds, in turn, in an order that turns round by round. A first round warms up and does
    not count; nobody pays for threads that the one before left spinning. Raises DeviceError where a counter
    vanishes or stands still.
    """
    order = list(runners)
    found: dict[str, list[float]] = {name: [] for name in order}
    for name in order:
        _until(runners[name], feeds, plan.slice_s)
    start, rounds = time.perf_counter(), 0
    while rounds < plan.rounds and (rounds < plan.least or time.perf_counter() - start < plan.seconds):
        for name in order:
            settle()
            before = _read(counters)
            count = _until(runners[name], feeds, plan.slice_s)
            found[name].append(joules(counters, before, _read(counters)) / count)
        order.reverse()
        rounds += 1
    return {name: np.asarray(each) for name, each in found.items()}


def settle() -> None:
    """Wait until no other thread of this process is at work, half a second at most.

    Threads of a runtime may wait for its next run at full speed: after one of two threads ONNX Runtime 1.32
    keeps a core busy for 57 milliseconds (2 GHz Xeon), OpenVINO and LiteRT for about one.
    """
    end = time.perf_counter() + _PATIENCE_S
    while time.perf_counter() < end:
        start, others = time.perf_counter(), time.process_time() - time.thread_time()
        time.sleep(_LOOK_S)
        worked = time.process_time() - time.thread_time() - others
        if worked < _AT_WORK * (time.perf_counter() - start):
            return


def _until(runner: Runner, feeds: Arrays, seconds: float) -> int:
    """Run for so long; returns how often."""
    end, count = time.perf_counter() + seconds, 0
    while count == 0 or time.perf_counter() < end:
        runner.run(feeds)
        count += 1
    return count


def _zones(folder: Path) -> Iterator[Counter]:
    """Of the first control type that knows packages; the platform where none does."""
    zones = {path.name: _text(path / "name") for path in folder.glob("*:*") if (path / "energy_uj").exists()}
    for kind in (_PACKAGES, _PLATFORM):
        tops = sorted(zone for zone, name in zones.items() if zone.count(":") == 1 and name.startswith(kind))
        for top in (top for top in tops if _control_type(top) == min(map(_control_type, tops))):
            yield _zone(folder / top, zones[top])
            for part in sorted(zone for zone in zones if zone.startswith(f"{top}:")):
                if zones[part] == _MEMORY:
                    yield _zone(folder / part, f"{zones[top]} {_MEMORY}")
        if tops:
            return


def _control_type(zone: str) -> str:
    return zone.partition(":")[0]


def _zone(folder: Path, name: str) -> Counter:
    return Counter(name, folder / "energy_uj", int(_text(folder / "max_energy_range_uj")))


def _sockets(folder: Path) -> Iterator[Counter]:
    for label in sorted(folder.glob("hwmon*/energy*_label")):
        if _text(label).startswith(_SOCKETS):
            yield Counter(_text(label), label.with_name(label.name.replace("_label", "_input")), None)


def _text(file: Path) -> str:
    return file.read_text().strip()


def _value(counter: Counter) -> int:
    return int(_text(counter.file))


def _read(counters: Sequence[Counter]) -> list[int]:
    values = []
    for counter in counters:
        try:
            values.append(_value(counter))
        except (OSError, ValueError) as e:
            raise _misbehaves(counter, f"cannot be read any more: {e}") from e
    return values


def _misbehaves(counter: Counter, how: str) -> DeviceError:
    return DeviceError(
        f"{counter.file}: this counter of joules {how}",
        hint="build again; where that stays so, with another --objective",
    )
