"""Whole builds against NNCF's whole process: processor and wall-clock seconds, in turn.

    python benchmarks/build_time.py --cases DIR --nncf PYTHON [--only NAME,NAME] [--tune off,quick]
        [--without-eval | --nncf-scores] [--repeat 1] [--json FILE]

Each folder of DIR holds model.onnx, calib.npz and eval.npz. Ours starts from an empty cache and judges on
eval.npz, which NNCF does not look at; with ``--without-eval`` we do not either, and judge on the calibration
samples; with ``--nncf-scores`` its process scores the float file and its own as we do, once each. NNCF gets
the file with its sizes fixed, its 1.5 to 2 seconds of imports are part of it as ours are; our modules are
compiled to bytecode first, as pip does where it installs packages.
Of ``--repeat`` rounds the least is taken. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import compileall
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
from peers import DEPLOY, HERE, Finished, fixed, inputs, whole

import backends
import deploy


def nncf(case: Path, python: str, folder: Path, *, scores: bool) -> Finished:
    model = fixed(case, folder / "fixed.onnx")
    child = [python, str(HERE / "peers_child.py"), "nncf", str(model), str(case / "calib.npz")]
    return whole([*child, str(folder / "nncf.xml"), *([str(case / "eval.npz")] if scores else [])])


def ours(case: Path, tune: str, folder: Path, *, judged: bool) -> Finished:
    arguments = [
        "build", str(case / "model.onnx"), "--target", "x86-cpu", "--data", str(case / "calib.npz"),
        "--max-drop", "0.005", "--threads", "1", "--tune", tune,
        "--out", str(folder / "out"), "--cache", str(folder / "cache"), "--json",
    ]  # fmt: skip
    if judged:
        arguments += ["--eval", str(case / "eval.npz"), "--metric", "top1"]
    ports = onnx.load(case / "model.onnx", load_external_data=False).graph.input
    free = {p.name: [d.dim_value <= 0 for d in p.type.tensor_type.shape.dim] for p in ports}
    for name, array in inputs(case / "calib.npz").items():
        if any(free[name][1:]):
            arguments += ["--shape", f"{name}=1,{','.join(map(str, array.shape[1:]))}"]
    return whole([*DEPLOY, *arguments])


def compared(case: Path, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Processor and wall-clock seconds by name, the least of the rounds."""
    found: dict[str, tuple[float, float]] = {}
    for _ in range(options.repeat):
        for name in ("NNCF", *options.tune.split(",")):
            with tempfile.TemporaryDirectory() as work:
                folder = Path(work)
                judged = not options.without_eval
                done = (
                    nncf(case, options.nncf, folder, scores=options.nncf_scores)
                    if name == "NNCF"
                    else ours(case, name, folder, judged=judged)
                )
            if done.code not in (0, 9):
                sys.exit(f"{case.name}, {name}: {done.why()}")
            before = found.get(name, (float("inf"), float("inf")))
            found[name] = min(before[0], done.processor_seconds), min(before[1], done.seconds)
    return found


def rows(found: dict[str, dict[str, tuple[float, float]]], tunes: Sequence[str]) -> str:
    titles = [f"{tune}: processor s | wall s | times NNCF" for tune in tunes]
    lines = [f"| case | NNCF: processor s | wall s | {' | '.join(titles)} |"]
    lines.append("|---|" + "---|" * (2 + 3 * len(tunes)))
    for case, times in found.items():
        base, cells = times["NNCF"], [f"{case} | {times['NNCF'][0]:.1f} | {times['NNCF'][1]:.1f}"]
        for tune in tunes:
            processor, wall = times[tune]
            cells.append(f"{processor:.1f} | {wall:.1f} | {processor / base[0]:.2f} ({wall / base[1]:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build time against NNCF's whole process.")
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--nncf", required=True, help="the Python of an environment with nncf and openvino")
    parser.add_argument("--only", default="", help="names of cases, separated by commas")
    parser.add_argument("--tune", default="off,quick")
    judged = parser.add_mutually_exclusive_group()
    judged.add_argument("--without-eval", action="store_true")
    judged.add_argument("--nncf-scores", action="store_true")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for package in (deploy, backends):
        compileall.compile_dir(Path(package.__path__[0]), quiet=2)
    names = options.only.split(",") if options.only else []
    cases = sorted(p.parent for p in options.cases.glob("*/model.onnx"))
    found = {}
    for case in cases:
        if not names or case.name in names:
            found[case.name] = compared(case, options)
            print(case.name, found[case.name], file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(found))
    print(rows(found, options.tune.split(",")))


if __name__ == "__main__":
    main()
