"""A model that comes quantized keeps its parameters to the bit, on every target that can hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deploy
from deploy.errors import UnsupportedError
from deploy.spec.document import parse
from deploy.spec.plan import Plan, differences

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Q/DQ file of somebody's: our own artifact, handed in as a source."""
    out = tmp_path_factory.mktemp("quantized")
    bundle = deploy.build(
        DIGITS / "digits.onnx", target="x86-vnni", data=DIGITS / "calib.npz", out=out, precision="int8",
        measure=False, cache=out / "cache",
    )  # fmt: skip
    return bundle.folder


def outputs(bundle: Path) -> np.ndarray:
    with np.load(DIGITS / "eval.npz") as data, deploy.open_bundle(bundle) as runner:
        return runner.run({"x": data["x"][:64].astype(np.float32)})["logits"]


def plan_of(bundle: Path) -> Plan:
    return parse(Plan, (bundle / "plan.json").read_text(), origin=bundle)


def test_the_plan_and_every_output_stay_the_same(quantized: Path, tmp_path: Path) -> None:
    again = deploy.build(
        quantized / "artifact" / "model.onnx",
        target="x86-vnni",
        out=tmp_path,
        measure=False,
        cache=tmp_path / "c",
    )
    assert differences(plan_of(quantized), plan_of(again.folder)) == []
    assert again.manifest.calibration is None
    np.testing.assert_array_equal(outputs(again.folder), outputs(quantized))


def test_int8_activations_are_the_same_numbers_moved_by_128(quantized: Path, tmp_path: Path) -> None:
    moved = deploy.build(
        quantized / "artifact" / "model.onnx",
        target="rpi5",
        out=tmp_path,
        measure=False,
        cache=tmp_path / "c",
    )
    before, after = plan_of(quantized).tensors, plan_of(moved.folder).tensors
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if tensor.type == "uint8":
            assert after[name].type == "int8"
            assert after[name].zero_point == tuple(z - 128 for z in tensor.zero_point)
        assert after[name].scale == tensor.scale
        assert after[name].digest == tensor.digest
    # The integer kernels of the two types round alike up to one code of the last layer.
    scale = 2 * max(t.scale[0] for t in before.values() if t.origin != "bias" and t.axis is None)
    assert np.abs(outputs(moved.folder) - outputs(quantized)).max() <= scale


def test_a_target_that_cannot_hold_the_parameters_says_which(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"zero point \d+|zero point -\d+") as error:
        deploy.build(
            quantized / "artifact" / "model.onnx", target="jetson", out=tmp_path, cache=tmp_path / "c"
        )
    assert "--precision float" in error.value.hint
    assert not (tmp_path / "jetson").exists()


def test_the_float_model_behind_it_can_be_built(quantized: Path, tmp_path: Path) -> None:
    plain = deploy.build(
        quantized / "artifact" / "model.onnx",
        target="jetson",
        precision="float",
        out=tmp_path,
        cache=tmp_path / "c",
    )
    assert plain.manifest.verdict.status == "float"
    assert not plan_of(plain.folder).quantized
    error = np.abs(outputs(plain.folder) - outputs(quantized)).max()
    assert error < 0.1 * np.abs(outputs(quantized)).max()
