"""The same networks through other tools that pip installs, judged and timed beside our build.

    python benchmarks/peers.py --cases DIR [--nncf PYTHON] [--litert PYTHON] [--only NAME,NAME]
        [--threads 1,2,auto] [--seconds 10] [--max-drop 0.005] [--work DIR] [--timed-by "chrt -f 10"]
        [--markdown FILE] [--json FILE]

Each folder of DIR holds model.onnx, calib.npz and eval.npz. `--nncf` is the Python of an environment with
nncf, openvino and onnx, `--litert` of one with litert-torch, ai-edge-quantizer, onnx-ir, onnx and pydantic;
without them these tools are left out. All get the same calibration samples. The others get the file with
its sizes fixed at batch 1, which helps them; we get sizes only where more than the batch is free.

With `--threads auto` ours is built so, and may run with fewer threads than there are cores; the others run
with all of them, and with one once more. What is said of the best of them holds for either number.

Everything is made in whole processes, ours from an empty cache, once for each number of threads. All of a
case are judged on eval.npz and timed in turn in one process. `--work` keeps what was made, and a further run
takes it; `--timed-by` is put before the process that times.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.tools.onnx_model_utils import fix_output_shapes, make_input_shape_fixed
from peers_table import BASELINE, Entrant, Result, rows, summary

from deploy.bundle.report.figures import plural
from deploy.frontend.onnx_file import read
from deploy.measure.host import physical_cores
from deploy.measure.latency import Timing, speedup
from deploy.spec.project import IoSection
from deploy.stages.prepare import prepare

HERE = Path(__file__).parent
DEPLOY = [sys.executable, "-m", "deploy"]
OURS = "deploy"
FLOATS: dict[str, tuple[str, dict[str, str]]] = {
    "ONNX Runtime float": ("ort", {}),
    "OpenVINO float32": ("openvino", {"INFERENCE_PRECISION_HINT": "f32"}),
    "OpenVINO as it comes": ("openvino", {}),
}
QUANTIZERS = {
    "ONNX Runtime PTQ, int8": ("ort-int8", "ort"),
    "ONNX Runtime PTQ, uint8": ("ort-uint8", "ort"),
    "NNCF": ("nncf", "openvino"),
    "NNCF, mixed": ("nncf-mixed", "openvino"),
    "NNCF, transformer": ("nncf-transformer", "openvino"),
}


@dataclass(frozen=True)
class Setting:
    """What was asked for. ``pythons``: by tool the Python of its environment."""

    pythons: Mapping[str, str]
    max_drop: float
    seconds: float
    timed_by: tuple[str, ...]


@dataclass(frozen=True)
class Finished:
    """A whole process: its seconds by the clock and of the processors, children included."""

    code: int
    out: str
    err: str
    seconds: float
    processor_seconds: float

    def why(self) -> str:
        """The line of the error output that says most."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        said = [line for line in lines if "rror" in line or "xception" in line or "failed" in line]
        return " ".join((said or lines or [f"ends with exit code {self.code}"])[-1].split())[:300]


def whole(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Finished(process.returncode, out.read(), err.read(), seconds, used.ru_utime + used.ru_stime)


def inputs(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {k: arrays[k] for k in arrays if k != "y" and not k.startswith("y.")}


def fixed(case: Path, out: Path) -> Path:
    """The file for the others: every size of its inputs is known, batch 1."""
    model = onnx.load(case / "model.onnx")
    for name, array in inputs(case / "calib.npz").items():
        make_input_shape_fixed(model.graph, name, [1, *array.shape[1:]])
    fix_output_shapes(model)
    onnx.save(model, out)
    return out


def is_transformer(model: Path) -> bool:
    """Whether what a softmax gives is multiplied with something else that was computed."""
    graph = onnx.load(model).graph
    known = {t.name for t in graph.initializer} | {n.output[0] for n in graph.node if n.op_type == "Constant"}
    shares = {n.output[0] for n in graph.node if n.op_type == "Softmax"}
    return any(
        n.op_type == "MatMul" and shares.intersection(n.input) and not known.intersection(n.input)
        for n in graph.node
    )


def kept(path: Path) -> Entrant | None:
    return Entrant(**json.loads(path.read_text())) if path.is_file() else None


def quantized(name: str, model: Path, case: Path, folder: Path, setting: Setting) -> Entrant:
    how, kind = QUANTIZERS[name]
    note = folder / f"{how}.json"
    if (known := kept(note)) is not None:
        return known
    path = folder / f"{how}{'.onnx' if kind == 'ort' else '.xml'}"
    python = setting.pythons["nncf"] if how.startswith("nncf") else sys.executable
    done = whole([python, str(HERE / "peers_child.py"), how, str(model), str(case / "calib.npz"), str(path)])
    made = Entrant(name, kind, str(path), seconds=done.seconds, processor_seconds=done.processor_seconds)
    if done.code:
        made.failed = done.why()
    else:
        made.said = done.out.rpartition("said: ")[2].strip()
    note.write_text(json.dumps(asdict(made)))
    return made


def litert(case: Path, folder: Path, setting: Setting) -> list[Entrant]:
    """litert-torch and ai-edge-quantizer on our cleaned graph, as neither reads ONNX: two files."""
    names = {"float": "litert-torch float", "int8": "litert-torch + ai-edge-quantizer"}
    notes = {kind: folder / f"litert-{kind}.json" for kind in names}
    known = [made for note in notes.values() if (made := kept(note)) is not None]
    if len(known) == len(names):
        return known
    place = folder / "litert"
    place.mkdir(exist_ok=True)
    shapes = {name: (1, *array.shape[1:]) for name, array in inputs(case / "calib.npz").items()}
    prepare(read(case / "model.onnx"), place, shapes=shapes, sections={}, io=IoSection(), seed=0, threads=1)
    python = setting.pythons["litert"]
    search = os.pathsep.join((str(Path(python).parent), os.environ["PATH"]))
    child = [python, str(HERE / "converters_child.py"), "litert-torch", str(place / "fused.onnx")]
    done = whole([*child, str(case / "calib.npz"), str(place)], {**os.environ, "PATH": search})
    said = {} if done.code else json.loads(done.out.strip().splitlines()[-1])["failed"]
    found = []
    for kind, name in names.items():
        path = place / f"{kind}.tflite"
        entrant = Entrant(name, "tflite", str(path), {}, done.why() if done.code else said.get(kind, ""))
        entrant.seconds, entrant.processor_seconds = done.seconds, done.processor_seconds
        if not entrant.failed and not path.is_file():
            entrant.failed = "writes no file"
        notes[kind].write_text(json.dumps(asdict(entrant)))
        found.append(entrant)
    return found


def ours(case: Path, folder: Path, threads: str, setting: Setting) -> Entrant:
    note = folder / f"ours-{threads}.json"
    if (known := kept(note)) is not None:
        return known
    out = folder / f"ours-{threads}"
    arguments = [
        "build", str(case / "model.onnx"), "--target", "x86-cpu", "--data", str(case / "calib.npz"),
        "--eval", str(case / "eval.npz"), "--max-drop", str(setting.max_drop), "--threads", threads,
        "--out", str(out), "--json",
    ]  # fmt: skip
    free = {
        port.name: [
            (d.dim_value if d.HasField("dim_value") else 0) <= 0 for d in port.type.tensor_type.shape.dim
        ]
        for port in onnx.load(case / "model.onnx", load_external_data=False).graph.input
    }
    for name, array in inputs(case / "calib.npz").items():
        if any(free[name][1:]):
            arguments += ["--shape", f"{name}=1,{','.join(map(str, array.shape[1:]))}"]
    with tempfile.TemporaryDirectory() as cache:
        done = whole([*DEPLOY, *arguments, "--cache", cache])
    made = Entrant(OURS, "bundle", str(out / "x86-cpu"), threads=_most(threads))
    made.seconds, made.processor_seconds = done.seconds, done.processor_seconds
    if done.code not in (0, 9):
        made.failed = done.why()
    else:
        manifest = json.loads((out / "x86-cpu" / "manifest.json").read_text())
        made.threads = manifest["options"]["threads"]
        made.said = spoken(manifest) + (f", {plural(made.threads, 'thread')}" if threads == "auto" else "")
    note.write_text(json.dumps(asdict(made)))
    return made


def spoken(manifest: dict[str, object]) -> str:
    """Runtime, precisions by the number of blocks, what floats are computed in, verdict."""
    precision, options, verdict = manifest["precision"], manifest["options"], manifest["verdict"]
    assert isinstance(precision, dict)
    assert isinstance(options, dict)
    assert isinstance(verdict, dict)
    blocks = " + ".join(f"{count} {name}" for name, count in precision.items())
    floats = options.get("inference_precision", "")
    floats = ", floats as bf16" if floats == "bf16" and "float32" in precision else ""
    return f"{manifest['runtime']}: {blocks}{floats} ({verdict['status']})"


def _most(threads: str) -> int:
    return physical_cores() if threads == "auto" else int(threads)


def job(files: Sequence[Entrant], case: Path, folder: Path, seconds: float) -> Path:
    path = folder / "job.json"
    listed = [{k: getattr(e, k) for k in ("name", "kind", "path", "settings", "threads")} for e in files]
    said = {"files": listed, "data": str(case / "eval.npz"), "seconds": seconds}
    path.write_text(json.dumps(said))
    return path


def run(what: str, path: Path, before: Sequence[str] = ()) -> Finished:
    return whole([*before, sys.executable, str(HERE / "peers_run.py"), what, str(path)])


def entrants(case: Path, folder: Path, setting: Setting) -> list[Entrant]:
    """What the others make of a case, each judged in a process of its own, as one may crash."""
    note = folder / "judged.json"
    if note.is_file():
        return [Entrant(**one) for one in json.loads(note.read_text())]
    model = fixed(case, folder / "fixed.onnx")
    made = [Entrant(name, kind, str(model), settings) for name, (kind, settings) in FLOATS.items()]
    for name, (how, _) in QUANTIZERS.items():
        missing = how.startswith("nncf") and not setting.pythons.get("nncf")
        if not missing and (how != "nncf-transformer" or is_transformer(model)):
            made.append(quantized(name, model, case, folder, setting))
    if setting.pythons.get("litert"):
        made += litert(case, folder, setting)
    for entrant in made:
        judge(entrant, case, folder)
    note.write_text(json.dumps([asdict(entrant) for entrant in made]))
    return made


def judge(entrant: Entrant, case: Path, folder: Path) -> None:
    if entrant.failed:
        return
    done = run("judge", job([entrant], case, folder, 0.0))
    if done.code:
        entrant.failed = f"does not run: {done.why()}"
    else:
        entrant.right = json.loads(done.out.strip().splitlines()[-1])[entrant.name]


def compare(case: Path, threads: str, folder: Path, setting: Setting) -> Result:
    own = ours(case, folder, threads, setting)
    judge(own, case, folder)
    most, others = _most(threads), entrants(case, folder, setting)
    found = [replace(e, threads=most) for e in others]
    if threads == "auto" and most > 1:
        found += [replace(e, name=f"{e.name}, 1 thread", threads=1) for e in others]
    found.append(own)
    timed = [entrant for entrant in found if not entrant.failed]
    done = run("time", job(timed, case, folder, setting.seconds), setting.timed_by)
    if done.code:
        raise SystemExit(f"{case.name}: timing fails: {done.err}")
    times = json.loads(done.out.strip().splitlines()[-1])
    rounds = {name: Timing(np.array(one["rounds"]), np.array(one["rounds"])) for name, one in times.items()}
    for entrant in timed:
        one = times[entrant.name]
        entrant.p50_ms, entrant.spread = one["p50_ms"], one["spread"]
        entrant.speed = speedup(rounds[BASELINE], rounds[entrant.name])[0]
        if OURS in rounds:
            middle, (low, high) = speedup(rounds[entrant.name], rounds[OURS])
            entrant.slower_than_ours = (middle, low, high)
    return Result(case.name, threads, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--nncf", default="")
    parser.add_argument("--litert", default="")
    parser.add_argument("--only", default="")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, for each case and threads")
    parser.add_argument("--max-drop", type=float, default=0.005)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--timed-by", default="")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    pythons = {"nncf": asked.nncf, "litert": asked.litert}
    setting = Setting(pythons, asked.max_drop, asked.seconds, tuple(shlex.split(asked.timed_by)))
    wanted = set(filter(None, asked.only.split(",")))
    cases = sorted(p.parent for p in asked.cases.glob("*/model.onnx"))
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "openvino", "ai-edge-litert"))
    lines, results = [f"{versions}, {time.strftime('%Y-%m-%d')}"], []
    print(lines[0], flush=True)
    with tempfile.TemporaryDirectory(prefix="deploy-peers-") as scratch:
        for threads in asked.threads.split(","):
            table: list[Result] = []
            for case in cases:
                if wanted and case.name not in wanted:
                    continue
                folder = (asked.work or Path(scratch)) / case.name
                folder.mkdir(parents=True, exist_ok=True)
                table.append(compare(case, threads, folder.resolve(), setting))
                print("\n".join(rows(table[-1], OURS)), flush=True)
            lines += summary(table, OURS)
            print("\n".join(summary(table, OURS)), flush=True)
            results += table
    if asked.markdown:
        asked.markdown.write_text("\n".join(lines) + "\n")
    if asked.json:
        asked.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
