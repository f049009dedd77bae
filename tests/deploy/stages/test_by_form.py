"""Forms of weights alone in races with clocks of our own: who enters, who ships, and a replay of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploy.adapter.protocol import Arrays
from deploy.bundle.read import Bundle, load_lock, load_plan
from deploy.measure.latency import Timing
from deploy.pipeline import build
from deploy.spec.project import Budget
from deploy.stages.baseline import Contender

Build = Callable[..., Bundle]
SIZE = 512


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two large products of rows, as a transformer's: 2 MB of weights."""
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> '
        f"g (float[N,1,{SIZE}] x) => (float[N,1,{SIZE}] y) {{ h = MatMul(x, w) "
        "r = Relu(h) y = MatMul(r, v) }"
    )
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name in ("w", "v"):
        array = (rng.standard_normal((SIZE, SIZE)) / SIZE**0.5).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path = tmp_path_factory.mktemp("products") / "products.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    takes = {"as given": 4.0, "ort float": 4.0, "ort int8": 3.0}

    def race(contenders: Mapping[str, Contender], feeds: Arrays) -> dict[str, Timing]:
        ms = {name: takes.get(name, takes.get(name.split(" in ")[0], 1.0)) for name in contenders}
        return {name: Timing(np.full(20, ms[name]), np.full(20, ms[name])) for name in contenders}

    monkeypatch.setattr("deploy.stages.contest.race", race)
    monkeypatch.setattr("deploy.stages.tune.race", race)
    monkeypatch.setattr("deploy.stages.target.Target.stands_here", lambda self: True)
    monkeypatch.setattr(
        "deploy.stages.baseline.peak_memory", lambda asked, feeds, scratch: dict.fromkeys(asked, 1)
    )
    return takes


@pytest.fixture
def make(products: Path, clock: dict[str, float], tmp_path: Path) -> Build:
    rows = np.random.default_rng(1).standard_normal((32, 1, SIZE)).astype(np.float32)

    def run(**settings: object) -> Bundle:
        given = {
            "target": "x86-vnni", "runtime": "ort", "data": {"x": rows}, "out": tmp_path / "dist",
            "cache": tmp_path / "cache", "budget": Budget(max_drop=0.5),
        }  # fmt: skip
        return build(products, **{**given, **settings})  # type: ignore[arg-type]

    return run


def names(bundle: Bundle) -> set[str]:
    return {attempt.name for attempt in bundle.measurements.attempts}


def test_the_most_promising_form_races_and_a_lock_builds_it_again(make: Build, tmp_path: Path) -> None:
    bundle = make()
    plan = load_plan(bundle)
    (form,) = {block.precision for block in plan.blocks if block.precision not in ("float", "int8")}
    assert form in ("w4", "w8", "dynamic")
    assert bundle.manifest.verdict.status == "met"
    assert load_lock(bundle).precision == form
    again = make(lock=bundle.folder / "deploy.lock", out=tmp_path / "again")
    assert (again.folder / "plan.json").read_text() == (bundle.folder / "plan.json").read_text()
    assert again.digest == bundle.digest


def test_a_form_that_the_clock_refuses_does_not_ship(make: Build, clock: dict[str, float]) -> None:
    clock.update({"ort w4": 5.0, "ort w8": 5.0, "ort dynamic": 5.0})
    bundle = make()
    assert names(bundle) & {"w4", "w8", "dynamic"}, "it raced"
    assert bundle.measurements.comparison is not None
    assert bundle.measurements.comparison.speedup == pytest.approx(4 / 3)


def test_nothing_is_built_where_the_table_chooses(make: Build) -> None:
    assert not names(make(tune="off")) & {"w4", "w8", "dynamic"}


def test_what_was_asked_for_is_not_overruled(make: Build) -> None:
    assert not names(make(precision="int8")) & {"w4", "w8", "dynamic"}
    assert not names(make(data=None)) & {"w4", "w8", "dynamic"}, "nobody judges"
