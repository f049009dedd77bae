"""Every case as a Core ML package, against the Q/DQ graph taken literally, over all of the evaluation data.

    python benchmarks/coreml_cases.py --cases DIR [--target iphone15] [--only NAME] [--markdown FILE]

Each folder of DIR holds model.onnx, calib.npz and eval.npz, or test.npz with more of them. Every case is
built as a user would, in a process of its own: INT8 and float, computing in float16 and in float32. The
package is then run by our interpreter, sample by sample as it was built, and the reference by ONNX Runtime
without any optimisation. "off" is the root of the mean squared difference of all outputs by that of the
outputs themselves; "largest" the largest difference by the largest output; "alike" the share of samples that
both give the same class.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from cases import DEPLOY, cases_of

from deploy.adapter.batching import fixed_batch, run_samples
from deploy.bundle.read import GRAPH, load_bundle, load_plan, open_artifact
from deploy.execute.reference import open_graph
from deploy.graph.edit import constant
from deploy.graph.qdq import data_digest, insert, quantize_array

SHAPES = {"ppocr_direction_cls": "x=1,3,48,192"}
PROFILE = """schema = 1
name = "{name}"
inherits = "{target}"
title = "{target}, computing in {compute}"
[[runtime]]
name = "coreml"
around = "{compute}"
"""
PACKAGES = (("int8", "float16"), ("int8", "float32"), ("fp16", "float16"), ("float", "float32"))
KINDS = ("user", "system", "children_user", "children_system")
HEADER = """\
| case | package | computes in | INT8 blocks | reference, % | package, % | points | alike, % | off, % \
| largest, % | samples | processor ms each | build, s |
|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Built:
    """A bundle, and how long its process took."""

    case: Path
    precision: str
    compute: str
    folder: Path
    seconds: float


def build(case: Path, target: str, precision: str, compute: str, scratch: Path) -> Built:
    """In a process of its own, from an empty cache, nothing judged on the evaluation data."""
    name = f"{target}-{compute}"
    profile = scratch / f"{name}.toml"
    profile.write_text(PROFILE.format(name=name, target=target, compute=compute))
    out = scratch / f"{case.name}-{precision}-{compute}"
    arguments = [
        "build", str(case / "model.onnx"), "--target", str(profile), "--runtime", "coreml",
        "--precision", precision, "--data", str(case / "calib.npz"), "--no-measure", "--tune", "off",
        "--out", str(out), "--cache", str(scratch / f"cache-{out.name}"), "--json",
    ]  # fmt: skip
    if case.name in SHAPES:
        arguments += ["--shape", SHAPES[case.name]]
    begin = time.perf_counter()
    done = subprocess.run([*DEPLOY, *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 9):
        raise SystemExit(f"{out.name}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return Built(case, precision, compute, out / name, time.perf_counter() - begin)


def row(built: Built) -> str:
    """One line of the table."""
    bundle = load_bundle(built.folder)
    plan = load_plan(bundle)
    more = built.case / "test.npz"
    with np.load(more if more.is_file() else built.case / "eval.npz") as data:
        labels = data["y"]
        feeds = {name: data[name] for name in data.files if name != "y"}
    graph = ir.load(built.folder / GRAPH)
    held = {name: constant(value) for name, value in graph.graph.initializers.items()}
    codes = {
        name: quantize_array(array, plan.tensors[name])
        for name, array in held.items()
        if array is not None and name in plan.tensors
    }
    for constant_name, integers in codes.items():
        if data_digest(integers) != plan.tensors[constant_name].digest:
            raise SystemExit(f"{built.folder}: '{constant_name}' was not rounded to the nearest")
    reference = insert(graph, plan.tensors, codes) if plan.tensors else graph
    with open_graph(reference, optimised=False) as literal:
        want = run_samples(literal, feeds, fixed_batch(literal.inputs) or 1)
    begin = os.times()
    with open_artifact(bundle) as package:  # in a child process
        got = run_samples(package, feeds, fixed_batch(package.inputs) or 1)
    end = os.times()
    each = sum(getattr(end, kind) - getattr(begin, kind) for kind in KINDS) / len(labels)
    (name,) = want
    a, b = want[name].reshape(len(labels), -1), got[name].reshape(len(labels), -1).astype(np.float64)
    off = np.sqrt(((a - b) ** 2).mean() / (a.astype(np.float64) ** 2).mean())
    largest = np.abs(a - b).max() / np.abs(a).max()
    classes = a.argmax(1), b.argmax(1)
    was, now = ((c == labels).mean() * 100 for c in classes)
    integer = sum(block.precision == "int8" for block in plan.blocks)
    return (
        f"| {built.case.name} | {built.precision} | {built.compute} | {integer} of {len(plan.blocks)} "
        f"| {was:.2f} | {now:.2f} | {now - was:+.2f} | {(classes[0] == classes[1]).mean() * 100:.1f} "
        f"| {off * 100:.2g} | {largest * 100:.2g} | {len(labels)} | {each * 1000:.2f} | {built.seconds:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True, help="folder of case folders")
    parser.add_argument("--target", default="iphone15")
    parser.add_argument("--only", action="append", help="only this case; may be repeated")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    arguments = parser.parse_args()
    chosen = cases_of(arguments.cases, arguments.only)
    lines = [HEADER]
    print(HEADER)
    with tempfile.TemporaryDirectory() as scratch:
        for case in chosen:
            for precision, compute in PACKAGES:
                lines.append(row(build(case, arguments.target, precision, compute, Path(scratch))))
                print(lines[-1], flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
