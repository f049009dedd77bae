"""What other converters make of a graph, run by the Python of an environment that has them.

    PYTHON benchmarks/converters_child.py litert-torch|onnx2tf GRAPH CALIB FOLDER

GRAPH is an ONNX file of batch 1, CALIB an .npz of samples under its inputs' names. FOLDER gets float.tflite
and int8.tflite. The last line on stdout is a JSON object: seconds of each step, and by file why it failed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

START = time.perf_counter()


class Steps:
    """Seconds of each step by its name, and by file why there is none."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    @contextmanager
    def timed(self, name: str, file: str = "") -> Iterator[None]:
        """Whatever a tool raises is its result where the step makes a file."""
        begin = time.perf_counter()
        try:
            yield
        except Exception as e:
            if not file:
                raise
            cause = e.__cause__ or e
            said = " ".join(str(cause).split()) or "nothing said"
            self.failed[file] = f"{type(cause).__name__}: {said}"[:300]
        self.seconds[name] = time.perf_counter() - begin


def litert_torch(graph: Path, samples: dict[str, np.ndarray], folder: Path, steps: Steps) -> None:
    """The graph as a torch module, its operations called as a module's author would, then both tools."""
    with steps.timed("import"):
        import litert_torch as tool
        import torch
        from ai_edge_quantizer import quantizer, recipe
        from torch.fx.experimental.proxy_tensor import make_fx

        steps.versions = versions("litert-torch", "ai-edge-quantizer", "torch")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from deploy.execute.module import GraphModule
    from deploy.frontend.onnx_file import read

    module = GraphModule(read(graph).model, trainable=lambda _: False)
    names = list(module.program.inputs)
    one = tuple(torch.from_numpy(samples[name][:1]) for name in names)
    with torch.no_grad(), steps.timed("trace, not counted"):
        traced = make_fx(lambda *xs: tuple(module.program.run(xs)), tracing_mode="real", pre_dispatch=True)(
            *one
        )
        for got, wanted in zip(traced(*one), module.program.run(one), strict=True):
            assert isinstance(wanted, torch.Tensor)
            assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)
    target = folder / "float.tflite"
    with steps.timed("float", "float"):
        tool.convert(traced.eval(), one).export(str(target))
    if not target.is_file():
        steps.failed["int8"] = steps.failed["float"]
        return
    calibrated: Any = None
    with steps.timed("calibrate", "int8"):
        work = quantizer.Quantizer(str(target), recipe.static_wi8_ai8())
        count = len(samples[names[0]])
        # Positional arguments of the traced module become args_0, args_1 ...
        fed = [{f"args_{n}": samples[k][i : i + 1] for n, k in enumerate(names)} for i in range(count)]
        calibrated = work.calibrate({"serving_default": fed})
    if calibrated is not None:
        with steps.timed("int8", "int8"):
            work.quantize(calibrated).export_model(str(folder / "int8.tflite"), overwrite=True)


def onnx2tf(graph: Path, samples: dict[str, np.ndarray], folder: Path, steps: Steps) -> None:
    """Float and integer files, the inputs in the order that they have in ONNX.

    onnx2tf simplifies the file it is given in place, so that it gets a copy for each.
    """
    with steps.timed("import"):
        import onnx2tf as tool

        steps.versions = versions("onnx2tf")
    given: list[object] = []
    for name, array in samples.items():
        path = folder / f"calibration-{len(given)}.npy"
        np.save(path, array)
        ones = np.ones([1] * array.ndim, np.float32)
        given.append([name, str(path), 0 * ones, ones])
    # What is stored as images stays so; without this the caller would have to turn them.
    keep = {"keep_ncw_or_nchw_or_ncdhw_input_names": list(samples), "verbosity": "error"}
    integers = {"output_integer_quantized_tflite": True, "custom_input_op_name_np_data_path": given}
    settings: dict[str, object]
    for file, made, settings in (
        ("float", "_float32.tflite", {}),
        ("int8", "_integer_quant.tflite", integers),
    ):
        out = folder / f"onnx2tf-{file}"
        copy = folder / f"given-{file}.onnx"
        shutil.copy(graph, copy)
        with steps.timed(file, file):
            tool.convert(
                input_onnx_file_path=str(copy), output_folder_path=str(out), batch_size=1, **keep, **settings
            )
        found = [p for p in out.glob(f"*{made}") if "full" not in p.name]
        if found and file not in steps.failed:
            shutil.copy(found[0], folder / f"{file}.tflite")


def versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in packages}


def main() -> None:
    tool, graph, calibration, folder = sys.argv[1], *map(Path, sys.argv[2:])
    with np.load(calibration) as arrays:
        samples = {k: arrays[k] for k in arrays if k != "y" and not k.startswith("y.")}
    steps = Steps()
    stdout = os.dup(1)
    os.dup2(2, 1)  # what tools print goes elsewhere
    {"litert-torch": litert_torch, "onnx2tf": onnx2tf}[tool](graph, samples, folder, steps)
    steps.seconds["all but imports"] = time.perf_counter() - START - steps.seconds["import"]
    said = {"seconds": steps.seconds, "failed": steps.failed, "versions": steps.versions}
    os.write(stdout, (json.dumps(said) + "\n").encode())


if __name__ == "__main__":
    main()
