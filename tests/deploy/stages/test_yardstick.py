"""By what a recipe's graphs are judged: costs that are made up, a clock that is real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from deploy.bundle.read import Bundle
from deploy.pipeline import build
from deploy.predict.curve import Estimate
from deploy.predict.kernels import Kernel
from deploy.predict.latency import Part
from deploy.progress import SILENT
from deploy.spec.compression import Prune
from deploy.spec.tensors import Precision
from deploy.stages import steps
from deploy.stages.costs import NOTHING_KNOWN, Foresight, Known
from deploy.stages.prepare import Prepared
from deploy.stages.record import Record, open_cache
from deploy.stages.request import Request, Roles
from deploy.stages.target import Target, find_target
from deploy.stages.yardstick import Yardstick


@dataclass(frozen=True)
class ByMacs:
    """A device that takes so many milliseconds for a million products, and the same for every graph."""

    ms: float
    cache: None = None

    def kernel(self, kernel: Kernel) -> Part:
        return Part(kernel, Estimate(self.ms * kernel.macs / 1e6, 0.0, 0.0))

    def fixed(self, moved: int, precision: Precision) -> float:
        return 0.5


def made_up(ms: float = 1000.0, *, least: bool = False) -> Foresight:
    return Foresight({"ort": Known(ByMacs(ms), "made up", True, f"{ms}", least=least, alike=True)})


@pytest.fixture
def target() -> Target:
    return find_target("x86-avx2", "ort")


@pytest.fixture
def prepared(network: Path, tmp_path: Path) -> Prepared:
    request = Request(source=network, target="x86-avx2")
    with open_cache(tmp_path / "cache", SILENT) as cache:
        return steps.clean(steps.read_source(request, cache, Record(SILENT)), request, cache, Record(SILENT))


def yard(prepared: Prepared, target: Target, foresight: Foresight, measure: bool = True) -> Yardstick:
    roles = Roles(None, None, None, trial=prepared.trial)
    request = Request(source="m.onnx", target=target.name, measure=measure)
    return Yardstick(prepared, roles, request, target, foresight)


def test_time_follows_from_the_costs_of_the_target(prepared: Prepared, target: Target) -> None:
    products = prepared.facts.source.macs
    assert products is not None
    ms, basis = yard(prepared, target, made_up()).times([prepared.clean])
    assert ms == [pytest.approx(0.5 + products / 1e3)] and basis == "predicted: made up"


def test_data_sheets_are_no_times(prepared: Prepared, target: Target) -> None:
    assert yard(prepared, target, made_up(least=True)).predicted(prepared.clean) is None


def test_where_nothing_is_known_the_clock_tells_if_it_may(
    prepared: Prepared, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "stands_here", lambda self: True)
    ms, basis = yard(prepared, target, NOTHING_KNOWN).times([prepared.clean, prepared.fused])
    assert all(one is not None and 0 < one < 1000 for one in ms) and "measured here" in basis
    assert yard(prepared, target, NOTHING_KNOWN, measure=False).times([prepared.clean]) == ([None], "")
    monkeypatch.setattr(Target, "stands_here", lambda self: False)
    assert yard(prepared, target, NOTHING_KNOWN).times([prepared.clean]) == ([None], "")


def test_without_samples_nothing_is_judged(prepared: Prepared, target: Target) -> None:
    judged = yard(prepared, target, NOTHING_KNOWN).judged()
    assert (judged.metric, judged.figures.score, judged.figures.drop) == ("", None, None)
    assert judged.figures.parameters == prepared.facts.source.parameters


def test_a_goal_of_latency_is_met_by_the_costs_and_belongs_to_them(
    network: Path, images: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(table: Foresight) -> Bundle:
        known: Callable[..., Foresight] = lambda target, threads: table  # noqa: E731
        monkeypatch.setattr("deploy.stages.compress.costs_of", known)
        monkeypatch.setattr("deploy.stages.recipe.costs_of", known)
        return build(
            network, target="x86-avx2", runtime="ort", data=images, measure=False, tune="off",
            precision="float", out=tmp_path / "dist", cache=tmp_path / "cache",
            recipe=[Prune(latency=0.3, criterion="l2", scope="global", compensate=False, max_drop=1.0)],
        )  # fmt: skip

    bundle = made(made_up())
    ablation = bundle.measurements.compression
    assert ablation is not None and ablation.basis == "predicted: made up"
    before, after = ablation.before.latency_ms, ablation.steps[0].figures.latency_ms
    assert before is not None and after is not None and after <= 0.7 * before
    cached = [
        {s.name: s.cached for s in made(t).measurements.stages}["prune"] for t in (made_up(), made_up(9))
    ]
    assert cached == [True, False]
