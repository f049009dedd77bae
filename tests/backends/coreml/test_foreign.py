"""A package from elsewhere: read in a child alone, and what does not fit in it is one clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.errors import BackendError
from deploy.graph.qdq import insert
from deploy.progress import SILENT
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan, TensorPlan

pytest.importorskip("coremltools")
from small_graphs import drawn, reference, with_weights

import backends.coreml.notes
import backends.coreml.package
import backends.coreml.readback
from backends.coreml import CoreML
from backends.coreml.parts import parts
from backends.coreml.sdk import sdk

EXACT = load_profile("iphone15").runtime_named("coreml").model_copy(update={"around": "float32"})
OPTIONS = CoreML().options(EXACT, 1)
NET = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,3,4,4] x) => (float[1,16,4,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    y = Relu(a)
}"""
FEEDS = {"x": np.random.default_rng(1).normal(0, 1, (1, 3, 4, 4)).astype(np.float32)}


def network() -> ir.Model:
    model = with_weights(NET, drawn({"w": (16, 3, 3, 3)}))
    each = TensorPlan(
        type="uint8", scale=(0.02, 0.03, 0.05), zero_point=(7, 0, 9), axis=1, origin="calibration"
    )
    one = TensorPlan(type="uint8", scale=(0.02,), zero_point=(0,), origin="calibration")
    return insert(model, {"x": each, "y": one}, {})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    plan = Plan(graph_sha256="", target="", runtime="coreml")
    return CoreML().lower(network(), plan, EXACT, tmp_path_factory.mktemp("built"), SILENT)


def copied(artifact: Artifact, folder: Path, **changes: object) -> Artifact:
    shutil.copytree(artifact.folder, folder, dirs_exist_ok=True)
    return artifact.model_copy(update={"folder": folder, **changes})


def changed(artifact: Artifact, change: Callable[..., None]) -> None:
    """Write another specification."""
    file = next(artifact.folder.rglob("*.mlmodel"))
    message = sdk().proto.Model_pb2.Model.FromString(file.read_bytes())
    change(message)
    file.write_bytes(message.SerializeToString())


def test_nothing_of_it_is_parsed_here(
    built: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = CoreML().read_plan(built)
    foreign = copied(built, tmp_path, foreign=True)

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} is read in this process")

    for module in (backends.coreml.notes, backends.coreml.package, backends.coreml.readback):
        monkeypatch.setattr(module, "open_package", refuse)
    with CoreML().open(foreign, OPTIONS) as runner:
        got = runner.run(FEEDS)["y"]
    np.testing.assert_allclose(got, reference(network(), FEEDS)["y"], atol=1e-6)
    assert CoreML().read_plan(foreign) == planned


def operation(message, kind: str):
    block = next(iter(message.mlProgram.functions["main"].block_specializations.values()))
    return next(o for o in block.operations if o.type == kind)


def parameter(message, name: str):
    """What the first quantize is given under a name."""
    wanted = operation(message, "quantize").inputs[name].arguments[0].name
    block = next(iter(message.mlProgram.functions["main"].block_specializations.values()))
    return next(o for o in block.operations if o.outputs[0].name == wanted).attributes["val"]


def two_axes(message) -> None:
    value = parameter(message, "axis")
    value.immediateValue.tensor.ints.values[:] = [0, 1]
    tensor = value.type.tensorType
    tensor.rank = 1
    tensor.dimensions.add().constant.size = 2


def no_type(message) -> None:
    value = parameter(message, "output_dtype")
    del value.immediateValue.tensor.strings.values[:]
    tensor = value.type.tensorType
    tensor.rank = 1
    tensor.dimensions.add().constant.size = 0


def words(message) -> None:
    """Texts in the place of scales."""
    parameter(message, "scale").CopyFrom(parameter(message, "output_dtype"))


def not_there(message) -> None:
    """What is to be fed is made by nobody."""
    notes = json.loads(message.description.metadata.userDefined["deploy"])
    operation(message, "relu").inputs["x"].arguments[0].name = notes["values"]["a"] = "nowhere"
    message.description.metadata.userDefined["deploy"] = json.dumps(notes)


@pytest.mark.parametrize(
    "change",
    [two_axes, no_type, words],
)
def test_parameters_that_do_not_fit_are_said(
    built: Artifact, tmp_path: Path, change: Callable[..., None]
) -> None:
    artifact = copied(built, tmp_path)
    changed(artifact, change)
    with pytest.raises(BackendError, match="quantize '") as found:
        CoreML().read_plan(artifact)
    assert "model.mlpackage cannot be read" in found.value.message


def test_parts_of_a_damaged_package_are_errors(built: Artifact, tmp_path: Path) -> None:
    artifact = copied(built, tmp_path)
    package, known = artifact.main.parent, ("x", "a", "y")
    (conv,) = (part for part in parts(package, known, "float32") if part.result == "a")
    want = reference(network(), FEEDS, ("a",))["a"]
    inner = {name: FEEDS["x"] if name == "x" else want for name in conv.reads}
    np.testing.assert_allclose(conv.run(inner), want, atol=1e-6)
    next(package.rglob("weight.bin")).write_bytes(bytes(64))
    (broken,) = (part for part in parts(package, known, "float32") if part.result == "a")
    with pytest.raises(BackendError, match=r"model\.mlpackage cannot be read"):
        broken.run(inner)
    changed(artifact, not_there)
    with pytest.raises(BackendError, match="nothing makes 'nowhere'"):
        list(parts(package, known, "float32"))
