"""The machine's figures: from recorded files of four kinds of machine, and on the one at hand."""

import math
import time
from datetime import date

import numpy as np
import pytest

from deploy.measure.host import host
from deploy.spec.profile import Figure
from deploy.survey import bandwidth as bandwidth_module
from deploy.survey import machine, readings
from deploy.survey.bandwidth import bandwidth, levels
from deploy.survey.clock import add_chain, effective_clock
from deploy.survey.pulse import pulse
from deploy.survey.readings import Cache

TODAY = date(2026, 11, 21)
CPU = "/sys/devices/system/cpu/cpu"


def cpu_files(cpus, caches, **others):
    """Caches as (index, level, type, size, list of processors for each processor); other files by key."""
    files = {}
    for cpu in cpus:
        for index, level, kind, size, shared in caches:
            base = f"{CPU}{cpu}/cache/index{index}"
            files |= {f"{base}/level": level, f"{base}/type": kind, f"{base}/shared_cpu_list": shared(cpu)}
            files |= {f"{base}/size": size} if size else {}
        files |= {f"{CPU}{cpu}/{key}": text(cpu) for key, text in others.items()}
    return files


def xeon():
    """A Xeon Platinum 8481C of four cores and eight threads, bare metal."""
    pair = lambda cpu: f"{cpu % 4},{cpu % 4 + 4}"  # noqa: E731
    files = cpu_files(
        range(8),
        [
            (0, "1", "Data", "48K", pair),
            (1, "1", "Instruction", "32K", pair),
            (2, "2", "Unified", "2048K", pair),
            (3, "3", "Unified", "107520K", lambda cpu: "0-7"),
        ],
        **{
            "topology/thread_siblings_list": pair,
            "cpufreq/base_frequency": lambda cpu: "2700000",
            "cpufreq/cpuinfo_max_freq": lambda cpu: "3800000",
            "cpufreq/scaling_governor": lambda cpu: "performance",
            "thermal_throttle/core_throttle_count": lambda cpu: "12",
            "thermal_throttle/package_throttle_count": lambda cpu: "40",
        },
    )
    return files | {
        "/proc/cpuinfo": "model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz\ncpu MHz\t\t: 3799.998",
        "/proc/self/cgroup": "0::/box",
        "/sys/fs/cgroup/box/cpu.max": "300000 100000",
        "/sys/fs/cgroup/cpu.max": "max 100000",
        "/sys/class/thermal/thermal_zone0/type": "acpitz",
        "/sys/class/thermal/thermal_zone0/temp": "27800",
        "/sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
        "/sys/class/thermal/thermal_zone1/temp": "61000",
        "/sys/class/thermal/cooling_device0/type": "Processor",
        "/sys/class/thermal/cooling_device0/cur_state": "0",
        "/sys/class/hwmon/hwmon2/name": "coretemp",
        "/sys/class/hwmon/hwmon2/temp1_input": "62000",
        "/sys/class/hwmon/hwmon2/temp2_input": "58000",
        "/sys/class/hwmon/hwmon0/name": "nvme",
        "/sys/class/hwmon/hwmon0/temp1_input": "71850",
    }


def ryzen():
    """A Ryzen 9 7950X: two chiplets of eight cores; amd-pstate tells no base frequency, ACPI does."""
    chiplet = lambda cpu: "0-7,16-23" if cpu % 16 < 8 else "8-15,24-31"  # noqa: E731
    pair = lambda cpu: f"{cpu % 16},{cpu % 16 + 16}"  # noqa: E731
    files = cpu_files(
        range(32),
        [
            (0, "1", "Data", "32K", pair),
            (2, "2", "Unified", "1024K", pair),
            (3, "3", "Unified", "32768K", chiplet),
        ],
        **{
            "topology/thread_siblings_list": pair,
            "cpufreq/cpuinfo_max_freq": lambda cpu: "5881000" if cpu % 16 < 8 else "5738000",
            "cpufreq/scaling_governor": lambda cpu: "powersave",
            "acpi_cppc/nominal_freq": lambda cpu: "4500",
        },
    )
    return files | {
        "/proc/cpuinfo": "model name\t: AMD Ryzen 9 7950X 16-Core Processor\ncpu MHz\t\t: 400.000",
        "/sys/class/hwmon/hwmon1/name": "k10temp",
        "/sys/class/hwmon/hwmon1/temp1_input": "45375",
        "/sys/class/hwmon/hwmon1/temp3_input": "38250",
    }


def raspberry():
    """A Raspberry Pi 5, too warm."""
    files = cpu_files(
        range(4),
        [
            (0, "1", "Data", "64K", str),
            (1, "1", "Instruction", "64K", str),
            (2, "2", "Unified", "512K", str),
            (3, "3", "Unified", "2048K", lambda cpu: "0-3"),
        ],
        **{
            "topology/thread_siblings_list": str,
            "cpufreq/cpuinfo_max_freq": lambda cpu: "2400000",
            "cpufreq/scaling_governor": lambda cpu: "ondemand",
        },
    )
    return files | {
        "/proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 108.00\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0",
        "/proc/self/cgroup": "0::/user.slice/user-1000.slice/session-1.scope",
        "/sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "/sys/class/thermal/thermal_zone0/temp": "84500",
        "/sys/class/hwmon/hwmon0/name": "cpu_thermal",
        "/sys/class/hwmon/hwmon0/temp1_input": "84500",
        "/sys/class/hwmon/hwmon1/name": "rp1_adc",
        "/sys/class/hwmon/hwmon1/temp1_input": "53800",
        "/sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "e0008",
    }


M1_PRO = """hw.ncpu: 8
hw.byteorder: 1234
hw.memsize: 17179869184
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.cachelinesize: 128
hw.l1icachesize: 131072
hw.l1dcachesize: 65536
hw.l2cachesize: 4194304
hw.nperflevels: 2
hw.perflevel0.physicalcpu: 6
hw.perflevel0.logicalcpu: 6
hw.perflevel0.l1icachesize: 196608
hw.perflevel0.l1dcachesize: 131072
hw.perflevel0.l2cachesize: 12582912
hw.perflevel0.cpusperl2: 3
hw.perflevel0.name: Performance
hw.perflevel1.l1dcachesize: 65536
hw.perflevel1.cpusperl2: 2
"""
INTEL_MAC = """hw.physicalcpu: 6
hw.logicalcpu: 12
hw.cpufrequency: 2600000000
hw.cpufrequency_max: 2600000000
hw.l1dcachesize: 32768
hw.l2cachesize: 262144
hw.l3cachesize: 12582912
"""


def values(facts):
    return {name: figure.value for name, figure in facts.items()}


def test_a_xeon():
    files, usable = xeon(), range(8)
    found = [(c.name, c.kib, c.shared_by, c.count) for c in readings.caches(files, usable)]
    assert found == [("l1d", 48, 2, 4), ("l2", 2048, 2, 4), ("l3", 107520, 8, 1)]
    cores = values(readings.core_facts(files, usable, TODAY))
    assert cores == {"physical_cores": 4, "threads_per_core": 2, "cpu_quota": 3.0}
    clock = readings.clock_facts(files, usable, TODAY)
    assert values(clock) == {"clock_nominal": 2700.0, "clock_max": 3800.0, "governor": "performance"}
    assert clock["clock_nominal"].source.endswith("cpu0/cpufreq/base_frequency")
    degrees = readings.temperature(files)
    assert degrees == (62.0, "/sys/class/hwmon/hwmon2/temp1_input"), "not the disk's 71.85"


def test_heat_is_told_by_what_changed_while_measuring():
    before = xeon()
    assert readings.throttled(before, before)[0] is False
    counter = f"{CPU}3/thermal_throttle/core_throttle_count"
    assert readings.throttled(before, before | {counter: "13"}) == (True, counter)
    cooling = "/sys/class/thermal/cooling_device0/cur_state"
    assert readings.throttled(before, before | {cooling: "3"}) == (True, cooling)
    assert readings.throttled(raspberry(), raspberry())[0] is True, "bit 3 is set"
    firmware = next(path for path in raspberry() if path.endswith("get_throttled"))
    assert readings.throttled({}, {firmware: "e0000"})[0] is False, "it was, but no longer is"
    assert readings.throttled({}, {}) is None


def test_a_part_of_a_machine():
    """Of what a container may use only that counts."""
    usable = (1, 5, 2)
    cores = values(readings.core_facts(xeon(), usable, TODAY))
    assert cores == {"physical_cores": 2, "threads_per_core": 2, "cpu_quota": 3.0}
    found = [(c.name, c.shared_by, c.count) for c in readings.caches(xeon(), usable)]
    assert found == [("l1d", 2, 2), ("l2", 2, 2), ("l3", 3, 1)]


def test_a_ryzen():
    files, usable = ryzen(), range(32)
    found = [(c.name, c.kib, c.shared_by, c.count) for c in readings.caches(files, usable)]
    assert found == [("l1d", 32, 2, 16), ("l2", 1024, 2, 16), ("l3", 32768, 16, 2)]
    clock = values(readings.clock_facts(files, usable, TODAY))
    assert clock == {"clock_nominal": 4500.0, "clock_max": 5881.0, "governor": "powersave"}
    assert readings.fastest(files, (8, 9, 3)) == 3
    assert readings.temperature(files)[0] == 45.375
    assert readings.cpu_quota(files) is None


def test_a_raspberry_pi():
    files, usable = raspberry(), range(4)
    found = [(c.name, c.kib, c.shared_by, c.count) for c in readings.caches(files, usable)]
    assert found == [("l1d", 64, 1, 4), ("l2", 512, 1, 4), ("l3", 2048, 4, 1)]
    clock = values(readings.clock_facts(files, usable, TODAY))
    assert clock == {"clock_max": 2400.0, "governor": "ondemand"}
    assert readings.temperature(files)[0] == 84.5
    older = {path: text for path, text in files.items() if not path.endswith("/size")}
    assert readings.caches(older, usable) == [], "older kernels know the caches, not their sizes"


def test_macs():
    found = [(c.name, c.kib, c.shared_by, c.count) for c in readings.mac_caches(M1_PRO)]
    assert found == [("l1d", 128, 1, 6), ("l2", 12288, 3, 2)], "of the fast cores"
    assert values(readings.mac_core_facts(M1_PRO, TODAY)) == {"physical_cores": 8, "threads_per_core": 1}
    found = [(c.name, c.kib, c.shared_by) for c in readings.mac_caches(INTEL_MAC)]
    assert found == [("l1d", 32, 1), ("l2", 256, 1), ("l3", 12288, 12)]
    facts = values(readings.mac_core_facts(INTEL_MAC, TODAY))
    assert facts["threads_per_core"] == 2 and facts["clock_nominal"] == 2600.0
    assert readings.mac_caches("") == [] and readings.mac_core_facts("", TODAY) == {}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"/proc/self/cgroup": "0::/a/b", "/sys/fs/cgroup/a/cpu.max": "150000 100000"}, 1.5),
        (
            {
                "/proc/self/cgroup": "4:cpu,cpuacct:/pod\n0::/",
                "/sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "50000",
                "/sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        ({"/proc/self/cgroup": "nonsense"}, None),
        ({}, None),
    ],
)
def test_processor_time_that_is_rationed(files, quota):
    found = readings.cpu_quota(files)
    assert (None if found is None else found[0]) == quota


def test_files_are_read_as_far_as_they_are_there(tmp_path):
    for path, text in {**xeon(), "/sys/class/thermal/thermal_zone2/temp/": ""}.items():
        file = tmp_path / path.strip("/")
        if path.endswith("/"):
            file.mkdir(parents=True)  # reading it fails, as a sleeping sensor's file does
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
    read = readings.read_files(tmp_path) | readings.read_files(tmp_path, changing=True)
    assert read == xeon()
    assert readings.read_files(tmp_path / "hidden") == {}


def test_a_machine_that_tells_nothing():
    assert readings.caches({}, range(4)) == []
    assert readings.core_facts({}, range(4), TODAY) == readings.clock_facts({}, range(4), TODAY) == {}
    assert readings.temperature({}) is None
    garbled = {f"{CPU}0/cache/index0/level": "\x00", f"{CPU}0/cpufreq/cpuinfo_max_freq": "<unknown>"}
    assert readings.caches(garbled, (0,)) == [] and readings.clock_facts(garbled, (0,), TODAY) == {}


def test_working_sets_fit_the_caches():
    caches = readings.caches(ryzen(), range(32))
    one = {level.name: level.size for level in levels(caches, 64 * 2**30, 1, quick=False)}
    assert one == {"l1": 16 * 2**10, "l2": 512 * 2**10, "l3": 16 * 2**20, "memory": 256 * 2**20}
    every = {level.name: level.size for level in levels(caches, 64 * 2**30, 32, quick=False)}
    assert every == {"l1": 8 * 2**10, "l2": 256 * 2**10, "l3": 2**20, "memory": 16 * 2**20}
    small = levels(caches, 2**29, 1, quick=False)
    assert small[-1].size == 2**26, "an eighth of what there is"
    thin = [Cache("l1d", 64, 1, 4, ""), Cache("l2", 2048, 4, 1, ""), Cache("l3", 2048, 4, 1, "")]
    assert [level.name for level in levels(thin, 2**33, 4, quick=True)] == ["l1", "l2", "memory"]
    assert [level.name for level in levels([], 2**33, 1, quick=True)] == ["l1", "l2", "memory"]


def test_kernels_do_what_is_counted():
    """By the numbers that they leave: so many passes over so many bytes."""
    size = 16 * 2**10
    read, copy, update = (bandwidth_module._KERNELS[name](size) for name in ("read", "copy", "update"))
    assert read.bytes == copy.bytes == size and update.bytes == size * 3 // 2
    sums = read.passes(3)()
    assert sums.shape[0] == 3 and np.allclose(sums.sum(axis=1), size / 8 * 0.25)
    added = update.passes(5)()  # begins with the first row, and five are added to it
    assert np.array_equal(added, np.full(size // 8, 0.5 + 5 * 0.5, np.float32))


def test_large_arrays_are_gone_over_in_pieces():
    """All of them, one behind the other, and then again."""
    size = 20 * 2**20
    a, b = np.zeros(size // 8, np.float32), np.zeros(size // 8, np.float32)
    pieces = bandwidth_module._pieces(a, b)
    assert len(pieces) == 2 and all(p.base is a and q.base is b for p, q in pieces)
    seen = []
    stream = bandwidth_module._in_pieces(
        [(p.nbytes, lambda i=i: seen.append(i)) for i, (p, _) in enumerate(pieces)]
    )
    stream.passes(3)()
    stream.passes(2)()
    assert seen == [0, 1, 0, 1, 0] and stream.bytes == size // 4
    for name, arrays in (("read", 2), ("copy", 2), ("update", 3)):
        assert bandwidth_module._KERNELS[name](size).bytes == pytest.approx(arrays * size / 4, rel=0.01)


def test_bandwidth_agrees_with_plain_copies():
    """Against one large copy by numpy itself, timed here; others may be at work, so one of a few tries."""
    a, b = np.full(2**23, 0.5, np.float32), np.zeros(2**23, np.float32)
    ratios = []
    for _ in range(5):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            b[:] = a
            times.append(time.perf_counter() - start)
        ratios.append(bandwidth("copy", 2**26, 1, 5).gb_s / (2 * a.nbytes / np.median(times) / 1e9))
        if 0.3 < ratios[-1] < 3:
            return
    raise AssertionError(ratios)


def test_several_threads_count_together():
    rate = bandwidth("read", 16 * 2**10, 2, 3)
    assert rate.gb_s > 0 and rate.spread >= 0


def test_a_thread_that_fails_leaves_none_waiting(monkeypatch):
    made = []

    def failing(size):
        made.append(size)
        if len(made) == 1:
            raise MemoryError("no room")
        time.sleep(0.05)
        return bandwidth_module._read(size)

    monkeypatch.setitem(bandwidth_module._KERNELS, "failing", failing)
    with pytest.raises(MemoryError, match="no room"):
        bandwidth("failing", 2**14, 2, 2)


def test_the_chain_adds():
    chain = add_chain()
    if chain is None:
        pytest.skip("only on x86-64 Linux")
    assert chain(1000, 3) == 64 * 1000 * 3
    found = effective_clock(20)
    assert found is not None and 300 < found[0] < 8000, "megahertz of a processor"


def test_this_machine():
    start = time.process_time()
    with pulse(2, 0.0) as state:
        facts = machine.machine_facts(quick=True, threads=2, pulse=state)
    assert time.process_time() - start < 6, "3 s are meant, and two threads are at work"
    assert facts["cores"].value == host().cores
    for name in ("read_l1", "copy_memory", "update_memory_all", "gemm_float", "gemm_float_all"):
        assert facts[name].value > 0 and facts[name].source.startswith("measured: ")
        assert "spread" in facts[name].source and facts[name].unit in ("GB/s", "GFLOP/s")
    assert facts["noise"].value >= 1 and 0 < facts["cpu_share"].value <= 1
    assert all(isinstance(figure, Figure) and figure.date == date.today() for figure in facts.values())
    assert not any(isinstance(f.value, float) and math.isnan(f.value) for f in facts.values())


def test_a_machine_that_hides_its_files(monkeypatch):
    """As a container may: what is measured is there all the same."""
    monkeypatch.setattr(machine.readings, "read_files", lambda changing=False: {})
    monkeypatch.setattr(machine, "effective_clock", lambda rounds: None)
    monkeypatch.setattr(machine, "_SIDE", 64)
    monkeypatch.setattr(machine, "bandwidth", lambda *args: bandwidth_module.Rate(1.0, 0.0))
    with pulse(1, 0.0) as state:
        facts = machine.machine_facts(quick=True, threads=1, pulse=state)
    assert facts["read_l1"].source.endswith("16 KiB, sizes of caches assumed, spread 0.00")
    assert {"cores", "read_l1", "read_memory", "gemm_float", "noise"} <= set(facts)
    assert not {"l1d", "clock_max", "clock_effective", "temperature", "throttled", "read_l1_all"} & set(facts)
