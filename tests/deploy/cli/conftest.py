"""The command line run in this process, documents of a bundle made up for it, and one real bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.bundle.read import Bundle
from deploy.cli import main
from deploy.pipeline import build
from deploy.progress import SILENT, Progress
from deploy.spec.artifact import Artifact
from deploy.spec.manifest import (
    CalibrationInfo,
    Evaluation,
    Manifest,
    Measurements,
    Outcome,
    Sizes,
    SourceInfo,
    StageTime,
    Verification,
)
from deploy.spec.measurement import Comparison, Conditions, Latency, Measurement
from deploy.spec.recipe import Recipe
from deploy.spec.tensors import TensorSpec
from deploy.stages.request import Request

CONDITIONS = Conditions(device="some CPU", runtime="onnxruntime 1", threads=1, batch=1, date="2026-01-01")


def measurement(p50: float, memory: int | None) -> Measurement:
    latency = Latency(p50=p50, p95=p50 * 1.2, p99=p50 * 1.4, samples=100, spread=0.05)
    return Measurement(latency_ms=latency, peak_memory_bytes=memory, conditions=CONDITIONS)


def some_manifest(target: str = "x86-cpu", verdict: Outcome | None = None) -> Manifest:
    return Manifest(
        target=target,
        profile="x86-vnni",
        runtime="ort",
        source=SourceInfo(
            name="digits", sha256="a" * 64, bytes=1_248_000, opset=17, parameters=308_000, macs=12_100_000,
            weight_bytes=1_232_000,
        ),
        recipe=Recipe(),
        plan_sha256="b" * 64,
        precision={"int8": 9, "float": 2},
        files={"artifact/model.onnx": "c" * 64, "plan.json": "d" * 64},
        artifact=Artifact(
            backend="ort",
            files=("model.onnx",),
            inputs=(TensorSpec(name="x", dtype="float32", shape=("n", 1, 16, 16), layout="NCHW"),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=("n", 10)),),
        ),
        options={"threads": 1},
        size_bytes=Sizes(baseline=1_248_000, artifact=341_000, baseline_weights=1_232_000, weights=312_000),
        calibration=CalibrationInfo(sha256="e" * 64, samples=256, observer="mse"),
        evaluation=Evaluation(
            metric="top1", unit="fraction", higher_is_better=True, baseline=0.9732, artifact=0.9715,
            drop=0.0017, interval=(-0.0034, 0.0067), role="eval", samples=597, looks=2,
        ),
        verification=Verification(
            passed=True, samples=32, error=2e-6, noise_floor=1e-6, tolerance=1.4e-5, executed_by="onnxruntime"
        ),
        verdict=verdict or Outcome(status="met"),
        deferred=False,
        executed_by="onnxruntime",
        toolchain={"onnxruntime": "1.31.1"},
        seed=0,
    )  # fmt: skip


def some_bundle(target: str = "x86-cpu", *, verdict: Outcome | None = None, measured: bool = True) -> Bundle:
    comparison = Comparison(
        baseline=measurement(0.41, 9_000_000),
        artifact=measurement(0.15, 6_000_000),
        speedup=2.73,
        interval=(2.61, 2.84),
    )
    stages = (
        StageTime(name="read", seconds=0.05, cached=False),
        StageTime(name="calibrate", seconds=0.0, cached=True),
    )
    measurements = (
        Measurements(comparison=comparison, stages=stages)
        if measured
        else Measurements(comparison=None, why_not="--no-measure was given", stages=stages)
    )
    return Bundle(Path("dist") / target, some_manifest(target, verdict), measurements, "f" * 64)


class FakePipeline:
    """Takes requests in place of the real pipeline, and answers with documents made up above."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.verdict = Outcome(status="met")
        self.measured = True

    def run(self, request: Request, progress: Progress = SILENT) -> Bundle:
        self.requests.append(request)
        progress.start("calibrate")
        progress.advance(1, 2)
        progress.note("a note")
        progress.warn("a warning")
        progress.finish("calibrate", 0.4239, False, "256 samples")
        return some_bundle(request.target, verdict=self.verdict, measured=self.measured)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """A fake: what the commands hand to the pipeline and show of its answer, without a build."""
    fake = FakePipeline()
    monkeypatch.setattr("deploy.pipeline.run", fake.run)
    return fake


@pytest.fixture
def make_bundle() -> Callable[..., Bundle]:
    return some_bundle


@pytest.fixture
def deploy(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs one command line; exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="session")
def digits() -> Path:
    return Path(__file__).parents[3] / "examples" / "digits"


@pytest.fixture(scope="session")
def real_bundle(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The example built for this machine, nothing timed."""
    folder = tmp_path_factory.mktemp("real")
    build(
        digits / "digits.onnx", target="x86-cpu", data=digits / "calib.npz", measure=False, out=folder,
        cache=folder / "cache",
    )  # fmt: skip
    return folder / "x86-cpu"
