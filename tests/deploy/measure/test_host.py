"""What the host says of itself, from recorded files and on the machine at hand."""

import os
import platform

import psutil
import pytest

from deploy.errors import message_text
from deploy.measure.host import host, memory_limit, read_cpuinfo, read_sysctl, this_machine

X86 = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse avx avx2 avx512f avx_vnni avx512_vnni amx_int8 amx_bf16
bugs\t\t: spectre_v1

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse avx avx2 avx512f avx_vnni avx512_vnni amx_int8 amx_bf16
"""
PI = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes fphp asimdhp asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Revision\t: c04170
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
UNEQUAL = "Features\t: fp asimd asimddp i8mm\n\nFeatures\t: fp asimd asimddp\n"


def test_cpuinfo_of_an_x86_server():
    name, features = read_cpuinfo(X86)
    assert name == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert {"avx2", "avx_vnni", "avx512_vnni", "amx_int8"} <= features and "spectre_v1" not in features


def test_cpuinfo_of_an_arm_board():
    name, features = read_cpuinfo(PI)
    assert name == "Raspberry Pi 5 Model B Rev 1.0"
    assert {"asimddp", "fphp"} <= features and "i8mm" not in features


def test_only_what_all_cores_have_counts():
    assert read_cpuinfo(UNEQUAL) == ("", {"fp", "asimd", "asimddp"})
    assert read_cpuinfo("") == ("", frozenset())


def test_macs_speak_linux():
    silicon = (
        "machdep.cpu.brand_string: Apple M2\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 1\n"
    )
    assert read_sysctl(silicon + "hw.optional.arm.FEAT_BF16: 0\n") == ("Apple M2", {"asimddp", "i8mm"})
    intel = (
        "machdep.cpu.brand_string: Intel(R) Core(TM) i9\nmachdep.cpu.leaf7_features: SMEP BMI1 AVX2 AVX512F\n"
    )
    assert read_sysctl(intel) == ("Intel(R) Core(TM) i9", {"avx2", "avx512f"})


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {"memory.max": "1000"}, 1000),
        ("0::/pod/box\n", {"pod/box/memory.max": "max", "pod/memory.max": "500", "memory.max": "900"}, 500),
        ("0::/elsewhere\n", {"memory.max": "700"}, 700),  # the path is the outer one, the mount the inner
        ("5:cpu:/a\n4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "300"}, 300),
        ("5:cpu:/a\n", {}, None),
    ],
)
def test_the_tightest_limit_of_the_control_groups_holds(tmp_path, groups, files, limit):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert memory_limit(tmp_path) == limit


def test_no_control_groups_no_limit(tmp_path):
    assert memory_limit(tmp_path) is None


def test_this_machine():
    found = host()
    assert found is host()
    assert found.cpu and found.arch not in ("amd64", "arm64")
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 0 < found.memory_bytes <= psutil.virtual_memory().total
    if platform.system() == "Linux" and found.arch == "x86_64":
        assert "sse2" in found.features


def test_what_measurements_belong_to_names_the_flags_that_matter() -> None:
    machine = this_machine()
    assert (machine.cpu, machine.arch, machine.cores) == (host().cpu, host().arch, host().cores)
    assert set(machine.features) <= host().features
    assert "hypervisor" not in machine.features
    assert machine == this_machine() and machine.device == ""
    assert machine.cpu == message_text(machine.cpu)
    assert this_machine("NVIDIA H200").device == "NVIDIA H200"
