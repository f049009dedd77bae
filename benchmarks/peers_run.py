"""Opens what the tools made: each in its runtime, judged on samples or timed in turn.

    python benchmarks/peers_run.py judge|time JOB

Run by peers.py, in a process of its own. JOB is a JSON file: `files` (name, kind, path, settings,
threads), `data` (an .npz with labels `y`), `seconds`. Prints a JSON object on the last line: by name whether
each sample was right, or the medians of the rounds, of all runs, and their spread, in milliseconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from backends.openvino.runner import OpenVinoOptions
from backends.openvino.runner import settings as openvino_settings
from deploy.adapter.protocol import Arrays, Runner
from deploy.bundle.read import ARTIFACT, load_bundle
from deploy.execute.reference import Session
from deploy.measure.latency import TimingPlan, measure
from deploy.spec.tensors import TensorSpec


class _Opened:
    """What all runners of this file share. Each gives its first output, under no name."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    executed_by = ""

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def fed(self, sample: Arrays) -> Arrays:
        """The sample as the file wants it; this is not timed."""
        return sample

    def close(self) -> None:
        vars(self).clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OnnxRuntime(_Opened):
    """An .onnx file in ONNX Runtime, nothing set but the threads."""

    def __init__(self, path: str, settings: Mapping[str, str | int], threads: int, sample: Arrays) -> None:
        import onnxruntime

        del sample
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        for key, value in settings.items():
            options.add_session_config_entry(key, str(value))
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        del want
        return {"": self.session.run(None, feeds)[0]}


class OpenVino(_Opened):
    """An .onnx or .xml file in OpenVINO, sizes fixed at the sample's, through its quickest interface."""

    def __init__(self, path: str, settings: Mapping[str, str | int], threads: int, sample: Arrays) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        model.reshape({name: list(array.shape) for name, array in sample.items()})
        known = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **settings}
        self.request = core.compile_model(model, "CPU", known).create_infer_request()
        self.ports = {name: self.request.get_tensor(name).data for name in sample}
        self.result = self.request.get_output_tensor(0).data

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        del want
        for name, array in feeds.items():
            self.ports[name][...] = array  # some 15 microseconds quicker than handing arrays over
        self.request.infer(share_outputs=True)
        return {"": self.result.copy()}


class LiteRt(_Opened):
    """A .tflite file in LiteRT with XNNPACK, as it comes. Its inputs are taken in order."""

    def __init__(self, path: str, settings: Mapping[str, str | int], threads: int, sample: Arrays) -> None:
        from ai_edge_litert.interpreter import Interpreter

        del settings
        self.engine = Interpreter(model_path=path, num_threads=threads)
        for port, array in zip(self._ports(), sample.values(), strict=True):
            if tuple(port["shape"]) != array.shape:
                self.engine.resize_tensor_input(port["index"], list(array.shape))
        self.engine.allocate_tensors()
        self.ports = dict(zip(sample, self._ports(), strict=True))
        self.result = self.engine.get_output_details()[0]["index"]

    def _ports(self) -> list[dict[str, Any]]:
        ports: list[dict[str, Any]] = self.engine.get_input_details()
        return sorted(ports, key=lambda port: str(port["name"]))

    def fed(self, sample: Arrays) -> Arrays:
        made = {}
        for name, port in self.ports.items():
            array, kind = sample[name], np.dtype(port["dtype"])
            if kind == np.int8 and array.dtype.kind == "f":
                scale, zero = port["quantization"]
                array = np.clip(np.rint(array / scale) + zero, -128, 127).astype(kind)
            made[name] = np.ascontiguousarray(array)
        return made

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        del want
        for name, port in self.ports.items():
            self.engine.set_tensor(port["index"], feeds[name])
        self.engine.invoke()
        return {"": self.engine.get_tensor(self.result)}


class Bundle(_Opened):
    """The artifact of a bundle, in its runtime by the same calls as the others, with the bundle's options.

    `deploy.open_bundle` opens a .tflite file in a process of its own, as it may come from anywhere; what
    crosses over to that is no part of the file's time.
    """

    def __init__(self, path: str, settings: Mapping[str, str | int], threads: int, sample: Arrays) -> None:
        del settings
        bundle = load_bundle(path)
        file = str(bundle.folder / ARTIFACT / bundle.manifest.artifact.files[0])
        options: dict[str, Any] = dict(bundle.manifest.options)
        if options["threads"] != threads:
            raise SystemExit(f"{path}: built for {options['threads']} threads")
        if bundle.manifest.artifact.backend == "openvino":
            known = openvino_settings(OpenVinoOptions(**options), "CPU")
            self.runner: Runner = OpenVino(file, known, threads, sample)
        elif bundle.manifest.artifact.backend == "tflite":
            self.runner = LiteRt(file, {}, threads, sample)
        else:
            self.runner = Session(Path(file), threads=threads, settings=options.get("session", {}))

    def fed(self, sample: Arrays) -> Arrays:
        return self.runner.fed(sample) if isinstance(self.runner, LiteRt) else sample

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        return self.runner.run(feeds, want)


KINDS: dict[str, type[Any]] = {"ort": OnnxRuntime, "openvino": OpenVino, "tflite": LiteRt, "bundle": Bundle}


class _Fixed(_Opened):
    """A runner with its own form of the one sample that is timed."""

    def __init__(self, runner: _Opened, sample: Arrays) -> None:
        self.runner, self.sample = runner, runner.fed(sample)

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        del feeds
        return self.runner.run(self.sample, want)

    def close(self) -> None:
        self.runner.close()


def samples(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {k: arrays[k] for k in arrays if k != "y" and not k.startswith("y.")}


def opened(file: Mapping[str, Any], sample: Arrays) -> _Opened:
    made: _Opened = KINDS[file["kind"]](file["path"], file["settings"], file["threads"], sample)
    return made


def judge(job: Mapping[str, Any]) -> dict[str, list[bool]]:
    """By name, of every sample whether its largest output is its label."""
    inputs = samples(Path(job["data"]))
    labels = np.load(job["data"])["y"]
    right: dict[str, list[bool]] = {}
    for file in job["files"]:
        one = {name: array[:1] for name, array in inputs.items()}
        with opened(file, one) as runner:
            right[file["name"]] = []
            for i, label in enumerate(labels):
                fed = runner.fed({name: array[i : i + 1] for name, array in inputs.items()})
                (first, *_) = runner.run(fed).values()
                right[file["name"]].append(bool(first.argmax() == label))
    return right


def times(job: Mapping[str, Any]) -> dict[str, Any]:
    """All in turn: by name the medians of the rounds, the median and the spread of single runs."""
    one = {name: array[:1].copy() for name, array in samples(Path(job["data"])).items()}
    with ExitStack() as stack:
        runners: dict[str, Runner] = {
            file["name"]: stack.enter_context(_Fixed(opened(file, one), one)) for file in job["files"]
        }
        # Long slices: what a runtime's threads do after its last run falls into few of the next one's runs.
        found = measure(runners, one, TimingPlan(seconds=job["seconds"], slice_s=0.05))
    return {
        name: {
            "rounds": timing.rounds.tolist(),
            "p50_ms": timing.summary().p50,
            "spread": timing.summary().spread,
        }
        for name, timing in found.items()
    }


def main() -> None:
    what, path = sys.argv[1:]
    job = json.loads(Path(path).read_text())
    print("\n" + json.dumps({"judge": judge, "time": times}[what](job)))


if __name__ == "__main__":
    main()
