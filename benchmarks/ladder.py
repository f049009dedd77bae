"""What each training-free rung of the accuracy ladder wins on real networks, alone and together.

    python benchmarks/ladder.py CASES_DIR [--only NAME] [--samples 800] [--markdown FILE]

Each folder of CASES_DIR holds model.onnx, calib.npz and eval.npz with class labels ``y``. Every block that
can be INT8 is; the Q/DQ graph runs in ONNX Runtime, one thread. A cell holds the drop of top-1 on eval data
in points, and the signal-to-noise ratio of the outputs in dB, which tells rungs apart that the drop of a few
hundred samples cannot. All together: a rung is kept where it wins half a dB at the outputs on calibration
samples. The last column is the time that all rungs took over that of one calibration pass.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import fixed_batch, run_samples
from deploy.adapter.profiles import load_profile
from deploy.data.dataset import Dataset, open_dataset
from deploy.execute.reference import open_graph
from deploy.frontend.onnx_file import read
from deploy.graph.blocks import Block, partition
from deploy.graph.qdq import insert
from deploy.graph.summary import tensor_specs
from deploy.quantize import correct, equalize, observers, smooth, split
from deploy.quantize.assign import Assignment, assign
from deploy.quantize.calibrate import calibrate
from deploy.quantize.place import Chain, Placement, find_chains, observed_values, place
from deploy.quantize.ranges import Histogram, Range
from deploy.quantize.rung import Rung, output_noise
from deploy.spec.profile import QuantRules, Runtime
from deploy.spec.project import IoSection
from deploy.stages.prepare import load, prepare

RULES = {"x86-vnni ort": ("x86-vnni", "ort"), "android tflite": ("android", "tflite")}
FEW, MANY, ALL = 8, 64, 512
"""Samples for what runs many candidates, for statistics of channels, and for calibration and means."""


@dataclass(frozen=True)
class State:
    """A network on its way up: the float graph, what is quantized in it, and how."""

    graph: ir.Model
    runtime: Runtime
    data: Dataset
    blocks: tuple[Block, ...]
    chains: list[Chain]
    histograms: dict[str, Histogram]
    placement: Placement
    excluded: frozenset[str] = frozenset()
    ranges: Mapping[str, Range] = field(default_factory=dict)
    corrected: Assignment | None = None
    steps: int = 0

    @property
    def rules(self) -> QuantRules:
        assert self.runtime.quant is not None
        return self.runtime.quant

    def assignment(self) -> Assignment:
        if self.corrected is not None:
            return self.corrected
        return assign(self.graph, self.placement, self.histograms, self.rules, "mse", self.ranges)

    def quantized(self) -> ir.Model:
        plan = self.assignment()
        return insert(self.graph, plan.tensors, plan.codes)

    def noise(self, exact: ir.Model) -> float:
        return output_noise(exact, self.quantized(), self.data, samples=ALL)


def opened(
    graph: ir.Model, runtime: Runtime, data: Dataset, excluded: frozenset[str] = frozenset(), steps: int = 0
) -> State:
    """Calibrated anew, all blocks INT8."""
    blocks = partition(graph)
    chains = find_chains(graph, blocks, runtime)
    histograms = calibrate(graph, data, observed_values(graph, chains, runtime), samples=ALL)
    placement = _placed(graph, blocks, chains, runtime, excluded)
    return State(graph, runtime, data, blocks, chains, histograms, placement, excluded, steps=steps)


def _placed(
    graph: ir.Model,
    blocks: tuple[Block, ...],
    chains: list[Chain],
    runtime: Runtime,
    excluded: frozenset[str],
) -> Placement:
    return place(graph, blocks, {b.id: "int8" for b in blocks}, chains, runtime, excluded)


def _won(rung: Rung[object]) -> int:
    return sum(step.gain != 0 for step in rung.steps)


def equalized(s: State) -> State:
    rung = equalize.apply(s.graph, s.placement, s.rules, s.data, observer="mse", samples=ALL)
    return opened(rung.result, s.runtime, s.data, s.excluded, s.steps + _won(rung)) if rung.changed else s


def smoothed(s: State) -> State:
    rung = smooth.apply(s.graph, s.placement, s.rules, s.data, observer="mse", samples=MANY)
    return opened(rung.result, s.runtime, s.data, s.excluded, s.steps + _won(rung)) if rung.changed else s


def separated(s: State) -> State:
    int8 = {b.id: "int8" for b in s.blocks}
    rung = split.apply(
        s.graph, s.blocks, int8, s.chains, s.runtime, s.histograms, s.data, observer="mse", samples=MANY
    )
    placement = _placed(s.graph, s.blocks, s.chains, s.runtime, rung.result)
    return replace(s, placement=placement, excluded=rung.result, steps=s.steps + _won(rung))


def ranged(s: State) -> State:
    rung = observers.apply(s.graph, s.placement, s.histograms, s.rules, s.data, observer="mse", samples=FEW)
    return replace(s, ranges=rung.result, steps=s.steps + _won(rung))


def unbiased(s: State) -> State:
    rung = correct.apply(s.graph, s.assignment(), s.rules, s.data, samples=ALL)
    found = rung.result
    return replace(s, graph=found.graph, corrected=found.assignment, steps=s.steps + _won(rung))


RUNGS: dict[str, Callable[[State], State]] = {
    "ranges": ranged,
    "equalize": equalized,
    "smooth": smoothed,
    "split": separated,
    "correct": unbiased,
}
TOGETHER = ("equalize", "smooth", "split", "ranges", "correct")
"""What changes the graph comes first, what depends on all the rest last."""
KEPT = 0.9
"""What a rung must leave of the noise at the outputs at most, on calibration samples: half a decibel."""


def outputs(graph: ir.Model, data: Dataset, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The first output and the labels, sample by sample."""
    found, labels = [], []
    with open_graph(graph) as session:
        size = fixed_batch(session.inputs) or 32
        for batch in data.batches(size, limit=samples):
            found.append(next(iter(run_samples(session, batch.feeds, size).values())))
            labels.append(batch.targets[""])
    return np.concatenate(found).astype(np.float64), np.concatenate(labels)


def cell(state: State, exact: np.ndarray, labels: np.ndarray, data: Dataset, samples: int) -> str:
    found = outputs(state.quantized(), data, samples)[0]
    drop = 100 * float((exact.argmax(1) == labels).mean() - (found.argmax(1) == labels).mean())
    noise = float(np.square(exact - found).sum())
    return f"{drop:+.2f} · {10 * np.log10(float(np.square(exact).sum()) / max(noise, 1e-30)):.1f}"


def rows(case: Path, samples: int) -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        prepare(
            read(case / "model.onnx"),
            Path(scratch),
            shapes={},
            sections={},
            io=IoSection(),
            seed=0,
            threads=1,
        )
        graph = load(Path(scratch)).fused
        specs = tensor_specs(graph.graph.inputs)
        data, unseen = (open_dataset(case / name, specs) for name in ("calib.npz", "eval.npz"))
        exact, labels = outputs(graph, unseen, samples)
        lines = []
        for title, (device, runtime) in RULES.items():
            begin = time.perf_counter()
            plain = opened(graph, load_profile(device).runtime_named(runtime), data)
            pass_seconds = time.perf_counter() - begin
            cells = [cell(plain, exact, labels, unseen, samples)]
            for rung in RUNGS.values():
                after = rung(plain)
                cells.append(cell(after, exact, labels, unseen, samples) if after.steps else "–")
            begin, state = time.perf_counter(), plain
            noise = state.noise(graph)
            for name in TOGETHER:
                after = RUNGS[name](state)
                if after.steps > state.steps and (found := after.noise(graph)) < KEPT * noise:
                    state, noise = after, found
            took = (time.perf_counter() - begin) / pass_seconds
            cells.append(cell(state, exact, labels, unseen, samples))
            lines.append(f"| {case.name} | {title} | " + " | ".join(cells) + f" | {took:.1f} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path)
    parser.add_argument("--only", action="append", help="only this case; may be repeated")
    parser.add_argument("--samples", type=int, default=800, help="of eval data, at most")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    arguments = parser.parse_args()
    found = sorted(p.parent for p in arguments.cases.glob("*/model.onnx"))
    chosen = [c for c in found if not arguments.only or c.name in arguments.only]
    if not chosen:
        raise SystemExit(f"no case with a model.onnx under {arguments.cases}")
    head = ["case", "rules", "plain", *RUNGS, "all together", "time, passes"]
    table = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    print("\n".join(table))
    for case in chosen:
        table += rows(case, arguments.samples)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
