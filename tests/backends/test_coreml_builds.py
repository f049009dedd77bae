"""Bundles for an iPhone, from deploy.toml's words to what an app finds in the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("coremltools")

from backends.coreml import CoreML
from backends.coreml.sdk import sdk
from deploy.adapter.profiles import load_profile
from deploy.bundle.deep import look_deep
from deploy.bundle.operations import LARGEST_ERROR
from deploy.bundle.read import load_bundle, load_plan, open_bundle
from deploy.bundle.report.running import running
from deploy.bundle.report.summary import Fact, context
from deploy.bundle.verify import verify_bundle
from deploy.cli import main
from deploy.errors import UsageError
from deploy.pipeline import build
from deploy.spec.document import digest
from deploy.spec.project import AboutSection, InputSection, IoSection
from deploy.spec.tensors import Normalisation
from deploy.stages.target import able_to, find_target

RNG = np.random.default_rng(8)
NUMBERS = Normalisation(scale=1 / 255, mean=(0.5, 0.4, 0.6), std=(0.25, 0.2, 0.3))
CLASSES = ("cat", "dog", "tree frog", "übel")


def saved(path: Path, text: str, shapes: dict[str, tuple[int, ...]]) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, shape in shapes.items():
        array = RNG.normal(0, 0.3, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def test_an_app_gives_a_picture_and_gets_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.bundle.ends._MOST_NUMBERS", 12 * 8 * 3)
    source = saved(
        tmp_path / "net.onnx",
        """g (float[n, 3, h, w] x) => (float[n, 4] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, k)
            r = Relu (a)
            p = GlobalAveragePool (r)
            f = Flatten (p)
            y = MatMul (f, t)
        }""",
        {"k": (8, 3, 3, 3), "t": (8, 4)},
    )
    pixels = RNG.integers(0, 256, (8, 12, 8, 3), np.uint8)
    bundle = build(
        source,
        target="iphone15",
        data={"x": pixels},
        inputs={"x": InputSection(normalisation=NUMBERS, colours="BGR")},
        io=IoSection.model_validate(
            {"dtype": "uint8", "layout": "NHWC", "classifier": True, "sizes": {"x": [1, "8..12..16", 8, 3]}}
        ),
        about=AboutSection(author="N. N.", license="MIT", version="3", description="tells four apart"),
        classes=CLASSES,
        out=tmp_path / "dist",
        cache=tmp_path / "cache",
    )
    manifest = bundle.manifest
    assert manifest.runtime == "coreml" and manifest.verification.passed
    assert manifest.verification.beyond == ("x [1, 12, 8, 3]", "x [1, 8, 8, 3]")
    assert manifest.verification.skipped == ("x [1, 16, 8, 3]",)
    assert Fact("not run", "x [1, 16, 8, 3]: too large for a check") in context(bundle)
    assert manifest.artifact.inputs[0].colours == "BGR"
    described = sdk().utils.load_spec(str(bundle.folder / "artifact" / "model.mlpackage")).description
    (feature,) = described.input
    picture = feature.type.imageType
    assert (picture.colorSpace, picture.height) == (picture.ColorSpace.BGR, 12)
    rows = picture.imageSizeRange.heightRange
    assert (rows.lowerBound, rows.upperBound) == (8, 16)
    about = described.metadata
    assert (about.author, about.license, about.versionString) == ("N. N.", "MIT", "3")
    assert about.shortDescription == "tells four apart"
    assert feature.shortDescription == "x: a picture, which the model normalises itself"
    assert {one.name: one.shortDescription for one in described.output} == {
        "y": "y: float32[1, 4]",
        "classLabel": "the likeliest class",
        "classLabel_probs": "the probability of each class",
    }
    assert about.userDefined["plan_sha256"] == manifest.plan_sha256 == digest(load_plan(bundle))
    assert about.userDefined["source_sha256"] == manifest.source.sha256
    session = onnxruntime.InferenceSession(source)
    with open_bundle(bundle.folder) as runner:
        for height in (8, 16):
            fed = RNG.integers(0, 256, (1, height, 8, 3), np.uint8)
            normalised = (fed / 255 - np.array(NUMBERS.mean)) / np.array(NUMBERS.std)
            (want,) = session.run(None, {"x": normalised.transpose(0, 3, 1, 2).astype(np.float32)})
            got = runner.run({"x": fed})["y"]
            assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_samples_are_a_sequence_where_states_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = saved(
        tmp_path / "net.onnx",
        """g (float[1, 3] x, float[1, 4] h) => (float[1, 2] y, float[1, 4] h_next) {
            both = Concat <axis = 1> (x, h)
            a = MatMul (both, w)
            h_next = Tanh (a)
            y = MatMul (h_next, v)
        }""",
        {"w": (7, 4), "v": (4, 2)},
    )
    monkeypatch.chdir(tmp_path)
    Path("deploy.toml").write_text(
        'schema = 1\n[model]\npath = "net.onnx"\n[io.states]\nh = "h_next"\n'
        '[quantize]\nprecision = "float"\n[build]\ntargets = ["iphone15-ios18"]\n'
    )
    samples = RNG.normal(size=(6, 3)).astype(np.float32)
    np.savez("in.npz", x=samples)
    assert main(["build", "--cache", "cache", "-q"]) == 0
    folder = next(Path("dist").iterdir())
    assert verify_bundle(folder).beyond == ("8 inferences in a row",)
    deep = look_deep(folder)
    assert deep.right and {operation.allowed for operation in deep.operations} == {LARGEST_ERROR}
    fed = running(load_bundle(folder))
    assert ([one.name for one in fed.inputs], [one.name for one in fed.outputs]) == (["x"], ["y"])
    assert "keeps h (then h_next)" in fed.note
    assert main(["run", str(folder), "in.npz", "-o", "out.npz"]) == 0
    assert "h stay from one to the next" in " ".join(capsys.readouterr().err.split())
    session = onnxruntime.InferenceSession(source)
    state = np.zeros((1, 4), np.float32)
    with np.load("out.npz") as found:
        for row, sample in enumerate(samples):
            y, state = session.run(None, {"x": sample[None], "h": state})
            np.testing.assert_allclose(found["y"][row], y[0], atol=5e-3)
            np.testing.assert_allclose(found["h_next"][row], state[0], atol=5e-3)


OLDER = """schema = 1
name = "older"
inherits = "iphone15"
title = "An older release"
[[runtime]]
name = "coreml"
[runtime.options]
minimum_deployment_target = "iOS16"
"""


def test_an_older_release_gets_what_it_has(
    tmp_path: Path, named: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Rules that a profile inherits from one for later releases do not make the package impossible."""
    (tmp_path / "older.toml").write_text(OLDER)
    source = saved(
        tmp_path / "net.onnx",
        "g (float[1, 4] x) => (float[1, 2] y) { a = MatMul (x, w)  r = Relu (a)  y = MatMul (r, v) }",
        {"w": (4, 8), "v": (8, 2)},
    )
    caplog.set_level("INFO", "deploy")
    bundle = build(
        source,
        target=str(tmp_path / "older.toml"),
        data={"x": RNG.normal(size=(8, 4)).astype(np.float32)},
        out=tmp_path / "dist",
        cache=tmp_path / "cache",
    )
    assert bundle.manifest.runtime == "coreml" and bundle.manifest.precision.keys() == {"fp16"}
    said = next(text for text in caplog.messages if "iOS16" in text)
    assert "activations stay float, which iOS 17 (macOS 14) is the first to round" in said
    assert look_deep(bundle.folder).right


@pytest.mark.parametrize(
    ("release", "forms"), [("iOS16", ("w8",)), ("iOS17", ("w8",)), ("iOS18", ("w8", "w4"))]
)
def test_forms_come_with_a_release(release: str, forms: tuple[str, ...]) -> None:
    newest = load_profile("iphone15-ios18").runtime_named("coreml")
    asked = newest.model_copy(update={"options": {**newest.options, "minimum_deployment_target": release}})
    able, reason = CoreML().narrowed(asked)
    assert able.forms == forms and ("w4" in able.weights) == ("w4" in forms)
    assert (able.quant is None) == (release == "iOS16") and bool(reason) == (release != "iOS18")


def test_a_form_that_came_later_names_who_has_it() -> None:
    with pytest.raises(UsageError, match="has no w4 form") as e:
        able_to(find_target("iphone15"), "w4")
    assert e.value.hint is not None and "iphone15-ios18, where coreml has it" in e.value.hint
