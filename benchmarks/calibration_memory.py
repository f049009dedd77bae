"""Peak memory of calibration against the number of samples: it must stay flat.

    python benchmarks/calibration_memory.py MODEL.onnx CALIB.npz [--samples 64,2000]

The samples of CALIB.npz are repeated until there are enough; each count runs in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def child(model: str, data: str, samples: int) -> None:
    """Calibrate and print the growth of the resident high-water mark, in MB."""
    from deploy.adapter.profiles import load_profile
    from deploy.data.dataset import open_dataset
    from deploy.execute.reference import open_graph
    from deploy.frontend.onnx_file import read
    from deploy.graph.blocks import partition
    from deploy.graph.shapes import infer, name_dimensions
    from deploy.graph.summary import tensor_specs
    from deploy.quantize.calibrate import calibrate
    from deploy.quantize.place import find_chains, observed_values

    graph = infer(name_dimensions(read(Path(model)).model))
    runtime = load_profile("x86-vnni").runtime[0]
    values = observed_values(graph, find_chains(graph, partition(graph), runtime), runtime)
    dataset = open_dataset(data, tensor_specs(graph.graph.inputs))
    with open_graph(graph):
        pass  # loads the runtime, which is not calibration's memory
    before = peak()
    calibrate(graph, dataset, values, samples=samples)
    print(f"{peak() / 1e6:.1f} {(peak() - before) / 1e6:.1f}")


def peak() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--samples", default="64,2000")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.model, arguments.data, arguments.child)
        return
    counts = [int(n) for n in arguments.samples.split(",")]
    print("| samples | peak resident, MB | of it calibration, MB |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch, np.load(arguments.data) as given:
        inputs = {name: given[name] for name in given.files if name != "y" and not name.startswith("y.")}
        for count in counts:
            path = Path(scratch) / f"{count}.npz"
            rows = np.arange(count)
            np.savez(path, allow_pickle=False, **{name: a[rows % len(a)] for name, a in inputs.items()})
            command = [sys.executable, __file__, arguments.model, str(path), "--child", str(count)]
            total, added = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            print(f"| {count} | {total} | {added} |")


if __name__ == "__main__":
    main()
