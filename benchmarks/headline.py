"""The headline: a ResNet-18 of 45 MB becomes a file of 426 kB at most that runs 20 times as fast.

    python benchmarks/headline.py --cases DIR --out DIR [--threads 2] [--timed-by "chrt -f 10"]

DIR/r18_cifar10/model.onnx is the network and the teacher; DIR/data holds the training and test images as JPEG
bytes. A copy with a quarter to a seventh of each layer's channels learns from labels and from the teacher's
answers, as headline.toml says, and is built for x86-cpu as any model would be: quantized after training, in
the runtime that is fastest. 2,000 training images stay out of training: they choose whatever is chosen. The
test images judge at the end, the build's verdict and the table.

Everything lies in --out: a run that was killed goes on where it was, training at its last checkpoint.
Times of all its parts add up in times.json, those of the part that was cut off up to its last end.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from pictures import pictures

import deploy
from deploy.bundle.read import ARTIFACT, Bundle, load_bundle
from deploy.compress.ground import Ground
from deploy.compress.student import run as run_student
from deploy.data.dataset import open_dataset
from deploy.execute.compare import prover
from deploy.execute.reference import open_graph
from deploy.frontend import onnx_file
from deploy.graph.clean import clean
from deploy.graph.cost import macs
from deploy.graph.shapes import infer
from deploy.graph.summary import tensor_specs
from deploy.progress import Silent
from deploy.spec.compression import Shrink
from deploy.spec.document import parse_toml
from deploy.spec.finetune import Finetune
from deploy.spec.project import Budget, Project
from deploy.train.finetune import finetune

VALIDATED, CALIBRATED = 2000, 512
SMALLEST, FASTER, LOST = 426_000, 20, 3.0
"""What is wanted: bytes, times the speed, points."""

PROJECT = Path(__file__).with_suffix(".toml")
"""The recipe: widths and training."""


class Told(Silent):
    """Notes with the time of the day."""

    def note(self, text: str) -> None:
        print(time.strftime("%H:%M:%S"), text, flush=True)

    warn = note


class Times:
    """Wall and processor seconds of the parts, added up over all runs with this folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "times.json"
        self.found: dict[str, list[float]] = (
            json.loads(self._path.read_text()) if self._path.is_file() else {}
        )

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        wall, processor = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            spent = time.monotonic() - wall, time.process_time() - processor
            before = self.found.get(name, [0.0, 0.0])
            self.found[name] = [a + b for a, b in zip(before, spent, strict=True)]
            self._path.write_text(json.dumps(self.found, indent=1))


def unpack(data: Path, card: Path, out: Path) -> None:
    """fit.npz, validation.npz, calibration.npz and test.npz."""
    x, y = pictures(data / "cifar10_train_jpeg.npz", card)
    order = np.random.default_rng(0).permutation(len(x))
    apart, rest = np.sort(order[:VALIDATED]), np.sort(order[VALIDATED:])
    few = rest[:: len(rest) // CALIBRATED][:CALIBRATED]
    np.savez(out / "validation.npz", x=x[apart], y=y[apart])
    np.savez(out / "calibration.npz", x=x[few], y=y[few])
    np.savez(out / "fit.npz", x=x[rest], y=y[rest])
    x, y = pictures(data / "cifar10_test_jpeg.npz", card)
    np.savez(out / "test.npz", x=x, y=y)


def student(teacher: ir.Model, step: Shrink, out: Path) -> ir.Model:
    """The teacher with fewer channels and weights drawn anew."""
    sample = {"x": np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)}
    graph = infer(clean(teacher, prover([sample])).model)
    thin = run_student(step, graph, Ground(samples=None, given=graph, workdir=out / "shrink")).model
    ir.save(thin, out / "student.onnx")
    return thin


def train(thin: ir.Model, teacher: ir.Model, step: Finetune, out: Path, threads: int) -> ir.Model:
    """Labels and the teacher's answers. What was trained before is read back."""
    specs = tensor_specs(thin.graph.inputs)
    fit, validation = (open_dataset(out / f"{name}.npz", specs) for name in ("fit", "validation"))
    trained = finetune(
        thin,
        step,
        train=fit,
        validation=validation,
        teachers=[teacher],
        workdir=out / "training",
        threads=threads,
        progress=Told(),
    )
    ir.save(trained.model, out / "trained.onnx")
    return trained.model


def build(out: Path) -> Bundle:
    return deploy.build(
        out / "trained.onnx",
        target="x86-cpu",
        data=out / "calibration.npz",
        validation=out / "validation.npz",
        eval=out / "test.npz",
        budget=Budget(max_drop=0.005, max_size_bytes=SMALLEST),
        out=out / "dist",
        cache=out / "cache",
        progress=Told(),
    )


def top1(model: ir.Model, archive: Path) -> float:
    """In ONNX Runtime, unoptimised."""
    dataset = open_dataset(archive, tensor_specs(model.graph.inputs))
    right = 0
    with open_graph(model) as session:
        for batch in dataset.batches(100):
            (scores,) = session.run(batch.feeds).values()
            right += int((scores.argmax(1) == batch.targets[""]).sum())
    return right / len(dataset)


def judged(bundle: Path, archive: Path) -> float:
    """Top-1 of the artifact in its runtime."""
    with np.load(archive) as file, deploy.open_bundle(bundle) as runner:
        x, y = file["x"], file["y"]
        found = [next(iter(runner.run({"x": x[i : i + 1]}).values())).argmax() for i in range(len(x))]
    return float((np.array(found) == y).mean())


def timed(model: Path, bundle: Path, out: Path, by: str) -> Mapping[str, Any]:
    """Artifact and file in turn, one thread, batch 1, by the same process as all other comparisons."""
    job = {
        "files": [
            {"name": "file", "kind": "ort", "path": str(model), "settings": {}},
            {"name": "artifact", "kind": "bundle", "path": str(bundle), "settings": {}},
        ],
        "threads": 1,
        "data": str(out / "calibration.npz"),
        "seconds": 10.0,
    }
    path = out / "job.json"
    path.write_text(json.dumps(job))
    script = Path(__file__).with_name("peers_run.py")
    done = subprocess.run(
        [*shlex.split(by), sys.executable, str(script), "time", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True, help="folder of r18_cifar10 and data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2, help="that training computes with")
    parser.add_argument("--timed-by", default="", help="prefix of the process that times, as chrt -f 10")
    given = parser.parse_args()
    out, source = given.out, given.cases / "r18_cifar10" / "model.onnx"
    out.mkdir(parents=True, exist_ok=True)
    text = PROJECT.read_text()
    shrinking, training = parse_toml(Project, text, origin=PROJECT).recipe
    assert isinstance(shrinking, Shrink)
    assert isinstance(training, Finetune)
    (out / "deploy.toml").write_text(text)
    if not (out / "model.onnx").exists():
        (out / "model.onnx").symlink_to(source.resolve())
    times = Times(out)
    if not (out / "test.npz").is_file():
        with times.part("unpack"):
            unpack(given.cases / "data", source.with_name("card.json"), out)
    teacher = infer(onnx_file.read(source).model)
    with times.part("shrink"):
        thin = student(teacher, shrinking, out)
    with times.part("train"):
        trained = train(thin, teacher, training, out, given.threads)
    with times.part("build"):
        bundle = build(out)
    report(source, teacher, trained, bundle, times, given.timed_by, out)


def report(
    source: Path, teacher: ir.Model, trained: ir.Model, bundle: Bundle, times: Times, by: str, out: Path
) -> None:
    """The table, and headline.json."""
    manifest = load_bundle(bundle.folder).manifest
    size = sum((bundle.folder / ARTIFACT / name).stat().st_size for name in manifest.artifact.files)
    with times.part("judge"):
        before, between = top1(teacher, out / "test.npz"), top1(infer(trained), out / "test.npz")
    after = judged(bundle.folder, out / "test.npz")
    with times.part("time"):
        speeds = timed(source, bundle.folder, out, by)
    rounds = np.array(speeds["file"]["rounds"]) / np.array(speeds["artifact"]["rounds"])
    low, middle, high = np.percentile(rounds, [2.5, 50, 97.5])
    whole = sum(wall for wall, _ in times.found.values())
    parts = ", ".join(f"{name} {wall / 60:.1f}" for name, (wall, _) in times.found.items())
    lost = 100 * (before - after)
    rows = [
        ("file, bytes", f"{source.stat().st_size:,}", f"{size:,}",
         f"{source.stat().st_size / size:.1f} times smaller", f"{SMALLEST:,}", size <= SMALLEST),
        ("latency, ms", f"{speeds['file']['p50_ms']:.3f}", f"{speeds['artifact']['p50_ms']:.3f}",
         f"{middle:.1f} times faster ({low:.1f} to {high:.1f})", f"{FASTER} times", middle >= FASTER),
        ("top-1 on 10,000", f"{before:.4f}", f"{after:.4f}",
         f"{lost:+.2f} points lost, {100 * (before - between):+.2f} before INT8", f"{LOST} points",
         lost <= LOST),
        ("million MACs", f"{(macs(teacher) or 0) / 1e6:.1f}", f"{(macs(infer(trained)) or 0) / 1e6:.1f}",
         "", "", True),
        ("minutes", "", f"{whole / 60:.1f}", parts, "90", whole <= 5400),
    ]  # fmt: skip
    print("| | teacher | artifact | | wanted | met |\n|---|---|---|---|---|---|")
    for name, was, became, told, wanted, met in rows:
        print(f"| {name} | {was} | {became} | {told} | {wanted} | {'yes' if met else 'NO'} |")
    print(f"\n{manifest.artifact.backend}, {manifest.verdict.status}; {bundle.folder}")
    found = {
        "bytes": size, "teacher": before, "trained": between, "artifact": after, "faster": middle,
        "low": low, "high": high, "times": times.found, "speeds": speeds,
    }  # fmt: skip
    (out / "headline.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
