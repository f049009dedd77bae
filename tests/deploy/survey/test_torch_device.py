"""The survey of an accelerator, run on the CPU as far as that goes, and what CUDA would be asked."""

import importlib.util
import json
import stat
import sys
from contextlib import contextmanager
from datetime import date
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from deploy.progress import Silent
from deploy.spec.document import parse
from deploy.spec.overlay import Cost, Failure, Overlay
from deploy.survey import torch_device, torch_facts, torch_kernels
from deploy.survey.torch_facts import SMALL, Scale, read_reasons, read_smi, smi_facts, sparsity
from deploy.survey.torch_kernels import Effort, measure_point, repeated, stopwatch, timed
from deploy.survey.torch_points import batched, conv, elementwise, gemm, norm, points, softmax

TODAY = date(2026, 11, 21)
SHORT = Effort(rounds=3, window_ms=0.05, links=2)


@pytest.fixture(autouse=True)
def _as_it_was():
    """Settings of PyTorch that a survey changes in its own process; one thread, as there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cudnn.benchmark = False


class Hearing(Silent):
    def __init__(self):
        self.notes, self.warnings, self.steps = [], [], []

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)

    def advance(self, done, total):
        self.steps.append((done, total))


POINTS = [
    conv("conv", 1, 8, 6),
    conv("pointwise", 2, 8, 6),
    conv("depthwise", 1, 12, 6),
    gemm(32, 16, 24),
    batched(3, 4, 8, 5),
    elementwise(100),
    softmax(5, 7),
    norm(5, 8),
]


def test_points_count_what_the_operators_define():
    """Against modules of PyTorch: parameters, elements in and out, and MACs counted one by one."""
    for point, groups in ((POINTS[0], 1), (POINTS[2], 12)):
        batch, channels, side = point.sizes
        module = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        x = torch.ones(batch, channels, side, side)
        y = module(x)
        assert point.moved == x.numel() + y.numel() + module.weight.numel()
        assert point.macs == y.numel() * module.weight[0].numel()
        assert point.depth == module.weight[0].numel()
    assert (POINTS[0].align, POINTS[2].align) == (8, 4)
    assert (POINTS[3].macs, POINTS[3].moved, POINTS[3].depth) == (
        32 * 16 * 24,
        32 * 16 + 16 * 24 + 32 * 24,
        16,
    )
    assert POINTS[3].align == 8 and gemm(1, 128, 1000).align == 8 and gemm(1, 4096, 4096).align == 64
    assert POINTS[4].macs == 3 * 4 * 8 * 5
    assert [p.macs for p in POINTS[5:]] == [0, 0, 0]
    assert POINTS[5].bytes("float") == 1200 and POINTS[5].bytes("fp16") == 600
    assert POINTS[3].bytes("int8") == POINTS[3].bytes("fp8") == POINTS[3].moved


def test_everything_that_is_measured():
    full, quick = points(quick=False), points(quick=True)
    assert len(full) == len(set(full)) and set(quick) < set(full)
    assert {p.op for p, _ in quick} == {p.op for p in POINTS}
    assert {how for p, how in quick if p.op == "gemm"} == {"float", "fp16", "bf16", "int8", "fp8"}
    assert {how for p, how in full if p.op != "gemm"} == {"float", "fp16", "bf16"}
    light = points(quick=False, most=10**6)
    assert light and max(p.macs for p, _ in light) <= 10**6
    assert {p.align for p, _ in full} >= {4, 64}, "sizes that do not fill a vector, too"


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.op)
def test_kernels_compute_what_they_are_called(point):
    """The last of a chain against float64, in float; then every precision is timed."""
    torch.manual_seed(3)
    kernels = torch_kernels._MAKERS[point.op](point, "float", "cpu", 2)
    assert len(kernels) == 2
    with torch.inference_mode():
        result = kernels[-1]()
    torch.manual_seed(3)
    tensors = []
    if point.op in ("conv", "pointwise", "depthwise"):
        batch, channels, side = point.sizes
        kernel = 1 if point.op == "pointwise" else 3
        groups = channels if point.op == "depthwise" else 1
        x = torch.randn(batch, channels, side, side)
        tensors = [torch.randn(channels, channels // groups, kernel, kernel) for _ in range(2)]
        weight, bias = tensors[-1] / point.depth**0.5, torch.randn(channels)
        double = functional.conv2d(
            x.double(), weight.double(), bias.double(), padding=kernel // 2, groups=groups
        )
    elif point.op == "gemm":
        x = torch.randn(point.sizes[:2])
        tensors = [torch.randn(point.sizes[2], point.sizes[1]) for _ in range(2)]
        double = x.double() @ (tensors[-1] / point.depth**0.5).double().t()
    elif point.op == "batched":
        x = torch.randn(point.sizes[:3])
        tensors = [torch.randn(point.sizes[0], *point.sizes[2:]) for _ in range(2)]
        double = x.double() @ tensors[-1].double()
    elif point.op == "elementwise":
        double = sum([torch.randn(point.sizes) for _ in range(3)][::2]).double()
    else:
        x = [torch.randn(point.sizes) for _ in range(2)][-1].double()
        scale, bias = (torch.randn(point.sizes[1]).double() for _ in range(2))
        double = (
            torch.softmax(x, -1)
            if point.op == "softmax"
            else functional.layer_norm(x, (point.sizes[1],), scale, bias)
        )
    assert torch.allclose(result.double(), double, atol=1e-5, rtol=1e-4)
    for precision in ("float", "fp16", "bf16"):
        cost = measure_point(point, precision, "cpu", SHORT)
        assert isinstance(cost, Cost) and cost.ms > 0 and cost.spread >= 0
        assert (cost.op, cost.precision, cost.macs) == (point.op, precision, point.macs)
        assert cost.bytes == point.bytes(precision) and cost.shape == point.shape


def test_products_of_integers_are_exact():
    torch.manual_seed(5)
    kernel = torch_kernels._products(POINTS[3], "int8", "cpu", 1)[0]
    found = kernel()
    torch.manual_seed(5)
    x, w = (torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((32, 16), (24, 16)))
    assert torch.equal(found, x.int() @ w.int().t())


def test_what_a_device_cannot_do_is_a_failure():
    found = measure_point(conv("conv", 1, 8, 6), "float", "nowhere", SHORT)
    assert isinstance(found, Failure) and found.reason
    nowhere = measure_point(gemm(4, 4, 4), "float", "cuda", SHORT)
    if not torch.cuda.is_available():
        assert isinstance(nowhere, Failure) and "CUDA" in nowhere.reason
    sparse = sparsity("int8", "cpu", Scale(1, 64), SHORT, TODAY)
    assert isinstance(sparse, Failure) and "2:4" in sparse.shape and "CUDA" in sparse.reason


def test_repetitions_share_the_time():
    """Against the same work timed by hand: a chain of links and windows is divided out."""
    a = torch.randn(192, 192)
    work = lambda: torch.mm(a, a)  # noqa: E731
    ratios = []
    for _ in range(5):
        chained = timed(lambda: [work(), work()], "cpu", Effort(9, 2.0), links=2).ms
        alone = float(np.median([stopwatch("cpu")(work) for _ in range(50)]))
        ratios.append(chained / alone)
        if 0.3 < ratios[-1] < 3:
            return
    raise AssertionError(ratios)


def test_what_cuda_is_asked(monkeypatch):
    """CUDA itself is missing: that the calls and their order are those of PyTorch's notes on CUDA graphs."""
    said = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            said.append("record")

        def synchronize(self):
            said.append("wait")

        def elapsed_time(self, end):
            return 6.0

    class Stream:
        def wait_stream(self, other):
            said.append("wait_stream")

    class Graph:
        def replay(self):
            said.append("replay")

    @contextmanager
    def capture(graph):
        said.append("capture")
        yield
        said.append("captured")

    @contextmanager
    def on(stream):
        yield

    for name, fake in {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": capture,
        "stream": on,
        "current_stream": Stream,
        "synchronize": lambda: said.append("synchronize"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    work = lambda: said.append("work")  # noqa: E731
    run = repeated(work, 2, "cuda:0")
    warm = ["wait_stream", "work", "work", "work", "wait_stream"]
    assert said == [*warm, "capture", "work", "work", "captured"]
    said.clear()
    assert stopwatch("cuda:0")(run) == 6.0
    assert said == ["synchronize", "record", "replay", "record", "wait"]
    said.clear()
    repeated(work, 3, "cuda", captured=False)()
    assert said == ["work"] * 3
    timing = timed(work, "cuda", Effort(4, 18.0), links=2)
    assert np.allclose(timing.rounds, 6.0 / (3 * 2)) and timing.spread == 0, "3 of 6 ms fill 18"


@pytest.mark.parametrize(("device", "chosen"), [("cuda", []), ("cuda:1", ["cuda:1"])])
def test_what_a_survey_of_cuda_begins_with(monkeypatch, device, chosen):
    """PyTorch takes no device without a number as the one to be current."""
    said = []
    monkeypatch.setattr(torch, "zeros", lambda *sizes, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", said.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    begins = torch_device._begin(device)
    assert said == chosen and begins.runtime == "torch-cuda" and begins.device == "NVIDIA H200"
    assert begins.settings["tf32"] is False and begins.version.startswith(f"{torch.__version__}, CUDA ")


def test_floats_are_exact():
    torch_kernels.exact_floats()
    assert torch.backends.cuda.matmul.fp32_precision == "ieee" and not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"


def test_nvidia_smi_is_read():
    facts = read_smi("580.159.04, 1980, 1980, 3201, 45, 310.52, 700.00\n", TODAY)
    assert {name: figure.value for name, figure in facts.items()} == {
        "driver": "580.159.04",
        "clock_sm": 1980,
        "clock_sm_max": 1980,
        "clock_memory": 3201,
        "temperature": 45,
        "power": 310.52,
        "power_limit": 700.0,
    }
    assert facts["temperature"].source == "nvidia-smi, temperature.gpu"
    assert set(read_smi("540.4.0, [N/A], [Not Supported], 1, [Unknown Error]", TODAY)) == {
        "driver",
        "clock_memory",
    }
    assert read_smi("", TODAY) == read_smi("No devices were found", TODAY) == {}
    field = "clocks_event_reasons.active"
    assert read_reasons("0x0000000000000001", field, TODAY).value is False, "idle is no fault"
    held = read_reasons("0x0000000000000024\n", field, TODAY)
    assert held.value is True and held.unit == "power cap, software thermal slowdown"
    assert read_reasons("[N/A]", field, TODAY) is None and read_reasons("", field, TODAY) is None


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_nvidia_smi_is_asked_while_the_device_works(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        """#!/bin/sh
        sleep 0.1
        case "$*" in
            *clocks_event*) echo "Field is not a valid field to query."; exit 2;;
            *clocks_throttle*) echo 0x0000000000000004;;
            *"-i GPU-7"*) echo "535.54, 900, 1410, 1215, 60, 399.10, 400.00";;
        esac
        """
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    rounds = []
    facts = smi_facts("GPU-7", lambda: rounds.append(0), TODAY)
    assert facts["clock_sm"].value == 900 and facts["throttled"].unit == "power cap"
    assert len(rounds) > 1, "it was at work meanwhile"
    monkeypatch.setenv("PATH", "")
    assert smi_facts("GPU-7", lambda: None, TODAY) == {}


def test_the_figures_of_a_device():
    memory = torch_facts.bandwidth_facts("cpu", Scale(2**20, 64), SHORT, TODAY)
    assert set(memory) == {"read_memory", "copy_memory", "update_memory"}
    assert all(f.value > 0 and f.unit == "GB/s" and "spread" in f.source for f in memory.values())
    launches = torch_facts.launch_facts("cpu", SHORT, TODAY)
    assert 0 < launches["launch"].value < 10_000
    ends = torch_facts.ends("cpu", SHORT)
    assert [e.op for e in ends] == ["overhead", "entry", "entry", "entry"]
    assert ends[1].bytes < ends[2].bytes < ends[3].bytes
    assert torch_facts.device_facts("cpu", TODAY) == torch_facts.states("cpu", SMALL, TODAY) == {}


def test_a_survey_hands_out_what_it_measures(monkeypatch):
    """As its child process does, on a few of the points."""
    few = [(gemm(32, 16, 16), how) for how in ("float", "int8", "fp8")]
    monkeypatch.setattr(torch_device, "points", lambda quick, most: few)
    answers = []
    torch_device.main("cpu", True, answers.append)
    assert answers[0]["begins"]["runtime"] == "torch-cpu"
    steps = [(a["done"], a["total"]) for a in answers[1:]]
    assert steps == [(n, len(steps)) for n in range(1, len(steps) + 1)]
    costs = [Cost.model_validate(c) for a in answers for c in a.get("cost", ())]
    failures = [Failure.model_validate(f) for a in answers for f in a.get("failure", ())]
    assert {"float", "int8"} <= {c.precision for c in costs if c.op == "gemm"}
    assert {f.precision for f in failures if "2:4" in f.shape} == {"fp16", "int8"}
    facts = {name for a in answers for name in a.get("fact", {})}
    assert facts == {"launch", "kernel", "read_memory", "copy_memory", "update_memory"}
    json.dumps(answers)


@pytest.mark.slow
def test_a_whole_survey_and_its_overlay(tmp_path, capsys):
    """In the child process, by the script that writes overlays of accelerators."""
    script = Path(__file__).parents[3] / "benchmarks/accelerator.py"
    spec = importlib.util.spec_from_file_location("accelerator", script)
    accelerator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(accelerator)
    out = tmp_path / "measured" / "here.json"
    assert accelerator.main(["--device", "cpu", "--quick", "--out", str(out), "--profile", "x86-cpu"]) == 0
    overlay = parse(Overlay, out.read_text(), origin=out)
    costs = overlay.runtime_named("torch-cpu")
    assert costs.version == torch.__version__ and overlay.machine.device == "cpu" and overlay.quick
    measured = {(c.op, c.precision) for c in costs.cost}
    assert {("gemm", "float"), ("gemm", "int8"), ("depthwise", "float"), ("overhead", "float")} <= measured
    assert {f.precision for f in costs.failures if "2:4" in f.shape} == {"fp16", "int8"}
    assert {"launch", "read_memory", "copy_memory"} <= set(overlay.facts)
    assert "torch-cpu" not in capsys.readouterr().out


def test_no_device_no_survey(monkeypatch):
    heard = Hearing()
    monkeypatch.setattr(torch_device, "version", lambda name: "2.13.0+cpu")
    assert torch_device.survey_torch("cuda", True, heard) is None

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(torch_device, "version", missing)
    assert torch_device.survey_torch("cuda", True, heard) is None
    said = "no accelerator is measured: PyTorch "
    assert heard.notes == [f"{said}2.13.0+cpu is a build for CPUs", f"{said}is not installed"]
    answers = []
    torch_device.main("meta", True, answers.append)
    assert list(answers[0]) == ["absent"] and "only cuda and cpu" in answers[0]["absent"]


def test_a_device_that_pytorch_does_not_know(monkeypatch):
    """In the child process."""
    heard = Hearing()
    monkeypatch.setattr(torch_device, "version", lambda name: "2.13.0+cu130")
    assert torch_device.survey_torch("nowhere", True, heard) is None
    assert len(heard.notes) == 1 and "PyTorch has no nowhere here" in heard.notes[0]


CHILD = """import json, os, sys
sys.path.remove(sys.path[0]) if sys.path[0] == "" else None
point = {"op": "gemm", "precision": "fp16", "macs": 8, "bytes": 24, "ms": 0.5, "spread": 0.1}
begins = {"device": "GPU", "runtime": "torch-cuda", "version": "1", "threads": 1, "settings": {}}
"""


@pytest.mark.parametrize(
    ("then", "points", "says"),
    [
        ("sys.stdout.write('{\"cost\"'); sys.stdout.flush(); os.kill(os.getpid(), 9)", 1, "status -9"),
        ("sys.exit('CUDA error: an illegal memory access')", 1, "illegal memory access"),
        ("", 1, ""),
    ],
)
def test_a_device_that_ends_the_process_leaves_what_was_measured(tmp_path, monkeypatch, then, points, says):
    child = tmp_path / "child.py"
    lines = [{"begins": "BEGINS"}, {"cost": ["POINT"], "done": 1, "total": 2}]
    text = json.dumps(lines).replace('"BEGINS"', "begins").replace('"POINT"', "point")
    child.write_text(f"{CHILD}for line in {text}:\n    print(json.dumps(line), flush=True)\n{then}\n")
    popen = torch_device.subprocess.Popen
    monkeypatch.setattr(
        torch_device.subprocess, "Popen", lambda command, **more: popen([sys.executable, str(child)], **more)
    )
    heard = Hearing()
    survey = torch_device.survey_torch("cpu", True, heard)
    assert len(survey.runtime.cost) == points and heard.steps == [(1, 2)]
    reasons = [failure.reason for failure in survey.runtime.failures]
    assert (not reasons) if not says else (len(reasons) == 1 and says in reasons[0])


def test_a_process_that_never_begins(tmp_path, monkeypatch):
    popen = torch_device.subprocess.Popen
    command = [sys.executable, "-c", "raise ImportError('libcudnn.so.9: cannot open shared object file')"]
    monkeypatch.setattr(torch_device.subprocess, "Popen", lambda _, **more: popen(command, **more))
    heard = Hearing()
    assert torch_device.survey_torch("cpu", True, heard) is None
    assert "libcudnn.so.9" in heard.warnings[0]
