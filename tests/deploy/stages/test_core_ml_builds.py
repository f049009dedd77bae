"""Whole builds for Core ML: what each precision becomes on each release, and recipes that share and zero."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("coremltools")

from backends.coreml.package import open_package
from deploy.bundle.read import Bundle, load_plan
from deploy.bundle.report.summary import context
from deploy.bundle.verify import verify_bundle
from deploy.errors import DeployError, UsageError
from deploy.pipeline import build
from deploy.spec.compression import Cluster, Sparsify
from deploy.spec.project import Budget, PrecisionRequest
from deploy.spec.recipe import recipe_of
from deploy.stages.request import Request
from deploy.stages.shared_weights import notes
from deploy.stages.target import find_target

NET = """g (float[n, 3, 8, 8] x) => (float[n, 10] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
    b = Relu (a)
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w2, b2)
    d = Relu (c)
    e = GlobalAveragePool (d)
    f = Flatten (e)
    h = MatMul (f, w3)
    y = Gemm <transB = 1> (h, w4, b4)
}"""
SHAPES = {
    "w1": (16, 3, 3, 3), "b1": (16,), "w2": (32, 16, 3, 3), "b2": (32,), "w3": (32, 128), "w4": (10, 128),
    "b4": (10,),
}  # fmt: skip
LARGE = {"w2": 32, "w3": 128, "w4": 10}
"""Weights that are stored in a form, with their outputs."""
OLD = """schema = 1
name = "old"
inherits = "iphone15"
title = "iOS 16"
[[runtime]]
name = "coreml"
versions = ["iOS16"]
[runtime.options]
minimum_deployment_target = "iOS16"
[runtime.quant]
compute = []
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def made(save, images: dict[str, np.ndarray], tmp_path: Path, cache: Path, named) -> Callable[..., Bundle]:
    draw = np.random.default_rng(0)
    arrays = {name: (draw.standard_normal(shape) / 4).astype(np.float32) for name, shape in SHAPES.items()}
    model = save(tmp_path / "net.onnx", NET, arrays)
    (tmp_path / "old.toml").write_text(OLD)

    def run(release: str, precision: PrecisionRequest, **settings: object) -> Bundle:
        target = {"iOS16": str(tmp_path / "old.toml"), "iOS17": "iphone15", "iOS18": "iphone15-ios18"}[
            release
        ]
        given = {
            "data": images, "budget": Budget(max_drop=1.0), "tune": "off", "measure": False,
            "runtime": "coreml", "out": tmp_path / "dist", "cache": cache,
        }  # fmt: skip
        return build(model, target=target, precision=precision, **{**given, **settings})  # type: ignore[arg-type]

    return run


def kinds(bundle: Bundle) -> Counter[str]:
    """How weights are stored, and operations that round what runs."""
    with open_package(bundle.folder / "artifact" / "model.mlpackage") as package:
        types = [o.type for o in package.function()[0].block.operations]
    return Counter(kind for kind in types if kind.startswith("constexpr_") or kind == "quantize")


AFFINE, BLOCKS = "constexpr_affine_dequantize", "constexpr_blockwise_shift_scale"
EXPECTED: dict[tuple[str, PrecisionRequest], tuple[str | None, bool]] = {
    ("iOS16", "w8"): (AFFINE, False),
    ("iOS17", "w8"): (AFFINE, False),
    ("iOS17", "auto"): (AFFINE, True),
    ("iOS17", "float"): (None, False),
    ("iOS18", "w4"): (BLOCKS, False),
    ("iOS18", "int8"): (BLOCKS, True),
}  # fmt: skip


@pytest.mark.parametrize(
    ("release", "precision"),
    [
        pytest.param(*case, marks=pytest.mark.slow if case[1] in ("float", "int8") else ())
        for case in EXPECTED
    ],
)
def test_a_precision_on_a_release(release: str, precision: PrecisionRequest, made) -> None:
    stored, rounds = EXPECTED[release, precision]
    bundle = made(release, precision)
    assert bundle.manifest.verification.passed
    assert verify_bundle(bundle.folder).passed
    found = kinds(bundle)
    assert (found["quantize"] > 0) == rounds
    forms = {kind for kind in found if kind.startswith("constexpr_")}
    assert forms == ({stored} if stored else set())
    if precision in ("w8", "w4"):
        assert set(load_plan(bundle).tensors) == set(LARGE)
        assert found[str(stored)] == len(LARGE)
    width = {"w8": 1.1, "w4": 0.75, "auto": 1.2, "int8": 1.2, "float": 4.05}[precision]
    size = sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert bundle.manifest.artifact.weight_bytes < width * size + 4000


def test_what_a_release_has_not_is_said(made) -> None:
    with pytest.raises(UsageError, match="has no w4 form") as e:
        made("iOS17", "w4")
    assert "w8" in e.value.hint
    with pytest.raises(DeployError):
        made("iOS16", "w4")


@pytest.mark.parametrize(("release", "group"), [("iOS17", None), ("iOS18", 8)])
def test_clustered_weights_ship_as_palettes(release: str, group: int | None, made) -> None:
    bundle = made(release, "fp16", recipe=(Cluster(centres=16, group=group),))
    assert set(load_plan(bundle).palettes) == set(LARGE)
    assert {p.values for p in load_plan(bundle).palettes.values()} == {16}
    assert kinds(bundle) == {"constexpr_lut_to_dense": len(LARGE)}
    assert bundle.manifest.artifact.stored == {"as palettes": 3}
    told = {fact.name: fact.value for fact in context(bundle)}
    assert told["stored smaller"] == "3 weights as palettes"
    assert bundle.manifest.verification.passed
    assert verify_bundle(bundle.folder).passed
    ablation = bundle.measurements.compression
    assert ablation is not None
    before, after = ablation.before.weight_bytes, ablation.steps[0].figures.weight_bytes
    numbers = sum(int(np.prod(SHAPES[name])) for name in LARGE)
    books = 2 * 16 * sum(1 if p.axis is None else LARGE[n] // p.size
                         for n, p in load_plan(bundle).palettes.items())  # fmt: skip
    assert before - after == 2 * numbers - numbers // 2 - books
    assert after <= bundle.manifest.artifact.weight_bytes < after + 2048


def test_clustered_weights_that_become_int8_are_looked_up_from_ios_18_on(made) -> None:
    bundle = made("iOS18", "int8", recipe=(Cluster(centres=4, max_drop=1.0),))
    found = kinds(bundle)
    assert found["quantize"] > 0 and not load_plan(bundle).palettes
    assert found["constexpr_lut_to_dense"] >= 2
    assert bundle.manifest.verification.passed
    plain = made("iOS18", "int8")
    assert bundle.manifest.artifact.weight_bytes < 0.6 * plain.manifest.artifact.weight_bytes


def test_zeros_are_not_shipped(made) -> None:
    bundle = made("iOS17", "fp16", recipe=(Sparsify(pattern="unstructured", sparsity=0.6),))
    assert kinds(bundle) == {"constexpr_sparse_to_dense": len(LARGE)}
    assert bundle.manifest.artifact.stored == {"without zeros": 3}
    assert bundle.manifest.verification.passed
    ablation = bundle.measurements.compression
    assert ablation is not None
    after = ablation.steps[0].figures.weight_bytes
    assert after < 0.6 * ablation.before.weight_bytes
    assert after <= bundle.manifest.artifact.weight_bytes < after + 2048


def test_what_does_not_ship_as_a_palette_is_said_first(images: dict[str, np.ndarray]) -> None:
    roles = SimpleNamespace(calibration=images)

    def told(name: str, precision: PrecisionRequest, runtime: str = "coreml", group: int | None = 8) -> str:
        request = Request(
            source="net.onnx", target=name, precision=precision, recipe=recipe_of((Cluster(group=group),))
        )
        return " ".join(notes(request, find_target(name, runtime), roles))

    assert "groups of 8 channels share it where they have 256 values" in told("iphone15", "fp16")
    assert told("iphone15", "fp16", group=None) == told("iphone15-ios18", "fp16") == ""
    assert "--precision fp16 keeps them all" in told("iphone15", "auto", group=None)
    assert told("iphone15-ios18", "auto") == ""
    assert "w4 stores integers in the place of palettes" in told("iphone15-ios18", "w4")
    assert "ort stores the shared values as plain floats" in told("iphone15", "fp16", "ort")
