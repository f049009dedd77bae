"""Weights alone as integers: what a build in the forms w8 and w4 writes, holds and computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("coremltools")
from small_graphs import drawn, reference, with_weights

from backends.coreml import CoreML
from backends.coreml.package import open_package
from deploy.adapter.profiles import load_profile
from deploy.errors import UnsupportedError
from deploy.execute.compare import largest_error
from deploy.graph.blocks import partition
from deploy.progress import SILENT
from deploy.quantize.forms import Stored, WeightForm, form_plans, store_weights
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan, differences
from deploy.spec.profile import Runtime

NET = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,16,6,6] x) => (float[1,40] y) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(a)
    k = Conv<pads=[1,1,1,1]>(r, c)
    p = GlobalAveragePool(k)
    f = Flatten(p)
    m = MatMul(f, t)
    h = Relu(m)
    n = MatMul(h, s)
    y = Gemm<transB=1>(n, u, b)
}"""
SHAPES = {"w": (64, 16, 3, 3), "c": (64, 64, 3, 3), "t": (64, 96), "s": (96, 36), "u": (40, 36), "b": (40,)}
WEIGHTS = {"w", "c", "t", "s", "u"}
SIZE = {name: int(np.prod(SHAPES[name])) for name in WEIGHTS}
FEEDS = {"x": np.random.default_rng(1).normal(0, 1, (1, 16, 6, 6)).astype(np.float32)}


def coreml(profile: str, target: str = "", around: str = "float16") -> Runtime:
    runtime = load_profile(profile).runtime_named("coreml")
    options = {**runtime.options, **({"minimum_deployment_target": target} if target else {})}
    return runtime.model_copy(update={"options": options, "around": around})


RUNTIMES = {
    ("w8", "iOS16"): coreml("iphone15", "iOS16"),
    ("w8", "iOS17"): coreml("iphone15"),
    ("w8", "iOS18"): coreml("iphone15-ios18"),
    ("w4", "iOS18"): coreml("iphone15-ios18"),
}


def written(
    form: WeightForm, runtime: Runtime, folder: Path, model: ir.Model | None = None
) -> tuple[Stored, Plan, Artifact]:
    model = model or with_weights(NET, drawn(SHAPES))
    stored = store_weights(model, form, runtime, ())
    blocks = form_plans(stored, form, partition(model), runtime, ())
    plan = Plan(graph_sha256="", target="", runtime="coreml", tensors=dict(stored.tensors), blocks=blocks)
    return stored, plan, CoreML().lower(stored.graph, plan, runtime, folder, SILENT)


def run(artifact: Artifact, runtime: Runtime) -> dict[str, np.ndarray]:
    with CoreML().open(artifact, CoreML().options(runtime, 1)) as runner:
        return runner.run(FEEDS)


def test_profiles_name_the_forms_of_their_release() -> None:
    for (form, _), runtime in RUNTIMES.items():
        assert form in runtime.precisions
    assert "w4" not in coreml("iphone15").precisions


@pytest.mark.parametrize(("form", "target"), RUNTIMES)
def test_the_package_holds_the_plan_and_computes_what_the_graph_says(
    form: WeightForm, target: str, tmp_path: Path
) -> None:
    runtime = RUNTIMES[form, target]
    stored, plan, artifact = written(form, runtime, tmp_path)
    assert stored.weights == WEIGHTS
    assert differences(plan, CoreML().read_plan(artifact)) == []
    assert all(float(np.float16(s)) == s for t in plan.tensors.values() for s in t.scale)
    want = reference(stored.literal(), FEEDS)
    got = run(artifact, runtime)
    assert largest_error(want, got) < 0.01
    assert largest_error(want, got) < largest_error(reference(with_weights(NET, drawn(SHAPES)), FEEDS), got)
    codes = sum(SIZE.values()) * (8 if form == "w8" else 4) // 8
    scales = 2 * sum(len(t.scale) for t in plan.tensors.values())
    assert codes + scales < artifact.weight_bytes < codes + 2 * scales + 2048
    if target == "iOS18":
        exact = runtime.model_copy(update={"around": "float32"})
        again = CoreML().lower(stored.graph, plan, exact, tmp_path / "exact", SILENT)
        assert largest_error(want, run(again, exact)) < 1e-5


def test_four_bits_lie_in_blocks_where_they_go_into_the_matrix(tmp_path: Path) -> None:
    _, plan, artifact = written("w4", RUNTIMES["w4", "iOS18"], tmp_path)
    assert {name: t.group for name, t in plan.tensors.items()} == {
        "w": None, "c": 32, "t": 32, "s": 32, "u": None,
    }  # fmt: skip
    with open_package(artifact.main.parent) as package:
        kinds = [o.type for o in package.function()[0].block.operations if o.type.startswith("constexpr_")]
    assert set(kinds) <= {"constexpr_blockwise_shift_scale", "constexpr_sparse_blockwise_shift_scale",
                          "constexpr_sparse_to_dense"}  # fmt: skip


def test_what_a_release_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="weights of 4 bits needs iOS 18"):
        written("w4", coreml("iphone15-ios18", "iOS17"), tmp_path)


def test_equal_weights_are_stored_once_and_read_back_twice(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,64] x) => (float[1,64] y) {
        a = MatMul(x, s)
        r = Relu(a)
        b = MatMul(r, t)
        y = MatMul(b, u)
    }"""
    one = np.random.default_rng(0).normal(0, 0.1, (64, 64)).astype(np.float32)
    model = with_weights(text, {"s": one, "t": one.copy(), "u": one.copy()})
    _, plan, artifact = written("w8", RUNTIMES["w8", "iOS17"], tmp_path, model)
    assert differences(plan, CoreML().read_plan(artifact)) == []
    assert artifact.weight_bytes < 2 * one.size
