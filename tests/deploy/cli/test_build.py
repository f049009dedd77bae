"""deploy build: what it hands to the pipeline, what it writes, how it ends. The pipeline is a fake."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from deploy.bundle.read import Bundle
from deploy.spec.manifest import Outcome
from deploy.spec.measurement import Point
from deploy.stages.request import Request

Deploy = Callable[..., tuple[int, str, str]]
MISSED = Outcome(status="missed", reasons=("drop 0.05 against a budget of 0.01",))


class Pipeline(Protocol):
    requests: list[Request]
    verdict: Outcome
    measured: bool

    def run(self, request: Request, progress: Any = ...) -> Bundle: ...


@pytest.fixture(autouse=True)
def _in_an_empty_folder(here: Path) -> None: ...


def test_every_flag_reaches_the_request(deploy: Deploy, pipeline: Pipeline) -> None:
    code, _, _ = deploy(
        "build", "m.onnx", "-t", "x86-cpu", "--data", "c.npz", "--validation", "v.npz", "--eval", "e.npz",
        "--max-drop", "0.03", "--metric", "top1", "--out", "o", "--shape", "x=1,3", "--shape", "y=2",
        "--precision", "mixed", "--exclude", "a", "--exclude", "b", "--observer", "kl", "--samples", "9",
        "--no-measure", "--threads", "2", "--seed", "3", "--random-calibration", "--lock", "deploy.lock",
        "--cache", "keep",
    )  # fmt: skip
    assert code == 0
    (request,) = pipeline.requests
    assert (request.source_path, request.target) == (Path("m.onnx"), "x86-cpu")
    assert (request.data, request.validation, request.eval) == ("c.npz", "v.npz", "e.npz")
    assert (request.budget.max_drop, request.metric.name, request.out) == (0.03, "top1", Path("o"))
    assert request.shapes == {"x": (1, 3), "y": (2,)}
    assert (request.precision, request.exclude, request.observer) == ("mixed", ("a", "b"), "kl")
    assert (request.samples, request.threads, request.seed) == (9, 2, 3)
    assert not request.measure and request.random_calibration
    assert (request.lock, request.cache) == (Path("deploy.lock"), Path("keep"))


def test_a_recipe_by_name_goes_before_that_of_the_file(
    deploy: Deploy, pipeline: Pipeline, here: Path
) -> None:
    text = 'schema = 1\n[model]\npath = "m.onnx"\n[build]\ntargets = ["x86-cpu"]\n'
    for file, flags, name, steps in (
        (text, (), None, []),
        (text + 'recipe = "fast"\n', (), "fast", []),
        (text + 'recipe = "fast"\n', ("--recipe", "smallest"), "smallest", []),
        (text + '[[recipe]]\nstep = "cluster"\n', (), None, ["cluster"]),
        (text + '[[recipe]]\nstep = "cluster"\n', ("--recipe", "balanced"), "balanced", []),
    ):
        (here / "deploy.toml").write_text(file)
        assert deploy("build", *flags)[0] == 0
        recipe = pipeline.requests[-1].recipe
        assert (recipe.preset, [step.step for step in recipe.steps]) == (name, steps)


def test_the_cache_folder_may_come_from_the_environment(
    deploy: Deploy, pipeline: Pipeline, here: Path
) -> None:
    deploy("build", "m.onnx", "-t", "x86-cpu")
    assert pipeline.requests[0].cache == here / "cache"


def test_json_is_one_object_and_alone_on_stdout(deploy: Deploy, pipeline: Pipeline) -> None:
    code, out, err = deploy("build", "m.onnx", "-t", "x86-cpu", "--json")
    assert code == 0
    assert json.loads(out) == {
        "target": "x86-cpu",
        "backend": "ort",
        "bundle": "dist/x86-cpu",
        "verdict": {"status": "met", "reasons": []},
        "metric": {
            "name": "top1", "baseline": 0.9732, "artifact": 0.9715, "drop": 0.0017,
            "interval": [-0.0034, 0.0067],
        },
        "size_bytes": {
            "baseline": 1_248_000, "artifact": 341_000, "weights": 312_000, "baseline_weights": 1_232_000,
            "ratio": 1_248_000 / 341_000,
        },
        "memory_bytes": None,
        "latency_ms": {
            "baseline": {"p50": 0.41, "p95": 0.41 * 1.2, "p99": 0.41 * 1.4},
            "artifact": {"p50": 0.15, "p95": 0.15 * 1.2, "p99": 0.15 * 1.4},
            "speedup": 2.73,
        },
        "peak_memory_bytes": {"baseline": 9_000_000, "artifact": 6_000_000},
        "energy": None,
        "compression": None,
        "front": [],
        "stages": [
            {"name": "read", "seconds": 0.05, "cached": False},
            {"name": "calibrate", "seconds": 0.0, "cached": True},
        ],
    }  # fmt: skip
    assert "calibrate" in err and "warning: a warning" in err


def test_json_says_why_nothing_was_measured(deploy: Deploy, pipeline: Pipeline) -> None:
    pipeline.measured = False
    found = json.loads(deploy("build", "m.onnx", "-t", "x86-cpu", "--json")[1])
    assert found["latency_ms"] is None and found["peak_memory_bytes"] is None
    assert found["why"] == "--no-measure was given"


def test_json_of_several_targets_is_a_list(deploy: Deploy, pipeline: Pipeline) -> None:
    out = deploy("build", "m.onnx", "-t", "x86-cpu", "-t", "jetson", "--json")[1]
    assert [build["target"] for build in json.loads(out)["builds"]] == ["x86-cpu", "jetson"]


def test_the_verdict_comes_first_and_the_figures_side_by_side(deploy: Deploy, pipeline: Pipeline) -> None:
    code, out, err = deploy("build", "m.onnx", "-t", "x86-cpu")
    lines = [" ".join(line.split()) for line in out.splitlines() if line]
    assert code == 0
    assert lines[0] == "✓ met x86-cpu dist/x86-cpu"
    assert "top1 97.32 % 97.15 % 0.17 points lost (95 %: -0.34 to 0.67 points)" in lines
    assert "latency p50 0.410 ms 0.150 ms 2.73 × faster (95 %: 2.61 to 2.84)" in lines
    assert "file 1.25 MB 341 kB 3.66 × smaller" in lines
    assert "peak memory 9.00 MB 6.00 MB 1.50 × smaller" in lines
    assert "precision 9 int8 blocks, 2 float blocks" in lines
    assert err.splitlines()[0] == "m.onnx → x86-cpu"


def test_what_could_be_had_is_listed_with_what_to_type(
    deploy: Deploy, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = tuple(
        Point(
            number=n, form=form, runtime="ort", precision="auto", float_blocks=(), score=0.97, drop=drop,
            bytes=341_000, latency_ms=ms, predicted=n == 2, chosen=n == 1,
        )
        for n, form, drop, ms in ((1, "int8", 0.002, 0.15), (2, "int8 in 9 of 11 blocks", 0.0, 0.2))
    )  # fmt: skip
    original = pipeline.run

    def run(*given: Any) -> Bundle:
        bundle = original(*given)
        return replace(bundle, measurements=bundle.measurements.model_copy(update={"front": points}))

    monkeypatch.setattr("deploy.pipeline.run", run)
    _, out, _ = deploy("build", "m.onnx", "-t", "x86-cpu")
    lines = [" ".join(line.split()) for line in out.splitlines() if line]
    assert "1 int8 ort 97.00 % −0.20 points 341 kB 0.150 ms chosen" in lines
    assert "2 int8 in 9 of 11 blocks ort 97.00 % 0 341 kB 0.200 ms expected --pick 2" in lines
    _, out, _ = deploy("build", "m.onnx", "-t", "x86-cpu", "--json", "--pick", "2")
    assert [(p["number"], p["chosen"], p["predicted"]) for p in json.loads(out)["front"]] == [
        (1, True, False), (2, False, True),
    ]  # fmt: skip
    assert pipeline.requests[-1].pick == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--pick", "0"), ("--pick", "two"), ("--pick", "1", "--lock", "deploy.lock"), ("--max-latency", "0"),
        ("--max-latency", "nan"), ("--max-latency", "fast"), ("--max-size", "0"), ("--max-size", "-5MB"),
        ("--max-size", "nan"), ("--max-size", "5 parsecs"), ("--objective", "speed"), ("--tune", "hard"),
    ],
)  # fmt: skip
def test_a_wrong_limit_or_point_is_one_clear_message(
    deploy: Deploy, pipeline: Pipeline, words: tuple[str, ...]
) -> None:
    code, out, err = deploy("build", "m.onnx", "-t", "x86-cpu", *words)
    assert (code, out, pipeline.requests) == (2, "", [])
    assert err.startswith("error: ") and err.count("error:") == 1 and "hint: " in err


@pytest.mark.parametrize("more", [(), ("--tune", "off"), ("--dry-run",)], ids=["quick", "off", "dry"])
def test_energy_that_cannot_be_known_is_refused_before_anything_is_built(
    deploy: Deploy, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr("deploy.measure.energy.ROOT", Path("no-such-folder"))
    monkeypatch.setattr("deploy.stages.target.Target.stands_here", lambda self: self.name != "jetson")
    said = deploy("build", "m.onnx", "-t", "x86-cpu", "--objective", "energy", *more)
    assert said[:2] == (6, "") and pipeline.requests == []
    assert said[2].startswith("error: this machine shows no counter of joules") and "hint: " in said[2]
    code, out, err = deploy("build", "m.onnx", "-t", "jetson", "--objective", "energy", *more)
    assert (code, out, pipeline.requests) == (2, "", [])
    assert err.startswith("error: energy cannot be made least for NVIDIA Jetson")


@pytest.mark.parametrize("flag", [(), ("--json",), ("--quiet",)])
def test_a_missed_budget_ends_with_9_and_is_told(
    deploy: Deploy, pipeline: Pipeline, flag: tuple[str, ...]
) -> None:
    pipeline.verdict = MISSED
    code, out, err = deploy("build", "m.onnx", "-t", "x86-cpu", *flag)
    assert code == 9
    assert "drop 0.05 against a budget of 0.01" in (err if "--quiet" in flag else out)
    if "--json" in flag:
        assert json.loads(out)["verdict"]["status"] == "missed"


@pytest.mark.parametrize("words", [("-q", "build"), ("build", "-q"), ("--quiet", "build")])
def test_quiet_before_or_after_the_command(
    deploy: Deploy, pipeline: Pipeline, words: tuple[str, ...]
) -> None:
    assert deploy(*words, "m.onnx", "-t", "x86-cpu") == (0, "", "")


def test_a_misspelt_second_target_is_told_before_the_first_is_built(
    deploy: Deploy, pipeline: Pipeline
) -> None:
    code, _, err = deploy("build", "m.onnx", "-t", "x86-cpu", "-t", "jetsen")
    assert code == 2 and "'jetsen'" in err and "jetson" in err
    assert pipeline.requests == []


def test_a_file_that_is_not_read_is_mentioned(deploy: Deploy, pipeline: Pipeline, here: Path) -> None:
    (here / "deploy.toml").write_text("not looked at")
    code, _, err = deploy("build", "m.onnx", "-t", "x86-cpu")
    assert code == 0
    assert "note: deploy.toml is not read, since a model was named" in err
