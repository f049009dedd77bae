"""Forms of weights asked for by name: what a bundle then holds and says, and targets that lack the form."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from deploy.adapter.discover import find_backend
from deploy.adapter.protocol import Availability
from deploy.bundle.read import load_lock, load_plan
from deploy.bundle.report.content import report
from deploy.bundle.report.markdown import markdown
from deploy.bundle.verify import verify_bundle
from deploy.errors import UsageError
from deploy.pipeline import build
from deploy.spec.project import Budget, MetricSection, PrecisionRequest
from deploy.stages.attempts import main_precision
from deploy.stages.request import Request
from deploy.stages.target import able_to, find_target

pytest.importorskip("ai_edge_litert")

NET = """g (float[n, 16, 8, 8] x) => (float[n, 40] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w, b)
    c = Relu (a)
    d = Conv <kernel_shape = [5, 5], pads = [2, 2, 2, 2], group = 64> (c, v)
    p = GlobalAveragePool (d)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, u)
}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    rng = np.random.default_rng(0)
    shapes = {"w": (64, 16, 3, 3), "b": (64,), "v": (64, 1, 5, 5), "u": (40, 64)}
    arrays = {n: rng.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()}
    from onnx import numpy_helper, parser, save

    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {NET}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    save(proto, path)
    return path


@pytest.mark.parametrize(
    ("precision", "blocks", "status", "smaller"),
    [
        ("fp16", {"fp16": 3}, "float", 1.8),
        ("w8", {"w8": 3}, "met", 2.8),
        ("w4", {"w4": 3}, "met", 3.8),
        ("dynamic", {"dynamic": 2, "w8": 1}, "met", 2.8),
    ],
)
def test_no_data_are_needed_and_the_bundle_says_what_it_holds(
    model, tmp_path, precision: PrecisionRequest, blocks, status, smaller
):
    bundle = build(model, target="android", precision=precision, out=tmp_path, cache=tmp_path / "cache")
    found = load_plan(bundle)
    assert {p: n for p, n in Counter(b.precision for b in found.blocks).items() if p != "float"} == blocks
    manifest = bundle.manifest
    assert (manifest.verdict.status, manifest.runtime) == (status, "tflite")
    assert f"precision {precision} was asked for" in manifest.verdict.reasons
    assert manifest.calibration is None
    assert manifest.size_bytes.baseline_weights / manifest.size_bytes.weights > smaller
    assert manifest.verification.passed
    assert verify_bundle(bundle.folder).passed
    assert main_precision(found) == precision
    assert bundle.measurements.attempts[-1].name.startswith(precision)
    later = found.model_copy(
        update={"blocks": tuple(sorted(found.blocks, key=lambda b: b.precision != "float"))}
    )
    assert main_precision(later) == precision


def test_weights_alone_do_not_make_the_reference_noisy(model, tmp_path):
    bundle = build(model, target="android", precision="w8", out=tmp_path, cache=tmp_path / "cache")
    assert bundle.manifest.verification.tolerance < 1e-4


def test_wide_activations_are_calibrated_and_nearly_exact(model, tmp_path):
    data = {"x": np.random.default_rng(1).normal(size=(16, 16, 8, 8)).astype(np.float32)}
    errors = {}
    for precision in ("int8", "w8a16"):
        bundle = build(
            model, target="android", runtime="tflite", precision=precision, data=data,
            out=tmp_path / precision, cache=tmp_path / "cache",
        )  # fmt: skip
        plan = load_plan(bundle)
        activations = {t.type for t in plan.tensors.values() if t.origin == "calibration"}
        assert activations == {"int16" if precision == "w8a16" else "int8"}
        assert {b.precision for b in plan.blocks} >= {precision}
        assert bundle.manifest.calibration is not None
        errors[precision] = [t.scale[0] for n, t in plan.tensors.items() if n == "x"]
    assert errors["w8a16"][0] < errors["int8"][0] / 100, "its steps are finer"


@pytest.fixture(scope="module")
def labelled(model):
    """Samples with what the network makes of them, so that the mean square of the error is what is lost."""
    import onnxruntime

    x = np.random.default_rng(1).normal(size=(48, 16, 8, 8)).astype(np.float32)
    return {"x": x, "y": onnxruntime.InferenceSession(model).run(None, {"x": x})[0]}


def within(labelled, decibels):
    return Budget(max_drop=float(np.square(labelled["y"]).mean() * 10 ** (-decibels / 10)))


def test_microcontrollers_have_wide_blocks_sooner_than_float_ones(model, labelled, tmp_path):
    settings = {
        "target": "microcontroller", "data": labelled, "metric": MetricSection(name="mse"),
        "budget": within(labelled, 38), "tune": "off", "cache": tmp_path / "cache",
    }  # fmt: skip
    bundle = build(model, out=tmp_path / "first", **settings)
    assert bundle.manifest.verdict.status == "met"
    assert bundle.manifest.verification.passed
    lock, precisions = load_lock(bundle), Counter(b.precision for b in load_plan(bundle).blocks)
    assert lock.float_blocks == ()
    assert set(lock.wide_blocks) == {b.id for b in load_plan(bundle).blocks if b.precision == "w8a16"}
    assert precisions["w8a16"] >= 1
    rung = bundle.measurements.ladder[-1]
    assert (rung.name, rung.kept, rung.places) == ("wide", True, precisions["w8a16"])
    assert bundle.measurements.attempts[-1].precision == precisions
    text = markdown(report(bundle))
    assert "activations of 16 bits" in text
    other = next(p for p in bundle.measurements.front if not p.chosen)
    assert other.wide_blocks != lock.wide_blocks
    again = build(model, out=tmp_path / "again", lock=bundle.folder / "deploy.lock", **settings)
    assert again.digest == bundle.digest
    picked = load_plan(build(model, out=tmp_path / "first", pick=other.number, **settings))
    assert {b.id for b in picked.blocks if b.precision == "w8a16"} == set(other.wide_blocks)


def test_phones_have_float_blocks_and_are_told_why(model, labelled, tmp_path):
    bundle = build(
        model, target="android", runtime="tflite", data=labelled, metric=MetricSection(name="mse"),
        budget=within(labelled, 40), tune="off", out=tmp_path, cache=tmp_path / "cache",
    )  # fmt: skip
    assert {b.precision for b in load_plan(bundle).blocks} == {"int8", "float"}
    assert bundle.measurements.ladder[-1].why == "they are slower than floats here"
    reasons = [b.reason for b in bundle.measurements.explained.blocks if b.precision == "float"]
    assert all("activations of 16 bits are slower than floats here" in reason for reason in reasons)


def test_the_preview_says_the_same_as_the_build(model, tmp_path):
    from deploy.pipeline import dry_run

    seen = dry_run(Request(source=model, target="android", precision="dynamic", cache=tmp_path / "cache"))
    assert Counter(p for _, p in seen.routes[0].precisions if p != "float") == {"dynamic": 2, "w8": 1}
    assert seen.data == ("no calibration: precision dynamic needs none",)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    rng = np.random.default_rng(0)
    shapes = {"w": (128, 512), "b": (512,), "v": (512, 128), "u": (40, 128)}
    arrays = {n: rng.normal(0, 0.06, s).astype(np.float32) for n, s in shapes.items()}
    from onnx import numpy_helper, parser, save

    text = """g (float[n, 8, 128] x) => (float[n, 40] y) {
        a = MatMul (x, w)  c = Add (a, b)  d = Relu (c)  e = MatMul (d, v)  f = Add (e, x)
        g = ReduceMax <axes = [1], keepdims = 0> (f)  y = Gemm <transB = 1> (g, u) }"""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    path = tmp_path_factory.mktemp("dense") / "dense.onnx"
    save(proto, path)
    return path


@pytest.mark.parametrize(("precision", "smaller"), [("dynamic", 3.5), ("w8", 3.5), ("w4", 5.5)])
def test_onnx_runtime_has_them_for_products(dense, tmp_path, precision: PrecisionRequest, smaller):
    bundle = build(
        dense, target="x86-vnni", runtime="ort", precision=precision, measure=False,
        out=tmp_path, cache=tmp_path / "cache",
    )  # fmt: skip
    found = load_plan(bundle)
    assert Counter(b.precision for b in found.blocks if b.precision != "float") == {precision: 3}
    manifest = bundle.manifest
    assert manifest.verification.passed
    assert manifest.size_bytes.baseline_weights / manifest.size_bytes.weights > smaller
    assert verify_bundle(bundle.folder).passed


def test_a_runtime_that_would_store_next_to_nothing_takes_no_part(model, tmp_path, caplog):
    caplog.set_level("INFO", "deploy")
    bundle = build(
        model, target="x86-vnni", precision="w8", measure=False, out=tmp_path, cache=tmp_path / "cache"
    )
    assert bundle.manifest.runtime == "tflite", "it stores convolutions, too"
    assert "ort is left out: it has that form for" in caplog.text


def test_what_looks_at_a_whole_batch_is_scored_sample_by_sample(dense, tmp_path, monkeypatch):
    import deploy.measure.accuracy as accuracy

    sizes = []
    run_samples = accuracy.run_samples

    def recorded(runner, feeds, size):
        sizes.append(size)
        return run_samples(runner, feeds, size)

    monkeypatch.setattr(accuracy, "run_samples", recorded)
    data = {"x": np.random.default_rng(1).normal(size=(12, 8, 128)).astype(np.float32)}
    for precision in ("dynamic", "w8"):
        build(
            dense, target="x86-vnni", runtime="ort", precision=precision, eval=data, measure=False,
            out=tmp_path / precision, cache=tmp_path / "cache",
        )  # fmt: skip
    assert sizes == [32, *[1] * 12, 32, 32], "the float model, the artifact; the same again"


@pytest.mark.parametrize("precision", ["dynamic", "w4"])
def test_on_arm_they_are_written_at_its_own_operator_set(dense, tmp_path, precision: PrecisionRequest):
    bundle = build(
        dense, target="rpi5", runtime="ort", precision=precision, out=tmp_path, cache=tmp_path / "cache"
    )
    assert bundle.manifest.verification.passed
    assert {b.precision for b in load_plan(bundle).blocks} == {precision, "float"}


def test_cpus_without_dot_products_do_not_have_them():
    with pytest.raises(UsageError, match="has no w4 form"):
        able_to(find_target("rpi4", only="ort"), "w4")


@pytest.mark.parametrize("precision", ["fp16", "w8a16", "dynamic", "w8", "w4"])
def test_only_runtimes_with_the_form_are_left(precision: PrecisionRequest):
    able = able_to(find_target("android"), precision)
    assert [route.runtime.name for route in able.routes] == ["tflite"]


def test_a_target_without_the_form_is_told_with_what_it_has():
    with pytest.raises(UsageError, match="has no w4 form") as caught:
        able_to(find_target("android", only="ort"), "w4")
    assert caught.value.hint
    assert "ort has float, int8" in caught.value.hint
    assert "leave --runtime out (tflite has it)" in caught.value.hint


def test_a_preferred_runtime_that_is_not_here_is_told(model, tmp_path, monkeypatch, caplog):
    def absent(self) -> Availability:
        return Availability("LiteRT", None, "pip install litert")

    monkeypatch.setattr(type(find_backend("tflite")), "available", absent)
    caplog.set_level("INFO", "deploy")
    bundle = build(model, target="android", out=tmp_path, cache=tmp_path / "cache")
    assert bundle.manifest.runtime == "ort"
    assert "tflite, which android prefers, is left out: pip install litert" in caplog.text
    assert find_target("x86-avx2").left_out == ()
