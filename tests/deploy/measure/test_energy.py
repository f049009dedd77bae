"""Counters of joules in a folder that stands for /sys/class: machines that run tests seldom have any."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import DeviceError, ToolchainError
from deploy.measure import energy
from deploy.measure.energy import Counter, EnergyPlan, energies, find_counters, joules
from deploy.spec.tensors import TensorSpec

FEEDS = {"x": np.zeros((1, 1), np.float32)}
MOST = 262_143_328_850  # as a Xeon has it: 2^32 - 1 of its units
PLAN = EnergyPlan()
SERVER = {
    "intel-rapl:0": "package-0", "intel-rapl:0:0": "dram", "intel-rapl:0:1": "core",
    "intel-rapl:1": "package-1", "intel-rapl:1:0": "dram",
}  # fmt: skip
LAPTOP = {
    "intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "uncore",
    "intel-rapl:1": "psys", "intel-rapl-mmio:0": "package-0",
}  # fmt: skip


def zones(root: Path, names: Mapping[str, str], value: int = 0) -> Path:
    """Zones as the kernel lists them, all side by side; control types themselves count nothing."""
    for zone, name in names.items():
        folder = root / "powercap" / zone
        folder.mkdir(parents=True)
        (folder.parent / zone.partition(":")[0]).mkdir(exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{value}\n")
        (folder / "max_energy_range_uj").write_text(f"{MOST}\n")
    return root


def sockets(root: Path, labels: Sequence[str]) -> Path:
    """A monitor of the driver amd_energy, and another one that does not say whose energy it is."""
    for monitor, said in (("hwmon0", ["card"]), ("hwmon3", labels)):
        folder = root / "hwmon" / monitor
        folder.mkdir(parents=True)
        for number, label in enumerate(said, 1):
            (folder / f"energy{number}_label").write_text(f"{label}\n")
            (folder / f"energy{number}_input").write_text("5\n")
    return root


def names(root: Path) -> list[str]:
    return [counter.name for counter in find_counters(root)]


class TestWhatIsCounted:
    def test_packages_and_the_memory_beside_them(self, tmp_path: Path) -> None:
        found = names(zones(tmp_path, SERVER))
        assert found == ["package-0", "package-0 dram", "package-1", "package-1 dram"]

    def test_no_joule_twice(self, tmp_path: Path) -> None:
        (counter,) = find_counters(zones(tmp_path, LAPTOP))
        assert counter.file == tmp_path / "powercap" / "intel-rapl:0" / "energy_uj"
        assert counter.most == MOST

    def test_the_platform_where_it_stands_alone(self, tmp_path: Path) -> None:
        assert names(zones(tmp_path, {"intel-rapl:0": "psys"})) == ["psys"]

    def test_sockets_and_not_their_cores(self, tmp_path: Path) -> None:
        (counter,) = find_counters(sockets(tmp_path, ["Ecore000", "Ecore001", "Esocket0"]))
        assert counter.file.name == "energy3_input" and counter.most is None

    def test_zones_go_before_sockets(self, tmp_path: Path) -> None:
        assert names(sockets(zones(tmp_path, LAPTOP), ["Esocket0"])) == ["package-0"]

    def test_what_is_no_processor_is_no_counter(self, tmp_path: Path) -> None:
        with pytest.raises(ToolchainError, match="shows no counter of joules") as caught:
            find_counters(sockets(tmp_path, ["Ecore000"]))
        assert "modprobe" in caught.value.hint

    def test_one_that_only_root_reads_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who runs the tests may be root, who reads everything: so the refusal is made up."""
        zones(tmp_path, LAPTOP)
        file, read = tmp_path / "powercap" / "intel-rapl:0" / "energy_uj", Path.read_text

        def denied(path: Path) -> str:
            if path == file:
                raise PermissionError(13, "Permission denied", str(path))
            return read(path)

        monkeypatch.setattr(Path, "read_text", denied)
        with pytest.raises(ToolchainError, match=f"{file}: .* may not be read by this user") as caught:
            find_counters(tmp_path)
        assert f"sudo chmod a+r {file}" in caught.value.hint

    def test_one_that_holds_no_number(self, tmp_path: Path) -> None:
        zones(tmp_path, LAPTOP)
        (tmp_path / "powercap" / "intel-rapl:0" / "energy_uj").write_text("none")
        with pytest.raises(ToolchainError, match=r"cannot be read: .*'none'"):
            find_counters(tmp_path)


class TestTurns:
    @given(start=st.integers(0, MOST), used=st.integers(1, MOST))
    def test_a_counter_that_begins_again_lost_nothing(self, start: int, used: int) -> None:
        counter = Counter("package-0", Path("energy_uj"), MOST)
        after = start + used
        assert joules([counter], [start], [after if after <= MOST else after - MOST - 1]) == used / 1e6

    def test_several_are_added(self) -> None:
        both = [Counter("a", Path("a"), 999), Counter("b", Path("b"), None)]
        assert joules(both, [900, 10], [100, 30]) == pytest.approx((200 + 20) / 1e6)

    @pytest.mark.parametrize(("after", "said"), [(4, "ran backwards"), (5, "did not move")])
    def test_what_cannot_be_is_told(self, after: int, said: str) -> None:
        with pytest.raises(DeviceError, match=f"energy3_input: .* {said}"):
            joules([Counter("Esocket0", Path("energy3_input"), None)], [5], [after])


class Machine:
    """A clock, and a package that takes constant watts; both go on while somebody runs.

    ``spins`` is for how many seconds a thread stays at work after a run, at ten watts; while somebody else
    runs it does so, too.
    """

    def __init__(self, root: Path, start: int = 0) -> None:
        self.now, self.microjoules, self.order = 0.0, float(start), list[str]()
        self.spins, self.others = 0.0, 0.0
        self.file = zones(root, {"intel-rapl:0": "package-0"}, start) / "powercap/intel-rapl:0/energy_uj"

    def passes(self, seconds: float, watts: float = 0.0) -> None:
        spinning = min(self.spins, seconds)
        self.now, self.spins, self.others = self.now + seconds, self.spins - spinning, self.others + spinning
        self.microjoules += (seconds * watts + spinning * 10) * 1e6
        self.file.write_text(f"{round(self.microjoules) % (MOST + 1)}\n")

    def perf_counter(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return 0.0

    def process_time(self) -> float:
        return self.others


class Runner:
    """Takes so many seconds and watts, the first ``cold`` times a hundred watts more."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    executed_by = "a clock"

    def __init__(
        self, name: str, machine: Machine, seconds: float, watts: float, cold: int = 0, spins: float = 0.0
    ) -> None:
        self.name, self.machine, self.seconds, self.watts, self.cold = name, machine, seconds, watts, cold
        self.spins = spins

    def run(self, feeds: Mapping[str, np.ndarray], want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        self.machine.passes(self.seconds, self.watts + 100 * (self.cold > 0))
        self.cold -= 1
        self.machine.spins = self.spins
        self.machine.order.append(self.name)
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def make(**given: int) -> Machine:
        made = Machine(tmp_path, **given)
        for clock in ("perf_counter", "process_time", "thread_time"):
            monkeypatch.setattr(energy.time, clock, getattr(made, clock))
        monkeypatch.setattr(energy.time, "sleep", made.passes)
        return made

    return make


def used(machine: Machine, *runners: Runner, plan: EnergyPlan = PLAN) -> dict[str, np.ndarray]:
    counters = find_counters(machine.file.parents[2])
    return energies({runner.name: runner for runner in runners}, FEEDS, counters, plan)


def test_joules_are_watts_by_seconds(machine: Callable[..., Machine]) -> None:
    m = machine(start=MOST - 3_000_000)  # the counter begins again after three joules
    found = used(m, Runner("slow", m, 0.05, 20.0), Runner("fast", m, 0.01, 60.0))
    np.testing.assert_allclose(found["slow"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(found["fast"], 0.6, rtol=1e-5)
    assert len(found["slow"]) == len(found["fast"]) == PLAN.rounds


def test_slices_are_equally_long_and_the_order_turns(machine: Callable[..., Machine]) -> None:
    m = machine()
    used(m, Runner("a", m, 0.05, 10.0), Runner("b", m, 0.1, 10.0), plan=EnergyPlan(rounds=4))
    slices = [(name, len(list(each))) for name, each in itertools.groupby(m.order)]
    assert slices == [("a", 4), ("b", 2), ("a", 4), ("b", 4), ("a", 8), ("b", 4), ("a", 4)]


def test_who_is_cold_is_not_charged_for_it(machine: Callable[..., Machine]) -> None:
    m = machine()
    found = used(m, Runner("a", m, 0.1, 10.0, cold=2))
    np.testing.assert_allclose(found["a"], 1.0, rtol=1e-5)


def test_nobody_pays_for_threads_that_another_left_spinning(machine: Callable[..., Machine]) -> None:
    m = machine()
    found = used(m, Runner("spins", m, 0.05, 20.0, spins=0.057), Runner("waits", m, 0.01, 60.0))
    np.testing.assert_allclose(found["waits"], 0.6, rtol=1e-5)


def test_a_thread_that_never_rests_is_waited_for_no_longer_than_half_a_second(
    machine: Callable[..., Machine],
) -> None:
    m = machine()
    used(m, Runner("spins", m, 0.05, 20.0, spins=1e9), plan=EnergyPlan(rounds=1))
    assert m.now == pytest.approx(0.2 + 0.5 + 0.2, abs=0.01)


def test_slow_models_are_run_a_few_times_and_no_more(machine: Callable[..., Machine]) -> None:
    m = machine()
    found = used(m, Runner("a", m, 40.0, 10.0), plan=EnergyPlan(rounds=100, seconds=30.0, least=3))
    assert len(found["a"]) == 3 and len(m.order) == 4
    np.testing.assert_allclose(found["a"], 400.0, rtol=1e-5)


def test_a_zone_that_vanishes_is_named(machine: Callable[..., Machine]) -> None:
    m = machine()

    class Vanishes(Runner):
        def run(self, feeds: Mapping[str, np.ndarray], want: Sequence[str] = ()) -> dict[str, np.ndarray]:
            found = super().run(feeds, want)
            if len(m.order) >= 5:
                m.file.unlink()
            return found

    with pytest.raises(DeviceError, match=f"{m.file}: .* cannot be read any more"):
        used(m, Vanishes("a", m, 0.1, 10.0))


def test_a_zone_that_stands_still_is_named(machine: Callable[..., Machine]) -> None:
    m = machine()
    with pytest.raises(DeviceError, match=f"{m.file}: .* did not move while a model ran"):
        used(m, Runner("a", m, 0.1, 0.0))
