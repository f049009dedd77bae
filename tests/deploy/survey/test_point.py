"""Points of units on a machine whose laws are known: what each kernel takes there is found again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pytest

from deploy.adapter.discover import find_backend
from deploy.adapter.profiles import load_profile
from deploy.adapter.protocol import Backend
from deploy.errors import BackendError
from deploy.predict.elsewhere import BY_PRODUCTS
from deploy.predict.kernels import Kernel
from deploy.predict.latency import Costs
from deploy.spec.artifact import Artifact, Options
from deploy.spec.overlay import Cost, Failure, KernelClass
from deploy.spec.tensors import Precision
from deploy.survey import point
from deploy.survey.point import Place, measure_unit
from deploy.survey.pulse import Pulse
from deploy.survey.unit import Unit
from deploy.survey.units import units

OVERHEAD, ENTRY = 1e-3, 1e-6
"""Milliseconds of any graph, and of each byte that goes in and as many out."""
TINY = 1e-4
"""More than what the one operation takes by which a graph that does nothing is measured."""


def law(kernel: Kernel | Cost) -> float:
    """By multiply-accumulates where there are some, else by bytes; integers take a third."""
    ms = 1e-7 * kernel.macs if kernel.op in BY_PRODUCTS else 1e-7 * kernel.bytes
    return ms / (3 if kernel.precision == "int8" and kernel.op != "convert" else 1)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times follow the law; what comes back are the lengths of the chains that were timed."""
    timed: list[int] = []

    def times(chains: Sequence[point._Chain], pulse: Pulse) -> tuple[list[np.ndarray], float]:
        found = []
        for opened in chains:
            timed.append(sum(opened.kernels.values()))
            moved = sum(array.nbytes for array in opened.feeds.values())
            kernels = sum(law(kernel) * count for kernel, count in opened.kernels.items())
            found.append(np.full(5, OVERHEAD + ENTRY * 2 * moved + kernels))
        return found, 0.0

    monkeypatch.setattr(point, "_times", times)
    monkeypatch.setattr(point, "LONGEST", 5)
    monkeypatch.setattr(point, "_LOST", 0.003)  # chains are shorter here, and nothing is noisy
    return timed


def place(runtime: str = "ort", profile: str = "x86-vnni") -> Place:
    return Place(load_profile(profile).runtime_named(runtime), find_backend(runtime), 1, Pulse(lambda: None))


def first_of_each_class() -> Iterator[Unit]:
    seen: set[KernelClass] = set()
    for unit in units():
        if unit.op not in seen:
            seen.add(unit.op)
            yield unit


def survey(where: Place, listed: Sequence[KernelClass], tmp_path: Path) -> tuple[list[Cost], list[Failure]]:
    costs: list[Cost] = []
    failures: list[Failure] = []
    for unit in (unit for unit in first_of_each_class() if unit.op in listed):
        precisions: list[Precision] = [where.runtime.float_precision, "int8"]
        for precision in precisions if unit.op != "convert" else precisions[1:]:
            for found in measure_unit(unit, precision, where, Costs(tuple(costs)), tmp_path / "work"):
                (costs if isinstance(found, Cost) else failures).append(found)  # type: ignore[arg-type]
    return costs, failures


def check(
    costs: Sequence[Cost], failures: Sequence[Failure], within: float = 0.02
) -> set[tuple[KernelClass, Precision]]:
    """Whether all points are those of the law; the classes and precisions that there are."""
    assert not failures, failures
    for cost in costs:
        if cost.op == "overhead":
            assert OVERHEAD < cost.ms < OVERHEAD + TINY
        else:
            expected = ENTRY * cost.bytes if cost.op == "entry" else law(cost)
            least = TINY if cost.op == "entry" else 1e-12
            assert cost.ms == pytest.approx(expected, rel=within, abs=least), cost
    return {(cost.op, cost.precision) for cost in costs}


def test_a_law_that_kernels_follow_is_found_again(machine: list[int], tmp_path: Path) -> None:
    """In each class and precision, whatever is taken off: nothing counts twice, nothing is forgotten."""
    seen = check(*survey(place(), get_args(KernelClass), tmp_path))
    assert {op for op, precision in seen if precision == "float"} == set(get_args(KernelClass)) - {"convert"}
    assert {op for op, precision in seen if precision == "int8"} == {
        "overhead", "entry", "conv", "pointwise", "depthwise", "grouped", "stem", "gemm", "batched",
        "elementwise", "activation", "reduce", "transpose", "convert",
    }  # fmt: skip
    assert not (tmp_path / "work").exists()


def test_a_runtime_that_absorbs_and_moves_without_pairs(machine: list[int], tmp_path: Path) -> None:
    """What it would merge is set apart; integers go through what moves them to the next product. Of a pool in
    integers there is no point here, so that what is measured beside one is a little off."""
    if find_backend("openvino").available().version is None:
        pytest.skip("OpenVINO is not installed")
    listed: tuple[KernelClass, ...] = (
        "overhead",
        "pool",
        "gemm",
        "transcendental",
        "transposed",
        "transpose",
    )
    seen = check(*survey(place("openvino"), listed, tmp_path), within=0.05)
    assert {op for op, precision in seen if precision == "float"} == {*listed, "entry"}
    assert {op for op, precision in seen if precision == "int8"} == {
        "entry",
        "gemm",
        "transposed",
        "transpose",
    }


def unit_of(op: KernelClass) -> Unit:
    return next(unit for unit in units(quick=True) if unit.op == op)


def test_what_takes_next_to_nothing_beside_others_is_no_point(
    machine: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of form that is lost in the noise of its convolutions would be believed."""
    monkeypatch.setitem(globals(), "law", lambda k: 0.0 if k.op == "convert" else 1e-7 * (k.macs or k.bytes))
    (found,) = measure_unit(unit_of("convert"), "int8", place(), Costs(()), tmp_path / "work")
    assert isinstance(found, Failure) and "drowns" in found.reason
    assert (found.op, found.precision, found.shape) == ("convert", "int8", unit_of("convert").shape)


class Broken:
    """A backend that writes what it cannot open."""

    def __init__(self, backend: object) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)

    def open(self, artifact: Artifact, options: Options) -> object:
        raise BackendError("no kernel for\x1b[2J this", hint="none")


def test_what_a_runtime_cannot_run_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    where = place()
    broken = Place(where.runtime, cast(Backend, Broken(where.backend)), 1, where.pulse)
    (found,) = measure_unit(unit_of("conv"), "float", broken, Costs(()), tmp_path / "work")
    assert isinstance(found, Failure) and found.op == "conv" and found.precision == "float"
    assert "no kernel for" in found.reason and "\x1b" not in found.reason
    assert not (tmp_path / "work").exists()


def test_an_operation_that_does_not_exist_is_a_failure(tmp_path: Path) -> None:
    unit = Unit("activation", "unheard of", ("n", 8), lambda s, v: s.node("Unheard", [v]))
    (found,) = measure_unit(unit, "float", place(), Costs(()), tmp_path / "work")
    assert isinstance(found, Failure) and found.reason


def test_a_bug_is_no_failure(tmp_path: Path) -> None:
    def wrong(sketch: object, value: object) -> object:
        raise KeyError("missing")

    with pytest.raises(KeyError):
        measure_unit(Unit("conv", "", ("n", 8), wrong), "float", place(), Costs(()), tmp_path / "work")  # type: ignore[arg-type]


def test_without_an_integer_kernel_there_is_no_point(machine: list[int], tmp_path: Path) -> None:
    for op in ("softmax", "norm", "hard", "recurrent"):
        assert measure_unit(unit_of(op), "int8", place(), Costs(()), tmp_path / "work") == []
    assert machine == [], "nor is anything timed"


def test_chains_are_long_enough_to_be_timed_and_short_enough_to_fit(machine: list[int]) -> None:
    lengths = {(unit.op, unit.shape): point._repeats(unit) for unit in units()}
    assert set(lengths.values()) <= set(range(5, 35))
    assert (
        lengths["conv", "3x3, 64 channels, 56x56"] == 5
        and lengths["recurrent", "LSTM, 50 steps, 256 wide"] == 5
    )


def test_real_times_are_positive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured for once: nothing is said of how long."""
    monkeypatch.setattr(point, "_ROUNDS", 2)
    monkeypatch.setattr(point, "_SLICE_MS", 0.2)
    found = measure_unit(unit_of("conv"), "float", place(), Costs(()), tmp_path / "work")
    cost = next(c for c in found if isinstance(c, Cost))
    assert (cost.op, cost.precision, cost.macs) == ("conv", "float", 16 * 32 * 32 * 16 * 9)
    assert cost.ms > 0 and cost.spread >= 0 and cost.shape == "3x3, 16 channels, 32x32"
