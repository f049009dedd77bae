"""Operations run one by one: what the cut leaves between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.execute.reference import open_graph
from deploy.progress import SILENT
from deploy.spec.plan import Plan

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from backends.tflite.runner import TFLiteOptions, of_own_type

RNG = np.random.default_rng(0)


def _worst(model: ir.Model, feeds: dict[str, np.ndarray], folder: Path) -> float:
    """How far a piece is off at most, where each is fed the reference's values."""
    runtime = load_profile("android").runtime_named("tflite")
    plan = Plan(graph_sha256="", target="", runtime="tflite")
    artifact = TFLite().lower(model, plan, runtime, folder, SILENT)
    names = [o.name or "" for node in model.graph for o in node.outputs]
    with open_graph(model, optimised=False, expose=names) as session:
        values = {**feeds, **session.run(feeds, names)}
    found = list(TFLite().pieces(artifact, TFLiteOptions(threads=1), {*feeds, *names}))
    assert len(found) > 1
    return max(float(np.abs(piece.run(values) - values[piece.result]).max()) for piece in found)


def test_an_image_flattened_for_a_classifier(tmp_path: Path, model_of: Callable[..., ir.Model]) -> None:
    text = """(float[n,3,4,5] x, float[6,3,3,3] w, float[7,120] u) => (float[n,7] y) {
        c = Conv<pads=[1,1,1,1]>(x, w)
        f = Flatten(c)
        y = Gemm<transB=1>(f, u)
    }"""
    constants = {k: RNG.normal(size=s).astype("f") for k, s in {"w": (6, 3, 3, 3), "u": (7, 120)}.items()}
    feeds = {"x": RNG.normal(size=(2, 3, 4, 5)).astype("f")}
    assert _worst(model_of(text, constants), feeds, tmp_path) < 1e-3


def test_windows_whose_number_is_a_multiple_of_the_batch(
    tmp_path: Path, model_of: Callable[..., ir.Model]
) -> None:
    text = """(float[n,4,6] x, int64[3] apart, int64[3] together) => (float[n,4,6] y) {
        a = Relu(x)
        b = Reshape(a, apart)
        c = Softmax(b)
        d = Neg(c)
        y = Reshape(d, together)
    }"""
    constants = {"apart": np.array([-1, 2, 6]), "together": np.array([-1, 4, 6])}
    feeds = {"x": RNG.normal(size=(3, 4, 6)).astype("f")}
    assert _worst(model_of(text, constants), feeds, tmp_path) < 1e-5


def test_either_integer_of_64_bits_is_fed() -> None:
    assert of_own_type(np.zeros((), np.longlong)).dtype.num == np.dtype(np.int64).num
    assert of_own_type(np.zeros(2, np.int64)).shape == (2,)
