"""The same networks through other quantizers that pip installs, judged and timed beside our build.

    python benchmarks/peers.py --cases DIR [--only NAME,NAME] [--nncf PYTHON]

Each folder of DIR holds model.onnx, calib.npz and eval.npz. `--nncf` is the Python of an environment with
nncf, openvino and onnx (`python -m venv v && v/bin/pip install nncf openvino onnx`); without it NNCF is left
out. All get the same calibration samples. Every result is judged on the same evaluation samples and timed in
turn with the float file in ONNX Runtime in one run: one thread, batch 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime import quantization

import deploy
from deploy.adapter.protocol import Arrays, Runner
from deploy.measure.latency import TimingPlan, measure
from deploy.spec.tensors import TensorSpec

NNCF = """
import sys, numpy as np, onnx, openvino, nncf
model, data, out = sys.argv[1:]
arrays = {k: v for k, v in np.load(data).items() if k != "y" and not k.startswith("y.")}
samples = [{k: v[i : i + 1] for k, v in arrays.items()} for i in range(len(next(iter(arrays.values()))))]
to_onnx = out.endswith(".onnx")
read, save = (onnx.load, onnx.save) if to_onnx else (openvino.Core().read_model, openvino.save_model)
save(nncf.quantize(read(model), nncf.Dataset(samples), subset_size=len(samples)), out)
"""


class OpenVino:
    """A model in OpenVINO on one thread, offered as a Runner."""

    executed_by = "OpenVINO"

    def __init__(self, path: Path) -> None:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        self.compiled = openvino.Core().compile_model(path, "CPU", settings)
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs = (TensorSpec(name=self.compiled.output(0).any_name, dtype="float32", shape=()),)

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        del want
        return {self.outputs[0].name: self.compiled(dict(feeds))[0]}

    def __enter__(self) -> OpenVino:
        return self

    def __exit__(self, *_: object) -> None:
        del self.compiled


class OnnxRuntime:
    """A file in ONNX Runtime on one thread, nothing else set, offered as a Runner."""

    executed_by = "ONNX Runtime"

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)
        self.inputs = tuple(_spec(value) for value in self.session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self.session.get_outputs())

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        del want
        names = [output.name for output in self.outputs]
        return dict(zip(names, self.session.run(names, dict(feeds)), strict=True))

    def __enter__(self) -> OnnxRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        del self.session


def _spec(value: onnxruntime.NodeArg) -> TensorSpec:
    return TensorSpec(name=value.name, dtype=value.type, shape=tuple(size or "free" for size in value.shape))


class Samples(quantization.CalibrationDataReader):
    """Calibration samples one by one, as ONNX Runtime's quantizer reads them."""

    def __init__(self, path: Path) -> None:
        arrays = feeds(path)
        count = len(next(iter(arrays.values())))
        self.samples = iter([{k: v[i : i + 1] for k, v in arrays.items()} for i in range(count)])

    def get_next(self) -> dict[str, np.ndarray]:
        return next(self.samples, {})


def feeds(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {k: arrays[k] for k in arrays if k != "y" and not k.startswith("y.")}


def static_defaults(case: Path, out: Path) -> None:
    """`quantize_static` with nothing said."""
    quantization.quantize_static(case / "model.onnx", out, Samples(case / "calib.npz"))


def prepared(case: Path, out: Path) -> Path:
    """The file as ONNX Runtime's own preprocessing leaves it: shapes inferred, batch norm folded."""
    path = out.with_name(f"{out.stem}-prepared.onnx")
    quantization.quant_pre_process(str(case / "model.onnx"), str(path))
    return path


def static_advised(case: Path, out: Path) -> None:
    """As its documentation advises for x86: preprocessed, uint8 activations, int8 weights by channel."""
    quantization.quantize_static(
        prepared(case, out),
        out,
        Samples(case / "calib.npz"),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def nncf(python: str) -> Callable[[Path, Path], None]:
    """`nncf.quantize` with nothing said but how many samples there are; on ONNX after preprocessing."""

    def quantize(case: Path, out: Path) -> None:
        model = prepared(case, out) if out.suffix == ".onnx" else case / "model.onnx"
        run = [python, "-c", NNCF, str(model), str(case / "calib.npz"), str(out)]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])

    return quantize


def accuracy(runner: Runner, path: Path) -> float:
    with np.load(path) as arrays:
        labels = arrays["y"]
    inputs = feeds(path)
    size = next((spec.shape[0] for spec in runner.inputs if isinstance(spec.shape[0], int)), 1)
    right = 0
    for start in range(0, len(labels) - len(labels) % size, size):
        outputs = runner.run({k: v[start : start + size] for k, v in inputs.items()})
        scores = outputs[runner.outputs[0].name].reshape(size, -1)
        right += int((scores.argmax(1) == labels[start : start + size]).sum())
    return right / len(labels)


def opener(name: str, path: Path, bundle: Path) -> Runner:
    if name == "deploy":
        return deploy.open_bundle(bundle)
    return OpenVino(path) if path.suffix == ".xml" else OnnxRuntime(path)


def file_size(path: Path) -> int:
    return path.stat().st_size + (path.with_suffix(".bin").stat().st_size if path.suffix == ".xml" else 0)


def compare(case: Path, tools: dict[str, Callable[[Path, Path], None]], scratch: Path) -> None:
    """Print one row for each tool: drop in points, speed and file size against the float file."""
    bundle = deploy.build(
        case / "model.onnx", target="x86-cpu", data=case / "calib.npz", eval=case / "eval.npz",
        out=scratch / "dist", cache=scratch / "cache",
    )  # fmt: skip
    files = {"deploy": bundle.folder / "artifact" / bundle.manifest.artifact.files[0]}
    failed: dict[str, str] = {}
    for name, quantize in tools.items():
        suffix = ".xml" if name.endswith("OpenVINO") else ".onnx"
        out = scratch / f"{name.replace(' ', '-')}{suffix}"
        try:
            quantize(case, out)
            files[name] = out
        except Exception as e:  # noqa: BLE001  # whatever a tool raises is its result here
            failed[name] = f"{type(e).__name__}: {e}".strip().splitlines()[-1][:90]
    with ExitStack() as opened:
        runners: dict[str, Runner] = {"float": opened.enter_context(OnnxRuntime(case / "model.onnx"))}
        for name, path in files.items():
            try:
                runners[name] = opened.enter_context(opener(name, path, bundle.folder))
            except Exception as e:  # noqa: BLE001
                failed[name] = f"{type(e).__name__}: {e}".strip().splitlines()[-1][:90]
        scores = {name: accuracy(runner, case / "eval.npz") for name, runner in runners.items()}
        one = {k: v[:1] for k, v in feeds(case / "eval.npz").items()}
        timings = measure(runners, one, TimingPlan(seconds=6.0))
    size = (case / "model.onnx").stat().st_size
    for name in ("deploy", *tools):
        if name in failed:
            print(f"| {case.name} | {name} | failed: {failed[name]} | | |", flush=True)
            continue
        drop = 100 * (scores["float"] - scores[name])
        speed = float(np.median(timings["float"].rounds / timings[name].rounds))
        said = f"{name} ({bundle.manifest.verdict.status})" if name == "deploy" else name
        smaller = size / file_size(files[name])
        print(f"| {case.name} | {said} | {drop:+.2f} | {speed:.2f} | {smaller:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--nncf", default="")
    chosen = parser.parse_args()
    tools: dict[str, Callable[[Path, Path], None]] = {
        "ONNX Runtime defaults": static_defaults,
        "ONNX Runtime advised": static_advised,
    }
    if chosen.nncf:
        tools["NNCF in ONNX Runtime"] = tools["NNCF in OpenVINO"] = nncf(chosen.nncf)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    versions = f"deploy {deploy.__version__}, onnxruntime {onnxruntime.__version__}"
    print(f"{versions}, Python {sys.version.split()[0]}\n")
    print("| network | tool | drop, points | times float speed | file times smaller |\n|---|---|---|---|---|")
    wanted = set(filter(None, chosen.only.split(",")))
    for case in sorted(p for p in chosen.cases.iterdir() if (p / "model.onnx").is_file()):
        if not wanted or case.name in wanted:
            with tempfile.TemporaryDirectory() as scratch:
                compare(case, tools, Path(scratch))


if __name__ == "__main__":
    main()
