"""A bundle with everything that a report can show, made up on top of a real one, and one that means harm."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import pytest

from deploy.bundle.read import Bundle, load_bundle, load_plan
from deploy.spec.ablation import Ablation, Figures, StepRecord
from deploy.spec.compression import Prune
from deploy.spec.document import render
from deploy.spec.ladder import RungRecord
from deploy.spec.manifest import Evaluation, KnownHazard, Measurements, Outcome, StageTime
from deploy.spec.measurement import (
    Attempt,
    BlockTime,
    Comparison,
    Conditions,
    Latency,
    Measurement,
    Point,
)
from deploy.spec.plan import BlockPlan
from deploy.spec.residency import BlockResidency, Residency, RuleFound

SCRIPT = "<script>alert(1)</script>"
CONTROL = "\x1b[31mred\x1b[0m\r\n# heading\u202e| `code` [link](http://a.example)"


def measured(p50: float, memory: int) -> Measurement:
    return Measurement(
        latency_ms=Latency(p50=p50, p95=p50 * 1.1, p99=p50 * 1.2, samples=100, spread=0.1),
        peak_memory_bytes=memory,
        conditions=Conditions(device="some CPU", runtime="ort 1", threads=1, batch=1, date="2026-01-01"),
    )


def evaluation(name: str = "", classes: int = 30) -> Evaluation:
    return Evaluation(
        metric="top1", unit="fraction", higher_is_better=True, baseline=0.9, artifact=0.89, drop=0.01,
        interval=(0.002, 0.018), role="eval", samples=1000, looks=2,
        per_class={f"{i}{name}": (0.9, 0.9 - 0.001 * i) for i in range(classes)},
    )  # fmt: skip


def recipe(name: str) -> Ablation:
    """A step that was undone, and the same with less, which was kept."""
    before = Figures(
        score=0.9, per_class={f"c{name}": 0.9}, drop=0.0, weight_bytes=4000, macs=9000,
        parameters=1000, latency_ms=4.0,
    )  # fmt: skip
    half = Figures(score=0.7, drop=0.2, weight_bytes=2000, macs=4500, parameters=500)
    quarter = Figures(
        score=0.89, per_class={f"c{name}": 0.8}, drop=0.01, weight_bytes=3000, macs=6750, parameters=750,
        latency_ms=3.0,
    )  # fmt: skip
    step = Prune(macs=0.5, protect=(f"p{name}",))
    less = step.model_copy(update={"macs": 0.25})
    return Ablation(
        metric=f"top1{name}", unit="fraction", role="validation", samples=100, basis=f"basis{name}",
        before=before,
        steps=(
            StepRecord(number=1, step=step, figures=half, allowed=0.01, undone=f"undone{name}", seconds=70),
            StepRecord(
                number=1, step=less, softened=1, share=0.5, figures=quarter, allowed=0.01, told=f"done{name}"
            ),
        ),
    )  # fmt: skip


def residency(name: str) -> Residency:
    """Three blocks of which one leaves, one stays and is slower, and of one nothing is known."""
    rules = [
        RuleFound(
            name=f"r{effect}{name}", effect=effect, words=f"words{name}", said="vendor",
            remedies=("unroll-recurrent",), source=f"source{name}", date=date(2026, 11, 21),
        )
        for effect in ("leaves", "slower")
    ]  # fmt: skip
    return Residency(
        unit=f"engine{name}",
        otherwise=f"CPU{name}",
        blocks={"stays": 28, "unknown": 1, "leaves": 1},
        macs={"stays": 99_999, "leaves": 1},
        crossings=2,
        apart=(
            BlockResidency(id=f"b0{name}", kind=f"k{name}", state="stays", macs=0, rules=(f"rslower{name}",)),
            BlockResidency(id=f"b1{name}", kind="Odd", state="unknown", macs=0, unlisted=(f"Odd{name}",)),
            BlockResidency(id=f"b2{name}", kind="GRU", state="leaves", macs=1, rules=(f"rleaves{name}",)),
        ),
        rules=tuple(rules),
    )


def rewritten(built: Bundle, folder: Path, name: str = "", blocks: int = 30) -> Bundle:
    """A copy of ``built`` with made-up blocks, times, scores and hazards; ``name`` stands in all of them."""
    shutil.copytree(built.folder, folder)
    plan = load_plan(built)
    made = tuple(
        BlockPlan(
            id=f"b{i}{name}", nodes=(f"n{i}{name}",), precision="int8" if i % 3 else "float",
            reason=f"why{name}", sqnr_db=40.0 - i,
        )
        for i in range(blocks)
    )  # fmt: skip
    (folder / "plan.json").write_text(render(plan.model_copy(update={"blocks": made})))
    manifest = built.manifest.model_copy(
        update={
            "evaluation": evaluation(name),
            "hazards": (
                KnownHazard(kind=f"k{name}", severity="warning", text=f"t{name}", nodes=(f"n{name}",) * 9),
            ),
            "notes": (f"note{name}",),
            "residency": (residency(name),),
            "classes": ("cat", f"dog{name}"),
            "target": f"x86-cpu{name}",
            "source": built.manifest.source.model_copy(update={"name": f"model{name}"}),
            "verdict": Outcome(status="missed", reasons=(f"reason{name}",)),
            "precision": {"int8": 20, "float": 10},
        }
    )
    (folder / "manifest.json").write_text(render(manifest))
    times = [BlockTime(id=f"b{i}{name}", float_ms=0.3, ms=0.01 * (i + 1)) for i in range(blocks)]
    measurements = Measurements(
        comparison=Comparison(
            baseline=measured(4.0, 10**7), artifact=measured(1.0, 10**6), speedup=4.0, interval=(3.9, 4.1)
        ),
        attempts=(
            Attempt(name="as given", runtime="ort", bytes=4000, score=0.9, drop=0.0, outcome="the baseline"),
            Attempt(
                name=f"int8{name}", runtime=f"ort{name}", bytes=1000, score=0.89, drop=0.01, speed=4.0,
                outcome="chosen",
            ),
        ),
        front=(
            Point(
                number=1, form=f"int8{name}", runtime=f"ort{name}", precision="auto",
                float_blocks=(f"b{name}",), rungs=(f"r{name}",), score=0.89, drop=0.01, bytes=1000,
                latency_ms=1.0, chosen=True,
            ),
            Point(
                number=2, form=f"float{name}", runtime=f"ort{name}", precision="auto", float_blocks=(),
                score=0.9, drop=0.0, bytes=4000, latency_ms=3.9, predicted=True,
            ),
        ),
        missed={f"reason{name}": f"told{name}"},
        blocks=(*times, BlockTime(id="", float_ms=0.1, ms=0.05)),
        compression=recipe(name),
        ladder=(
            RungRecord(
                runtime=f"ort{name}", name="smooth", kept=True, places=12, gain_db=4.25, drop=0.004,
                seconds=3.0,
            ),
            RungRecord(runtime=f"ort{name}", name="round", kept=False, why=f"why{name}"),
        ),
        stages=(StageTime(name=f"read{name}", seconds=0.5, cached=True),),
    )  # fmt: skip
    (folder / "measurements.json").write_text(render(measurements))
    return load_bundle(folder)


@pytest.fixture(scope="session")
def full(built: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with all that a report shows; to be read only."""
    return rewritten(built, tmp_path_factory.mktemp("full") / "bundle")


@pytest.fixture(scope="session", params=[SCRIPT, CONTROL], ids=["markup", "control"])
def hostile(
    request: pytest.FixtureRequest, built: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The same with a name that means harm everywhere."""
    return rewritten(built, tmp_path_factory.mktemp("hostile") / "bundle", request.param)
