"""Our .tflite files against those of other converters: speed, partitions, accuracy, size, time to convert.

    python benchmarks/converters.py --cases DIR [--litert-torch-python PYTHON] [--onnx2tf-python PYTHON]
        [--only NAME] [--seconds 6] [--markdown FILE] [--json FILE]

Each folder of DIR holds model.onnx, calib.npz and eval.npz. Ours is `deploy build --target android --runtime
tflite` in float and in INT8, whole processes, each from an empty cache. The others run in environments of
their own (`pip install litert-torch ai-edge-quantizer onnx-ir onnx pydantic`; `pip install onnx2tf`) and get
more than their user has: our cleaned graph, batch fixed at 1, and the same calibration samples.

All files of a case are then timed in turn in one process: LiteRT's interpreter with XNNPACK, one thread,
batch 1. Ratios are medians over the rounds with a 95 % interval by bootstrap. Accuracy is that of every file
on eval.npz; its reference is ONNX Runtime, without optimisations, on the bundle's graph (Q/DQ for INT8).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx_ir as ir
from ai_edge_litert.interpreter import Interpreter

from backends.tflite.write import read_file
from deploy.adapter.protocol import Arrays, Runner
from deploy.bundle.read import load_bundle, load_plan
from deploy.execute.reference import open_graph
from deploy.frontend.onnx_file import read
from deploy.graph.edit import constant
from deploy.graph.qdq import insert, quantize_array
from deploy.measure.latency import Timing, TimingPlan, measure, speedup
from deploy.progress import SILENT
from deploy.spec.project import IoSection
from deploy.spec.tensors import TensorSpec
from deploy.stages.prepare import prepare
from deploy.stages.target import find_target

DEPLOY = [sys.executable, "-m", "deploy"]
CHILD = Path(__file__).with_name("converters_child.py")
OURS = "deploy"
KINDS = ("float", "int8")


class LiteRt:
    """A .tflite file in LiteRT's interpreter, offered as a Runner. Its inputs are taken in order."""

    executed_by = "LiteRT"

    def __init__(self, path: Path, one: Arrays) -> None:
        """``one`` is a single sample; free sizes become its."""
        self.engine = Interpreter(model_path=str(path), num_threads=1)
        for port, array in zip(_in_order(self.engine.get_input_details()), one.values(), strict=True):
            if tuple(port["shape"]) != array.shape:
                self.engine.resize_tensor_input(port["index"], list(array.shape))
        self.engine.allocate_tensors()
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.ports = dict(zip(one, _in_order(self.engine.get_input_details()), strict=True))
        self.result = self.engine.get_output_details()[0]

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        del want
        for name, port in self.ports.items():
            self.engine.set_tensor(port["index"], feeds[name])
        self.engine.invoke()
        return {"": self.engine.get_tensor(self.result["index"])}

    def fed(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Samples as the file wants them: as integers where it takes such. This is not timed."""
        made = {}
        for name, port in self.ports.items():
            array, kind = feeds[name], np.dtype(port["dtype"])
            if kind == np.int8 and array.dtype.kind == "f":
                scale, zero = port["quantization"]
                array = np.clip(np.rint(array / scale) + zero, -128, 127).astype(kind)
            made[name] = np.ascontiguousarray(array)
        return made

    def close(self) -> None:
        del self.engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _in_order(ports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(ports, key=lambda port: str(port["name"])) if len(ports) > 1 else ports


@dataclass
class Made:
    """A tool's file of one kind. ``ratio``: its time in multiples of ours, with the interval."""

    tool: str
    kind: str
    path: Path | None
    failed: str = ""
    convert_s: float = 0.0
    calibrate_s: float = 0.0
    process_s: float = 0.0
    bytes: int = 0
    transposes: int = 0
    inner_transposes: int = 0
    partitions: int = 0
    outside: list[str] = field(default_factory=list)
    accuracy: float = math.nan
    p50_ms: float = math.nan
    spread: float = math.nan
    ratio: tuple[float, float, float] = (math.nan, math.nan, math.nan)


@dataclass
class Compared:
    """All files of a case, and what the graphs of our bundles give in ONNX Runtime."""

    case: str
    files: list[Made]
    reference: dict[str, float] = field(default_factory=dict)

    def one(self, tool: str, kind: str) -> Made | None:
        return next((m for m in self.files if (m.tool, m.kind) == (tool, kind) and not m.failed), None)


def samples(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {k: arrays[k] for k in arrays if k != "y" and not k.startswith("y.")}


def ours(case: Path, kind: str, scratch: Path) -> Made:
    out = scratch / f"bundle-{kind}"
    arguments = [
        "build", str(case / "model.onnx"), "--target", "android", "--runtime", "tflite", "--precision", kind,
        "--data", str(case / "calib.npz"), "--eval", str(case / "eval.npz"), "--out", str(out),
        "--cache", str(scratch / f"cache-{kind}"), "--quiet", "--no-measure",
    ]  # fmt: skip
    begin = time.perf_counter()
    done = subprocess.run([*DEPLOY, *arguments], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode not in (0, 9):
        return Made(OURS, kind, None, failed=_last(done.stderr, "error: "), process_s=seconds)
    bundle = out / "android"
    timed = subprocess.run(
        [sys.executable, __file__, "--lower", str(bundle)], capture_output=True, text=True, check=False
    )
    if timed.returncode:
        raise SystemExit(f"{case.name} {kind}: {timed.stderr}")
    first = float(json.loads(timed.stdout)["first"])
    return Made(OURS, kind, bundle / "artifact" / "model.tflite", convert_s=first, process_s=seconds)


def quantized(folder: Path) -> ir.Model:
    """A bundle's graph with the pairs that its plan says."""
    graph, plan = read(folder / "graph.onnx").model, load_plan(load_bundle(folder))
    weights = {name: constant(value) for name, value in graph.graph.initializers.items()}
    codes = {
        name: quantize_array(array, params)
        for name, params in plan.tensors.items()
        if (array := weights.get(name)) is not None
    }
    return insert(graph, plan.tensors, codes) if plan.tensors else graph


def network(path: Path) -> list[tuple[bytes, bytes]]:
    """The tensors of a file with their constants, without what describes the model beside it."""
    model = read_file(path)
    stored = [b"" if buffer.data is None else bytes(buffer.data) for buffer in model.buffers]
    return [(bytes(tensor.name), stored[tensor.buffer]) for tensor in model.subgraphs[0].tensors]


def lower_once_more(folder: Path) -> dict[str, float]:
    """Seconds that lowering a bundle's graph takes: the first time in this process, and the median of 5."""
    bundle = load_bundle(folder)
    (route,) = find_target("android", "tflite").routes
    graph, plan = quantized(folder), load_plan(bundle)
    seconds = []
    with tempfile.TemporaryDirectory() as place:
        for _ in range(6):
            begin = time.perf_counter()
            made = route.backend.lower(graph, plan, route.runtime, Path(place), SILENT)
            seconds.append(time.perf_counter() - begin)
        if network(made.main) != network(folder / "artifact" / made.files[0]):
            raise SystemExit(f"{folder}: lowered again it is another file")
    return {"first": seconds[0], "median": float(np.median(seconds[1:]))}


def theirs(tool: str, python: str, graph: Path, case: Path, scratch: Path) -> list[Made]:
    folder = scratch / tool
    folder.mkdir()
    # As in an activated environment: tools start others by name.
    environment = {**os.environ, "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"}
    begin = time.perf_counter()
    done = subprocess.run(
        [python, str(CHILD), tool, str(graph), str(case / "calib.npz"), str(folder)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    if done.returncode:
        return [Made(tool, kind, None, failed=_last(done.stderr), process_s=seconds) for kind in KINDS]
    said = json.loads(done.stdout)
    found = []
    for kind in KINDS:
        path = folder / f"{kind}.tflite"
        steps = said["seconds"]
        made = Made(tool, kind, path, said["failed"].get(kind, ""), process_s=seconds)
        # litert-torch quantizes the float file, onnx2tf converts and calibrates anew.
        made.convert_s = steps["float"]
        if kind == "int8":
            made.calibrate_s = steps.get("calibrate", 0.0)
            made.convert_s = steps.get("int8", 0.0) + (steps["float"] if "calibrate" in steps else 0.0)
        found.append(made)
    return found


def cleaned(case: Path, scratch: Path) -> Path:
    """The model for the others: cleaned as for us, batch fixed at 1."""
    folder = scratch / "cleaned"
    folder.mkdir()
    shapes = {name: (1, *array.shape[1:]) for name, array in samples(case / "calib.npz").items()}
    source = read(case / "model.onnx")
    prepare(source, folder, shapes=shapes, sections={}, io=IoSection(), seed=0, threads=1)
    return folder / "fused.onnx"


def inspect(made: Made, runner: LiteRt) -> None:
    """Size, partitions, what stands outside them, and the turns that are not of an input or output."""
    assert made.path is not None
    made.bytes = made.path.stat().st_size
    operators = runner.engine._get_ops_details()
    delegated = [o for o in operators if o["op_name"] == "DELEGATE"]
    made.partitions = len(delegated)
    plain = [o for o in operators if o["op_name"] != "DELEGATE"]
    border = {int(p["index"]) for p in runner.engine.get_input_details()}
    last = {int(p["index"]) for p in runner.engine.get_output_details()}
    for operator in plain:  # what only turns or rounds an input is one
        moves = operator["op_name"] in ("QUANTIZE", "TRANSPOSE", "RESHAPE")
        if moves and int(operator["inputs"][0]) in border:
            border.update(int(i) for i in operator["outputs"])
    for operator in reversed(plain):
        moves = operator["op_name"] in ("DEQUANTIZE", "TRANSPOSE", "RESHAPE")
        if moves and last.intersection(int(i) for i in operator["outputs"]):
            last.add(int(operator["inputs"][0]))
    turns = [o for o in plain if o["op_name"] == "TRANSPOSE"]
    made.transposes = len(turns)
    made.inner_transposes = sum(
        int(o["inputs"][0]) not in border and not last.intersection(int(i) for i in o["outputs"])
        for o in turns
    )
    made.outside = sorted(set(_undelegated(plain, delegated)))


def _undelegated(plain: list[dict[str, Any]], delegated: list[dict[str, Any]]) -> Iterator[str]:
    """Operators that a partition's result goes into, or that make what it reads."""
    reads = {int(i) for o in delegated for i in _ints(o["inputs"])}
    makes = {int(i) for o in delegated for i in _ints(o["outputs"])}
    for o in plain:
        between = reads.intersection(_ints(o["outputs"])) or makes.intersection(_ints(o["inputs"]))
        if len(delegated) > 1 and between:
            yield str(o["op_name"])


def _ints(values: object) -> list[int]:
    return [int(i) for i in np.asarray(values).reshape(-1)]


def accuracy(runner: LiteRt, case: Path) -> float:
    inputs, labels = samples(case / "eval.npz"), np.load(case / "eval.npz")["y"]
    right = 0
    for i, label in enumerate(labels):
        one = runner.fed({name: array[i : i + 1] for name, array in inputs.items()})
        right += int(runner.run(one)[""].argmax() == label)
    return right / len(labels)


def reference(bundle: Path, case: Path) -> float:
    inputs, labels = samples(case / "eval.npz"), np.load(case / "eval.npz")["y"]
    right = 0
    with open_graph(quantized(bundle), optimised=False) as session:
        for start in range(0, len(labels), 50):
            found = session.run({name: a[start : start + 50] for name, a in inputs.items()})
            scores = found[session.outputs[0].name]
            right += int((scores.argmax(axis=-1).reshape(-1) == labels[start : start + 50]).sum())
    return right / len(labels)


def compare(case: Path, others: dict[str, str], seconds: float, scratch: Path) -> Compared:
    result = Compared(case.name, [ours(case, kind, scratch) for kind in KINDS])
    graph = cleaned(case, scratch)
    for tool, python in others.items():
        result.files += theirs(tool, python, graph, case, scratch)
    one = {name: array[:1] for name, array in samples(case / "eval.npz").items()}
    runners: dict[str, LiteRt] = {}
    for made in result.files:
        if made.failed or made.path is None:
            continue
        try:
            runner = LiteRt(made.path, one)
            inspect(made, runner)
            made.accuracy = accuracy(runner, case)
            runners[f"{made.tool} {made.kind}"] = runner
        except (RuntimeError, ValueError) as e:
            made.failed = f"does not run in LiteRT: {' '.join(str(e).split())}"[:300]
        if made.tool == OURS:
            result.reference[made.kind] = reference(made.path.parents[1], case)
    fixed: dict[str, Runner] = {name: _Fed(runner, runner.fed(one)) for name, runner in runners.items()}
    times = measure(fixed, one, TimingPlan(seconds=seconds)) if fixed else {}
    for made in result.files:
        found = times.get(f"{made.tool} {made.kind}")
        mine = times.get(f"{OURS} {made.kind}")
        if found is not None:
            made.p50_ms, made.spread = found.summary().p50, found.summary().spread
            if mine is not None:
                made.ratio = _ratio(found, mine)
    return result


class _Fed(LiteRt):
    """A file with its own form of the one sample that is timed."""

    def __init__(self, runner: LiteRt, feeds: dict[str, np.ndarray]) -> None:
        self.__dict__.update(runner.__dict__)
        self.feeds = feeds

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        del feeds
        return super().run(self.feeds, want)


def _ratio(other: Timing, mine: Timing) -> tuple[float, float, float]:
    middle, (low, high) = speedup(other, mine)
    return middle, low, high


def _last(text: str, start: str = "") -> str:
    lines = [line for line in text.strip().splitlines() if line.startswith(start)]
    return " ".join((lines or ["nothing said"])[-1].split())[:300]


HEADER = """\
| case | kind | tool | ms | time / ours [95 %] | partitions | transposes (inner) | top-1 | kB \
| convert, s | calibrate, s | process, s |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def rows(result: Compared) -> Iterator[str]:
    for kind in KINDS:
        for made in (m for m in result.files if m.kind == kind):
            start = f"| {result.case} | {kind} | {made.tool} |"
            if made.failed:
                yield f"{start} fails: {made.failed.replace('|', '/')} ||||||||||"
                continue
            middle, low, high = made.ratio
            score = f"{100 * made.accuracy:.2f}"
            if made.tool == OURS:
                score += f" (Q/DQ {100 * result.reference[kind]:.2f})"
            yield (
                f"{start} {made.p50_ms:.4f} | {middle:.2f} [{low:.2f}, {high:.2f}] | {made.partitions} "
                f"| {made.transposes} ({made.inner_transposes}) | {score} | {made.bytes / 1000:.1f} "
                f"| {made.convert_s:.3f} | {made.calibrate_s:.2f} | {made.process_s:.1f} |"
            )


def summary(results: list[Compared], others: Sequence[str]) -> Iterator[str]:
    """Geometric means over the cases that both sides have, the worst of each, and what is off."""
    for tool in others:
        for kind in KINDS:
            pairs = [
                (r.case, m, mine) for r in results if (m := r.one(tool, kind)) and (mine := r.one(OURS, kind))
            ]
            if not pairs:
                continue
            speeds = [m.ratio[0] for _, m, _ in pairs]
            faster = [m.convert_s / mine.convert_s for _, m, mine in pairs]
            worst = min(range(len(pairs)), key=speeds.__getitem__)
            yield (
                f"- {tool}, {kind}, {len(pairs)} cases: ours is {_mean(speeds):.2f} times as fast (worst "
                f"{speeds[worst]:.2f}, {pairs[worst][0]}); converting {_mean(faster):.0f} times "
                f"(worst {min(faster):.0f})"
            )
    best = []
    for r in results:
        own = [m.p50_ms for m in r.files if m.tool == OURS and not m.failed]
        rest = [m.p50_ms for m in r.files if m.tool != OURS and not m.failed]
        if own and rest:
            best.append(min(rest) / min(own))
    if best:
        yield (
            f"- our fastest file against the fastest of all others: {_mean(best):.2f} times as fast "
            f"(worst {min(best):.2f}), {len(best)} cases"
        )
    for r in results:
        for m in (m for m in r.files if m.tool == OURS and not m.failed):
            off = 100 * abs(m.accuracy - r.reference[m.kind])
            if off > 0.3:
                yield f"- {r.case} {m.kind}: {off:.2f} points from its reference"
            if m.partitions > 1:
                yield f"- {r.case} {m.kind}: {m.partitions} partitions, between them {', '.join(m.outside)}"


def _mean(numbers: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, numbers)) / len(numbers)) if numbers else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--litert-torch-python", default="")
    parser.add_argument("--onnx2tf-python", default="")
    parser.add_argument("--only", action="append", help="only this case; may be repeated")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing for each case")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--lower", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.lower:
        print(json.dumps(lower_once_more(asked.lower)))
        return
    if not asked.cases:
        parser.error("--cases is missing")
    others = {"litert-torch": asked.litert_torch_python, "onnx2tf": asked.onnx2tf_python}
    others = {tool: python for tool, python in others.items() if python}
    found = sorted(p.parent for p in asked.cases.glob("*/model.onnx"))
    lines = [f"ai-edge-litert {version('ai-edge-litert')}, {time.strftime('%Y-%m-%d')}", "", HEADER]
    print("\n".join(lines), flush=True)
    results = []
    for case in (c for c in found if not asked.only or c.name in asked.only):
        with tempfile.TemporaryDirectory(prefix="deploy-converters-") as scratch:
            results.append(compare(case, others, asked.seconds, Path(scratch)))
        lines += rows(results[-1])
        print("\n".join(rows(results[-1])), flush=True)
    lines += ["", *summary(results, list(others))]
    print("\n" + "\n".join(summary(results, list(others))))
    if asked.markdown:
        asked.markdown.write_text("\n".join(lines) + "\n")
    if asked.json:
        asked.json.write_text(json.dumps([asdict(r) for r in results], indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
