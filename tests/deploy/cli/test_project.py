"""deploy.toml is found as cargo finds its file; paths start where they were written; flags win."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from deploy.cli import build
from deploy.cli.project import Flags, find_project, requests
from deploy.errors import UsageError
from deploy.spec.project import Budget, IoLayout, IoSection, IoType, Observer, PrecisionRequest
from deploy.stages.request import Request

TEXT = """\
schema = 1
[model]
path = "model.onnx"
shapes = { x = [1, 3, 32, 32], z = [4] }
[data]
calibration = "data/calib.npz"
labels = "label"
classes = "names.txt"
[input.x]
layout = "NCHW"
[io]
dtype = "uint8"
inputs = ["x"]
[metric]
name = "top5"
output = "logits"
[budget]
max_drop = 0.02
[quantize]
precision = "int8"
observer = "kl"
exclude = ["stem"]
samples = 99
[build]
targets = ["jetson", "x86-cpu"]
out = "made"
seed = 7
threads = 2
"""


@pytest.fixture
def project(here: Path) -> Path:
    (here / "deploy.toml").write_text(TEXT)
    (here / "deep" / "er").mkdir(parents=True)
    return here


def only(flags: Flags, folder: Path) -> Request:
    (request,) = requests(flags, folder)
    return request


def test_everything_in_the_file_reaches_the_request(project: Path) -> None:
    jetson, x86 = requests(Flags(), project)
    assert (jetson.target, x86.target) == ("jetson", "x86-cpu")
    assert x86.source_path == Path("model.onnx") and x86.out == Path("made")
    assert x86.data == "data/calib.npz" and (x86.validation, x86.eval) == (None, None)
    assert x86.shapes == {"x": (1, 3, 32, 32), "z": (4,)}
    assert (x86.labels, x86.metric.name, x86.metric.output) == ("label", "top5", "logits")
    assert x86.inputs["x"].layout == "NCHW"
    assert x86.io == IoSection(dtype="uint8", inputs=("x",))
    assert x86.classes == "names.txt"
    assert (x86.budget.max_drop, x86.precision, x86.observer) == (0.02, "int8", "kl")
    assert (x86.exclude, x86.samples, x86.seed, x86.threads) == (("stem",), 99, 7, 2)
    assert x86.measure and not x86.random_calibration


def test_flags_override_the_file(project: Path) -> None:
    flags = Flags(
        targets=("rpi5",), shapes={"x": (2, 3, 32, 32)}, max_drop=0.5, metric="top1", precision="float",
        exclude=("stem", "head"), observer="mse", samples=5, seed=0, threads=1, out=Path("there"),
        measure=False, random_calibration=True, io_layout="NHWC", classes="other.txt",
    )  # fmt: skip
    request = only(flags, project)
    assert request.io == IoSection(dtype="uint8", layout="NHWC", inputs=("x",))
    assert request.classes == "other.txt"
    assert request.target == "rpi5" and request.out == Path("there")
    assert request.shapes == {"x": (2, 3, 32, 32), "z": (4,)}
    assert (request.budget.max_drop, request.precision, request.observer) == (0.5, "float", "mse")
    assert (request.metric.name, request.metric.output) == ("top1", "logits")
    assert request.exclude == ("stem", "head")
    assert (request.samples, request.seed, request.threads) == (5, 0, 1)
    assert not request.measure and request.random_calibration


def test_threads_may_be_left_to_us(project: Path) -> None:
    file = project / "deploy.toml"
    file.write_text(file.read_text().replace("threads = 2", 'threads = "auto"'))
    request = only(Flags(targets=("rpi5",)), project)
    assert (request.any_threads, request.threads) == (True, 1)
    request = only(Flags(targets=("rpi5",), threads=3), project)
    assert (request.any_threads, request.threads) == (False, 3)
    assert only(Flags(targets=("rpi5",), threads="auto"), project).any_threads
    for wrong in ("0", "true", '"many"', "1.5"):
        file.write_text(re.sub("threads = .*", f"threads = {wrong}", file.read_text()))
        with pytest.raises(UsageError, match=r"'build.threads': .*a whole number .* or \"auto\""):
            only(Flags(targets=("rpi5",)), project)


def test_a_file_above_counts_and_its_paths_start_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = project / "deep" / "er"
    monkeypatch.chdir(below)
    assert find_project(Path()) == project / "deploy.toml"
    request = requests(Flags(), below)[0]
    assert request.source_path.resolve() == project / "model.onnx"
    assert request.root is not None and request.root.resolve() == project
    assert Path(request.out).resolve() == project / "made"


def test_paths_among_the_flags_start_in_the_working_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = project / "deep" / "er"
    monkeypatch.chdir(below)
    flags = Flags(data="mine.npz", eval="/abs/eval.npz", validation="python:mine:data")
    request = requests(flags, below)[0]
    assert request.root is not None and isinstance(request.data, str)
    assert (request.root / request.data).resolve() == below / "mine.npz"
    assert request.eval == "/abs/eval.npz" and request.validation == "python:mine:data"


def test_a_named_model_means_no_file_is_read(project: Path) -> None:
    request = only(Flags(model=Path("other.onnx"), targets=("x86-cpu",)), project)
    assert request.source_path == Path("other.onnx")
    assert request.data is None and request.precision == "auto" and request.root is None


def test_each_target_once(project: Path) -> None:
    assert [r.target for r in requests(Flags(targets=("rpi5", "rpi5")), project)] == ["rpi5"]


def test_without_model_and_file(here: Path) -> None:
    with pytest.raises(UsageError, match=r"no deploy\.toml") as caught:
        requests(Flags(targets=("x86-cpu",)), here)
    assert "deploy init" in caught.value.hint


def test_without_target(here: Path) -> None:
    with pytest.raises(UsageError, match="no target") as caught:
        requests(Flags(model=Path("m.onnx")), here)
    assert "--target" in caught.value.hint


def test_a_malformed_file_is_named_with_line_and_key(project: Path) -> None:
    (project / "deploy.toml").write_text(TEXT.replace("max_drop", "max_dorp"))
    with pytest.raises(UsageError, match=r"deploy\.toml:18: unknown key 'budget.max_dorp'"):
        requests(Flags(), project)


def test_limits_and_objectives_on_the_command_line_go_before_the_file(project: Path) -> None:
    file = project / "deploy.toml"
    limits = "max_drop = 0.02\nmax_latency_ms = 5.0\nmax_size_bytes = 1000\n"
    file.write_text(TEXT.replace("max_drop = 0.02\n", limits) + 'objective = "size"\n')
    said = only(Flags(targets=("rpi5",)), project)
    assert said.budget == Budget(max_drop=0.02, max_latency_ms=5.0, max_size_bytes=1000)
    assert (said.objective, said.tune, said.pick) == ("size", "quick", None)
    flags = Flags(
        targets=("rpi5",), max_latency=2.5, max_size=2000, objective="accuracy", tune="full", pick=3
    )
    said = only(flags, project)
    assert said.budget == Budget(max_drop=0.02, max_latency_ms=2.5, max_size_bytes=2000)
    assert (said.objective, said.tune, said.pick) == ("accuracy", "full", 3)


@pytest.mark.parametrize("latency", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_of_latency_is_a_number_above_nothing(project: Path, latency: float) -> None:
    with pytest.raises(UsageError, match="--max-latency must be a number of milliseconds above 0, not"):
        requests(Flags(max_latency=latency), project)


@pytest.mark.parametrize("drop", [float("nan"), float("inf")])
def test_a_budget_is_a_number(project: Path, drop: float) -> None:
    with pytest.raises(UsageError, match="--max-drop"):
        requests(Flags(max_drop=drop), project)


def test_the_choices_on_the_command_line_are_those_of_the_file() -> None:
    assert get_args(build.Precision) == get_args(PrecisionRequest)
    assert get_args(build.Observer) == get_args(Observer)
    assert get_args(build.IoType) == get_args(IoType)
    assert get_args(build.IoLayout) == get_args(IoLayout)
