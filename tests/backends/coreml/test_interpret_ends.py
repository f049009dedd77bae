"""What goes into a package and comes out of it: images, classes, free sizes, states, several functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools")
from coreml_packages import evaluated, saved

from backends.coreml import CoreML, child, predict
from backends.coreml.child import ForeignRunner
from backends.coreml.runner import CoreMLOptions, CoreMLRunner
from backends.coreml.sdk import builder, mil, quiet, sdk
from deploy.errors import BackendError, DataError, ToolchainError
from deploy.spec.artifact import Artifact
from deploy.spec.tensors import TensorSpec

RNG = np.random.default_rng(2)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def test_images_are_bytes_with_the_colour_last(tmp_path: Path) -> None:
    """The package scales them itself; a BGR one turns the colours."""
    ct = sdk()
    pixels = RNG.integers(0, 256, (1, 4, 5, 3)).astype(np.uint8)
    for colour in ("RGB", "BGR"):
        order = getattr(ct.colorlayout, colour)
        scaling = {"scale": 1 / 255, "bias": [-0.5, 0.0, 0.5]}
        image = ct.ImageType("x", (1, 3, 4, 5), color_layout=order, **scaling)
        path = saved(
            lambda mb, x: mb.identity(x=x), {"x": (1, 3, 4, 5)}, tmp_path / f"{colour}.mlpackage",
            passes=True,
            inputs=[image],
        )  # fmt: skip
        with CoreMLRunner(path, CoreMLOptions()) as runner:
            assert str(runner.inputs[0]) == "x: uint8[1, 4, 5, 3]" and runner.inputs[0].layout == "NHWC"
            (got,) = runner.run({"x": pixels}).values()
        turned = pixels[..., ::-1] if colour == "BGR" else pixels
        wanted = np.moveaxis(turned, -1, 1) / 255 + np.array([-0.5, 0, 0.5])[:, None, None]
        np.testing.assert_allclose(got, wanted, atol=1e-6)
        channels_first = TensorSpec(name="x", dtype="uint8", shape=(1, 3, 4, 5), layout="NCHW")
        with CoreMLRunner(path, CoreMLOptions(), (channels_first,)) as runner:
            (again,) = runner.run({"x": np.ascontiguousarray(np.moveaxis(pixels, -1, 1))}).values()
        assert np.array_equal(again, got)


def test_a_classifier_gives_its_class_and_all_probabilities(tmp_path: Path) -> None:
    ct = sdk()
    path = saved(
        lambda mb, x: mb.softmax(x=x, name="p"), {"x": (1, 3)}, tmp_path / "p.mlpackage",
        classifier_config=ct.ClassifierConfig(["cat", "dog", "über"]),
    )  # fmt: skip
    x = np.array([[0.1, 0.2, 2.0]], np.float32)
    with CoreMLRunner(path, CoreMLOptions()) as runner, ForeignRunner(path, CoreMLOptions()) as apart:
        got = runner.run({"x": x})
        label, probabilities = got.values()
        assert label.tolist() == "über" and probabilities.shape == (3,)
        np.testing.assert_allclose(probabilities, np.exp(x[0]) / np.exp(x[0]).sum(), rtol=1e-6)
        also = apart.run({"x": x})
        assert all(np.array_equal(also[name], got[name]) for name in got)


def test_free_sizes_and_their_bounds(tmp_path: Path) -> None:
    ct, mb = sdk(), builder()
    dims = ct.RangeDim(2, 6), ct.EnumeratedShapes([(1, 3), (2, 3)])
    free = mil().get_new_symbol()

    @mb.program(input_specs=[mb.TensorSpec(shape=(free, 3))], opset_version=ct.target.iOS17)
    def program(x):
        return mb.reduce_sum(x=x, axes=[1])

    for name, shape in (("range", ct.Shape((dims[0], 3))), ("choices", dims[1])):
        with quiet():
            model = ct.convert(
                program, source="milinternal", convert_to="mlprogram", inputs=[ct.TensorType("x", shape)],
                minimum_deployment_target=ct.target.iOS17, compute_precision=ct.precision.FLOAT32,
                skip_model_load=True,
            )  # fmt: skip
            model.save(str(tmp_path / f"{name}.mlpackage"))
        with CoreMLRunner(tmp_path / f"{name}.mlpackage", CoreMLOptions()) as runner:
            assert runner.inputs[0].shape == ("x.0", 3)
            x = normal(2, 3)
            np.testing.assert_allclose(next(iter(runner.run({"x": x}).values())), x.sum(1), rtol=1e-5)
            with pytest.raises(DataError, match=r"'x' is \[9, 3\]"):
                runner.run({"x": normal(9, 3)})


def with_a_state(path: Path) -> Path:
    """A package that adds up what it is fed."""
    ct, mb, types = sdk(), builder(), mil().types
    specs = [mb.TensorSpec(shape=(2,)), mb.StateTensorSpec(shape=(2,), dtype=types.fp16)]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(x, total):
        have = mb.read_state(input=total)
        new = mb.add(x=have, y=mb.cast(x=x, dtype="fp16"))
        return mb.cast(x=mb.coreml_update_state(state=total, value=new), dtype="fp32")

    with quiet():
        ct.convert(
            program, source="milinternal", convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        ).save(str(path))  # fmt: skip
    return path


def test_a_state_is_kept_where_it_is_handed_on(tmp_path: Path) -> None:
    with_a_state(tmp_path / "p.mlpackage")
    x = np.array([1, 2], np.float32)
    with CoreMLRunner(tmp_path / "p.mlpackage", CoreMLOptions()) as runner:
        for _ in range(2):  # each run begins anew
            assert next(iter(runner.run({"x": x}).values())).tolist() == [1, 2]
        state = runner.fresh_state()
        for step in (1, 2, 3):
            (got,) = runner.run({"x": x}, state=state).values()
            assert got.tolist() == [step, 2 * step]


def test_a_package_of_several_functions(tmp_path: Path) -> None:
    ct = sdk()
    for name, factor in (("one", 2.0), ("two", 3.0)):
        saved(
            lambda mb, x, by=factor: mb.mul(x=x, y=by, name="y"),
            {"x": (2,)},
            tmp_path / f"{name}.mlpackage",
            target="iOS18",
        )
    with quiet():
        several = ct.utils.MultiFunctionDescriptor()
        for name in ("one", "two"):
            several.add_function(str(tmp_path / f"{name}.mlpackage"), "main", name)
        several.default_function_name = "two"
        ct.utils.save_multifunction(several, str(tmp_path / "both.mlpackage"))
    x = np.array([1, 5], np.float32)
    (default,) = evaluated(tmp_path / "both.mlpackage", {"x": x}).values()
    assert default.tolist() == [3, 15]
    with CoreMLRunner(tmp_path / "both.mlpackage", CoreMLOptions(function="one")) as runner:
        assert next(iter(runner.run({"x": x}).values())).tolist() == [2, 10]
    with pytest.raises(BackendError, match="no function 'three'"):
        CoreMLRunner(tmp_path / "both.mlpackage", CoreMLOptions(function="three"))


def test_inner_values_and_what_does_not_fit(tmp_path: Path) -> None:
    path = saved(
        lambda mb, x: mb.exp(x=mb.relu(x=x, name="r"), name="y"), {"x": (2, 3)}, tmp_path / "p.mlpackage"
    )
    x = normal(2, 3)
    with CoreMLRunner(path, CoreMLOptions()) as runner:
        assert runner.executed_by == "reference interpreter"
        got = runner.run({"x": x}, ["r", "none", "y"])
        assert set(got) == {"r", "y"} and np.array_equal(got["r"], np.maximum(x, 0))
        for feeds in ({}, {"x": x.astype(np.float64)}, {"x": x[:1]}, {"x": x, "z": x}):
            with pytest.raises(DataError):
                runner.run(feeds)
    with pytest.raises(BackendError, match="closed"):
        runner.run({"x": x})
    with pytest.raises(BackendError, match="has no input 'a'"):
        CoreMLRunner(path, CoreMLOptions(), (TensorSpec(name="a", dtype="float32", shape=(2, 3)),))


def test_what_a_package_holds(tmp_path: Path) -> None:
    w = normal(8, 4, 3, 3)
    path = saved(
        lambda mb, x: mb.relu(x=mb.conv(x=x, weight=w)), {"x": (1, 4, 6, 6)}, tmp_path / "p.mlpackage"
    )
    found = child.contents(path)
    assert {o.op: o.count for o in found.operators} == {"conv": 1, "relu": 1}
    assert "iOS 17" in found.format and not found.ours and found.execution.refusal == ""
    assert found.constant_bytes >= w.nbytes and found.inputs[0].shape == (1, 4, 6, 6)


def test_core_ml_is_asked_only_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Here its answer is planted: what it says is compared with what the interpreter does."""
    path = saved(lambda mb, x: mb.exp(x=x, name="y"), {"x": (2,)}, tmp_path / "p.mlpackage")
    x = np.array([0, 1], np.float32)
    monkeypatch.setattr(predict, "predicts", lambda: False)
    assert predict.compared(path, {"x": x}, CoreMLOptions()) is None
    with pytest.raises(ToolchainError, match="macOS only"):
        predict.predicted(path, {"x": x}, ())
    monkeypatch.setattr(predict, "predicts", lambda: True)
    answer = {"y": np.exp(x) + np.array([0, 0.01], np.float32)}
    monkeypatch.setattr(sdk().models.MLModel, "predict", lambda model, given: answer)
    differences = predict.compared(path, {"x": x}, CoreMLOptions())
    assert differences == {"y": pytest.approx(0.01 / (np.e + 0.01), rel=1e-3)}


def test_core_ml_s_answer_is_read_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its dictionaries have no order of ours; what keeps a state is given one."""
    ct = sdk()
    monkeypatch.setattr(predict, "predicts", lambda: True)
    path = saved(
        lambda mb, x: mb.softmax(x=x, name="p"), {"x": (1, 3)}, tmp_path / "p.mlpackage",
        classifier_config=ct.ClassifierConfig(["cat", "dog", "fox"]),
    )  # fmt: skip
    x = np.log(np.array([[0.2, 0.5, 0.3]], np.float32))
    answer = {"classLabel": "dog", "classLabel_probs": {"fox": 0.3, "cat": 0.2, "dog": 0.5}}
    monkeypatch.setattr(ct.models.MLModel, "predict", lambda model, given: answer)
    assert predict.compared(path, {"x": x}, CoreMLOptions())["classLabel_probs"] < 1e-3
    path = with_a_state(tmp_path / "s.mlpackage")
    monkeypatch.setattr(ct.models.MLModel, "make_state", lambda model: "zeros", raising=False)
    asked = []

    def answered(model: object, given: dict[str, np.ndarray], state: object) -> dict[str, np.ndarray]:
        asked.append(state)
        (name,) = (one.name for one in model.get_spec().description.output)
        return {name: given["x"]}

    monkeypatch.setattr(ct.models.MLModel, "predict", answered)
    (apart,) = predict.compared(path, {"x": np.array([1, 2], np.float32)}, CoreMLOptions()).values()
    assert apart == 0 and asked == ["zeros"]


def test_a_build_on_a_mac_says_where_core_ml_differs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is no Core ML here: what it would answer is planted."""
    saved(lambda mb, x: mb.exp(x=x, name="y"), {"x": (1, 2)}, tmp_path / "p.mlpackage")
    artifact = Artifact(
        backend="coreml", files=("p.mlpackage/Manifest.json",), folder=tmp_path,
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 2)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 2)),),
    )  # fmt: skip
    assert CoreML().hazards(artifact, CoreMLOptions()) == []
    monkeypatch.setattr(predict, "predicts", lambda: True)
    for factor, told in ((1.0, False), (1.04, False), (1.2, True), (np.nan, True)):
        monkeypatch.setattr(
            sdk().models.MLModel, "predict",
            lambda model, given, factor=factor: {"y": np.exp(given["x"]) * factor},
        )  # fmt: skip
        found = CoreML().hazards(artifact, CoreMLOptions())
        assert bool(found) == told and all("more than 5% apart at the outputs y" in h.text for h in found)

    def refuse(model: object, given: object) -> None:
        raise RuntimeError("needs a newer macOS")

    monkeypatch.setattr(sdk().models.MLModel, "predict", refuse)
    (found_,) = CoreML().hazards(artifact, CoreMLOptions())
    assert "needs a newer macOS: the interpreter alone has run it" in found_.text
