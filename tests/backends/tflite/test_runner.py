"""One opened file fed with batches of changing sizes: LiteRT is told of a size only when it changes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from deploy.adapter.profiles import load_profile
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan
from deploy.spec.profile import Runtime

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[N,3,4,4] x, float[N,3] s) => (float[N,3] y, float[N,3] z) {
    [a] r = Relu(x)  [b] p = GlobalAveragePool(r)  [c] y = Flatten(p)  [d] z = Add(y, s) }"""


def lowered(text: str, runtime: Runtime, folder: Path) -> Artifact:
    plan = Plan(graph_sha256="", target="", runtime="tflite")
    return TFLite().lower(infer(ir.from_onnx_text(text)), plan, runtime, folder, SILENT)


def test_batches_of_changing_sizes(tmp_path: Path) -> None:
    runtime = load_profile("android").runtime_named("tflite")
    artifact, backend = lowered(TEXT, runtime, tmp_path), TFLite()
    rng = np.random.default_rng(0)
    earlier: list[tuple[np.ndarray, np.ndarray]] = []
    with backend.open(artifact, backend.options(runtime, 1)) as runner:
        for count in (1, 1, 4, 0, 2, 1):
            x = rng.standard_normal((count, 3, 4, 4)).astype(np.float32)
            s = rng.standard_normal((count, 3)).astype(np.float32)
            found = runner.run({"x": x, "s": s}, want=("r",) if count == 4 else ())
            mean = np.maximum(x, 0).mean(axis=(2, 3)) if count else np.zeros((0, 3), np.float32)
            np.testing.assert_allclose(found["y"], mean, atol=1e-6)
            np.testing.assert_allclose(found["z"], mean + s, atol=1e-6)
            earlier.append((found["y"], mean))
    for kept, mean in earlier:  # none was written over by a later run
        np.testing.assert_allclose(kept, mean, atol=1e-6)


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    """At the same place, of the same size and, as far as the file system tells, at the same time."""
    runtime = load_profile("android").runtime_named("tflite")
    text = """<ir_version: 10, opset_import: ["" : 21]>
        g (float[1,4] x) => (float[1,4] y) {{ [{name}] a = Relu(x)  [b] y = Sqrt(a) }}"""
    for name in ("r", "s"):
        artifact, backend = lowered(text.format(name=name), runtime, tmp_path), TFLite()
        os.utime(artifact.main, ns=(0, 0))
        with backend.open(artifact, backend.options(runtime, 1)) as runner:
            assert "a" in runner.run({"x": np.ones((1, 4), np.float32)}, want=("a",))
