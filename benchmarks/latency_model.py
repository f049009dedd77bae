"""Predicted against measured latency of real networks: what the cost model is worth on this machine.

    python benchmarks/latency_model.py CASES_DIR [--quick] [--only NAME] [--overlay FILE] [--cache DIR]

Each folder of CASES_DIR holds model.onnx and calib.npz. Each case is built for each measured runtime, in
float and in INT8 throughout, timed in turn, and predicted from this machine's measurements (`deploy profile`)
or those in FILE. One line a build, then errors in sum: with all points; with those that the short survey has;
and with what another runtime lends, corrected by the short survey's points, by a few of them, by none.
``--quick`` times less.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.adapter.overlays import find_overlay, read_overlay, runs_here
from deploy.adapter.profiles import profile_for
from deploy.execute.reference import Session
from deploy.measure.host import host, this_machine
from deploy.measure.latency import TimingPlan
from deploy.predict.elsewhere import Transferred
from deploy.predict.latency import Costs, CostSource, Prediction
from deploy.progress import SILENT
from deploy.spec.overlay import Cost, Overlay, RuntimeCosts
from deploy.stages.request import Request
from deploy.survey import check
from deploy.survey.check import Row
from deploy.survey.units import units

SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {"ppocr_direction_cls": {"x": (1, 3, 48, 192)}}
"""Of models with free sizes."""
LENDERS = {"ort": "tflite", "tflite": "ort", "openvino": "ort"}
FEW = ("overhead", "conv", "gemm", "elementwise")
HEADER = """\
| case | build | predicted, ms | nine times of ten | measured, ms | error | spread |
|---|---|---|---|---|---|---|"""
SUMMARY = """\
| points | builds | median error | worst | within 20 % | measured inside the interval |
|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Timed:
    """One build with the bytes that its graph reads and puts out."""

    case: str
    row: Row
    moved: int

    def predicted(self, costs: CostSource) -> Prediction:
        """The same kernels by other costs."""
        parts = tuple(costs.kernel(part.kernel) for part in self.row.prediction.parts)
        precision = self.row.precision
        return Prediction(parts, costs.fixed(self.moved, precision))


def timed(case: Path, costs: Mapping[str, RuntimeCosts], cache: Path | None) -> Iterator[Timed]:
    shapes = SHAPES.get(case.name, {})
    request = Request(
        source=case / "model.onnx",
        target=profile_for(host().arch, host().features).name,
        data=case / "calib.npz",
        shapes=shapes,
        samples=64,
        precision="int8",
        cache=cache,
    )
    found = check.check(request, costs, SILENT)
    moved = ends(case)
    for row in found.rows:
        yield Timed(case.name, row, moved)


def ends(case: Path) -> int:
    """Bytes of one sample and of what the model makes of it."""
    with np.load(case / "calib.npz") as data, Session(case / "model.onnx") as session:
        given = {spec.name: data[spec.name][:1] for spec in session.inputs if spec.name in data}
        made = session.run(given)
    return sum(array.nbytes for array in (*given.values(), *made.values()))


def quick_points(costs: RuntimeCosts) -> tuple[Cost, ...]:
    """Those that the short survey would have measured."""
    short = {(op, unit.shape) for unit in units(quick=True) for op in (unit.op, *unit.also, "entry")}
    return tuple(cost for cost in costs.cost if (cost.op, cost.shape) in short and cost.ms > 0)


def line(timed: Timed) -> str:
    row = timed.row
    low, high = row.prediction.interval
    return (
        f"| {timed.case} | {row.runtime} {row.precision} | {row.prediction.ms:.4g} | {low:.3g} to {high:.3g} "
        f"| {row.measured:.4g} | {100 * row.error:+.0f} % | {row.spread:.2f} |"
    )


def summary(name: str, found: list[tuple[Timed, Prediction]]) -> str:
    errors = [abs(prediction.ms / timed.row.measured - 1) for timed, prediction in found]
    inside = [p.interval[0] <= timed.row.measured <= p.interval[1] for timed, p in found]
    near = sum(error <= 0.2 for error in errors)
    return (
        f"| {name} | {len(found)} | {100 * statistics.median(errors):.0f} % | {100 * max(errors):.0f} % "
        f"| {near} | {100 * sum(inside) / len(inside):.0f} % |"
    )


def costs_of(overlay: Path | None) -> Overlay:
    if overlay is not None:
        return read_overlay(overlay)
    profile = profile_for(host().arch, host().features)
    found = find_overlay(this_machine(), runs_here(profile.runtime, 1)).overlay
    if found is None:
        raise SystemExit("nothing was measured on this machine yet: deploy profile")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path, help="folder of case folders")
    parser.add_argument("--quick", action="store_true", help="time for a fifth of a second each")
    parser.add_argument("--only", action="append", help="only this case; may be repeated")
    parser.add_argument("--overlay", type=Path, help="measurements in a file instead of this machine's")
    parser.add_argument("--cache", type=Path, help="where calibrations are kept")
    asked = parser.parse_args()
    if asked.quick:
        check._PLAN = TimingPlan(seconds=0.2, rounds=4)
    costs = {runtime.name: runtime for runtime in costs_of(asked.overlay).runtime}
    print(HEADER)
    found: list[Timed] = []
    for case in sorted(path.parent for path in asked.cases.glob("*/model.onnx")):
        if not asked.only or case.name in asked.only:
            for one in timed(case, costs, asked.cache):
                found.append(one)
                print(line(one), flush=True)
    short = {name: quick_points(measured) for name, measured in costs.items()}
    print(f"\n{SUMMARY}")
    print(summary("all", [(one, one.row.prediction) for one in found]))
    for name in costs:
        rows = [(one, one.row.prediction) for one in found if one.row.runtime == name]
        print(summary(f"all, {name} alone", rows))
    quick = [(one, one.predicted(Costs(short[one.row.runtime]))) for one in found]
    print(summary("the short survey's", quick))
    few = {name: tuple(cost for cost in own if cost.op in FEW) for name, own in short.items()}
    for what, own in (
        ("lent by another runtime, the short survey's own", short),
        (f"lent by another runtime, of its own {', '.join(FEW)}", few),
        ("lent by another runtime", dict.fromkeys(costs, ())),
    ):
        lent = {
            name: Transferred(Costs.of(costs[lender]), own[name])
            for name, lender in LENDERS.items()
            if name in costs and lender in costs
        }
        borrowed = [one for one in found if one.row.runtime in lent]
        print(summary(what, [(one, one.predicted(lent[one.row.runtime])) for one in borrowed]))


if __name__ == "__main__":
    main()
