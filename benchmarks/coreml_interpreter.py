"""How long our interpreter takes for Core ML packages, in multiples of ONNX Runtime's time.

    deploy build DIR/NAME/model.onnx --target iphone15 --precision int8 --out BUNDLES/NAME-int8 ...
    OPENBLAS_NUM_THREADS=1 python benchmarks/coreml_interpreter.py --cases DIR --bundles BUNDLES [--only NAME]

One sample and one thread. Of every network the float model in ONNX Runtime and all its packages take turns,
and each one's median counts. Beside it stands how far a package's outputs are from the float model's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from backends.coreml.runner import CoreMLOptions, CoreMLRunner
from deploy.execute.compare import relative_error

_ROUNDS, _SECONDS = 200, 6.0


def float_model(path: Path, feeds: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    """One inference of the file as given, by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    (fed,) = feeds.values()
    return lambda: np.asarray(session.run(None, {given.name: fed})[0])


def package(path: Path, feeds: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    """One inference of a package, by our interpreter."""
    runner = CoreMLRunner(path, CoreMLOptions())
    (spec,) = runner.inputs
    (fed,) = feeds.values()
    given = {spec.name: fed.astype(spec.dtype)}
    return lambda: next(iter(runner.run(given).values()))


def timed(runs: dict[str, Callable[[], np.ndarray]]) -> dict[str, float]:
    """Milliseconds of each, the median of turns."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    for number in range(_ROUNDS):
        names = list(runs)[:: 1 if number % 2 else -1]
        for name in names:
            started = time.perf_counter()
            runs[name]()
            took[name].append((time.perf_counter() - started) * 1e3)
        if number >= 10 and time.perf_counter() - begin > _SECONDS:
            break
    return {name: statistics.median(each[2:]) for name, each in took.items()}


def rows(case: Path, bundles: Path) -> list[str]:
    """A line for each package of a network."""
    with np.load(case / "eval.npz") as data:
        name = next(name for name in data.files if name != "y")
        feeds = {name: data[name][:1]}
    runs = {"float model": float_model(case / "model.onnx", feeds)}
    found = sorted(bundles.glob(f"{case.name}-*/*/artifact/*.mlpackage"))
    runs |= {path.parents[2].name.rpartition("-")[2]: package(path, feeds) for path in found}
    wanted = runs["float model"]()
    took = timed(runs)
    base = took.pop("float model")
    return [
        f"| {case.name} | {kind} | {base:.2f} | {ms:.2f} | {ms / base:.1f} "
        f"| {relative_error(runs[kind]().reshape(wanted.shape), wanted):.1e} |"
        for kind, ms in took.items()
    ]


HEADER = """\
| network | package | ONNX Runtime, float, ms | interpreter, ms | times | apart |
|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=Path, required=True, help="folders with model.onnx and eval.npz")
    parser.add_argument("--bundles", type=Path, required=True, help="folder of NAME-PRECISION bundles")
    parser.add_argument("--only", action="append", help="only this case; may be repeated")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    asked = parser.parse_args()
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # NumPy reads it when it is imported
        raise SystemExit("set OPENBLAS_NUM_THREADS=1: one thread each is compared")
    cases = sorted(path.parent for path in asked.cases.glob("*/model.onnx"))
    lines = [HEADER]
    print(HEADER)
    for case in cases:
        if asked.only and case.name not in asked.only:
            continue
        lines += (found := rows(case, asked.bundles))
        print("\n".join(found), flush=True)
    if asked.markdown:
        asked.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
