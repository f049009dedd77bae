"""Do our .tflite files run in an old runtime, and give what LiteRT gives?

    python -m venv old && old/bin/pip install tflite-runtime==2.14.0 'numpy<2'
    python benchmarks/tflite_runtime.py old/bin/python BUNDLE...

Each bundle's self-test goes through its .tflite file, in LiteRT here and in ``tflite_runtime`` there. It is
said how far the outputs are apart, or why a file was not opened: an operator's version that is too high.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from deploy.adapter.batching import run_samples, sample_count
from deploy.bundle.read import SELFTEST, load_bundle, open_bundle
from deploy.bundle.verify import read_selftest
from deploy.execute.compare import relative_error

THERE = """
import sys
import numpy as np
from tflite_runtime.interpreter import Interpreter

path, feeds, found = sys.argv[1:]
engine = Interpreter(path, num_threads=1)
arrays = np.load(feeds)
ports = engine.get_input_details()
for i, port in enumerate(ports):
    engine.resize_tensor_input(port["index"], arrays[f"in{i}"].shape)
engine.allocate_tensors()
for i, port in enumerate(ports):
    engine.set_tensor(port["index"], arrays[f"in{i}"])
engine.invoke()
outputs = engine.get_output_details()
np.savez(found, **{f"out{i}": engine.get_tensor(port["index"]) for i, port in enumerate(outputs)})
"""


def compare(python: Path, bundle: Path) -> str:
    """How far apart the two are relative to the outputs' magnitude, or why there is nothing to compare."""
    artifact = load_bundle(bundle).manifest.artifact
    feeds, _ = read_selftest(bundle / SELFTEST)
    with open_bundle(bundle) as runner:
        here = run_samples(runner, feeds, sample_count(feeds))
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch, "feeds.npz"), Path(scratch, "found.npz")
        np.savez(given, **{f"in{i}": feeds[spec.name] for i, spec in enumerate(artifact.inputs)})
        file = bundle / "artifact" / artifact.files[0]
        words = [str(python), "-c", THERE, str(file), str(given), str(found)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            return "REFUSED: " + (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        with np.load(found) as there:
            errors = [
                relative_error(here[spec.name], there[f"out{i}"]) for i, spec in enumerate(artifact.outputs)
            ]
    return f"{max(errors):.2g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", type=Path, help="of an environment that has tflite_runtime")
    parser.add_argument("bundles", type=Path, nargs="+")
    asked = parser.parse_args()
    print("| bundle | apart |\n|---|---|")
    said = []
    for bundle in asked.bundles:
        said.append(compare(asked.python, bundle))
        print(f"| {bundle} | {said[-1]} |", flush=True)
    return int(any(text.startswith("REFUSED") for text in said))


if __name__ == "__main__":
    sys.exit(main())
