"""deploy run: what goes in comes out as ONNX Runtime computes it from the same artifact; then verify."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime
import pytest

from deploy.adapter.protocol import Arrays
from deploy.cli.run import _computed
from deploy.cli.subject import Subject
from deploy.data.dataset import open_dataset
from deploy.errors import DataError
from deploy.spec.tensors import TensorSpec

Deploy = Callable[..., tuple[int, str, str]]


@pytest.fixture
def images(digits: Path) -> np.ndarray:
    with np.load(digits / "eval.npz") as archive:
        return np.asarray(archive["x"])


@pytest.mark.parametrize("count", [1, 64, 100])
def test_any_number_of_samples(
    deploy: Deploy, here: Path, real_bundle: Path, images: np.ndarray, count: int
) -> None:
    np.savez(here / "in.npz", x=images[:count], y=np.zeros(count, np.int64))
    code, out, err = deploy("run", real_bundle, "in.npz", "-o", "out.npz")
    assert code == 0
    assert f"float32 [{count}, 10]" in out
    assert err == "note: label arrays ('y') are not fed to the model\n"
    session = onnxruntime.InferenceSession(real_bundle / "artifact" / "model.onnx")
    (expected,) = session.run(None, {"x": images[:count]})
    with np.load(here / "out.npz") as archive:
        assert archive.files == ["logits"]
        np.testing.assert_allclose(archive["logits"], expected, rtol=1e-4, atol=1e-3)
    assert sorted(path.name for path in here.iterdir()) == ["in.npz", "out.npz"]


def test_an_inputs_name_of_several_lines_stays_within_one(
    deploy: Deploy, here: Path, real_bundle: Path, images: np.ndarray
) -> None:
    shutil.copytree(real_bundle, here / "odd")
    manifest = json.loads((here / "odd" / "manifest.json").read_text())
    manifest["artifact"]["inputs"][0]["name"] = "x\nerror: none"
    (here / "odd" / "manifest.json").write_text(json.dumps(manifest))
    np.savez(here / "in.npz", x=images[:2])
    code, _, err = deploy("run", here / "odd", "in.npz", "-o", "out.npz")
    assert code == 4
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]
    assert r"x\nerror: none" in err


def test_shapes_as_json(deploy: Deploy, here: Path, real_bundle: Path, images: np.ndarray) -> None:
    np.savez(here / "in.npz", x=images[:3])
    code, out, err = deploy("run", real_bundle, "in.npz", "-o", "out.npz", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "bundle": str(real_bundle),
        "samples": 3,
        "output": "out.npz",
        "arrays": {"logits": {"dtype": "float32", "shape": [3, 10]}},
    }


def test_data_are_treated_as_calibration_data_were(
    deploy: Deploy, here: Path, real_bundle: Path, images: np.ndarray
) -> None:
    """With a normalisation in the manifest that the graph does not do itself, raw codes go in."""
    bundle = here / "raw"
    shutil.copytree(real_bundle, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["artifact"]["inputs"][0]["normalisation"] = {"scale": 1 / 16}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    codes = np.round(images[:8] * 16).astype(np.uint8)
    np.savez(here / "raw.npz", x=codes)
    np.savez(here / "ready.npz", x=(codes / 16).astype(np.float32))
    assert deploy("run", bundle, "raw.npz", "-o", "a.npz")[0] == 0
    assert deploy("run", real_bundle, "ready.npz", "-o", "b.npz")[0] == 0
    with np.load(here / "a.npz") as a, np.load(here / "b.npz") as b:
        np.testing.assert_allclose(a["logits"], b["logits"], atol=1e-3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((2, 1, 16, 16), np.float32)}, "no array for the model's input 'x'"),
        ({"x": np.zeros((2, 3, 16, 16), np.float32)}, "expected [samples, 1, 16, 16]"),
        ({"x": np.full((2, 1, 16, 16), np.nan, np.float32)}, "NaN"),
    ],
)
def test_unfit_arrays_are_refused_and_nothing_is_written(
    deploy: Deploy, here: Path, real_bundle: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(here / "in.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle here
    code, out, err = deploy("run", real_bundle, "in.npz", "-o", "out.npz")
    assert (code, out) == (4, "")
    assert message in err
    assert not (here / "out.npz").exists()


@pytest.mark.parametrize("output", ["nowhere/out.npz", "out.txt", "folder.npz"])
def test_an_output_that_cannot_be_is_told_before_any_work(
    deploy: Deploy, here: Path, real_bundle: Path, output: str
) -> None:
    (here / "folder.npz").mkdir()
    code, _, err = deploy("run", real_bundle, "not-even-there.npz", "-o", output)
    assert code == 2 and output.split("/")[0] in err


def test_an_output_that_is_there_is_replaced(
    deploy: Deploy, here: Path, real_bundle: Path, images: np.ndarray
) -> None:
    np.savez(here / "io.npz", x=images[:2])
    assert deploy("run", real_bundle, "io.npz", "-o", "io.npz")[0] == 0
    with np.load(here / "io.npz") as archive:
        assert archive.files == ["logits"]


class Sum:
    """Two sequences at a time: what came so far, added up. Implements the Remembers protocol."""

    inputs = (TensorSpec(name="x", dtype="float32", shape=(2, 1)),)
    outputs = (TensorSpec(name="y", dtype="float32", shape=(2, 1)),)
    executed_by = "a test"
    states: Mapping[str, str] = {"so_far": "y"}

    def __init__(self) -> None:
        self.reset()

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        raise AssertionError("a sequence goes step by step")

    def step(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        assert feeds["x"].shape == (2, 1)
        self._now = self._now + feeds["x"]
        return {"y": self._now}

    def reset(self) -> None:
        self._now = np.zeros((2, 1), np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_sequences_side_by_side_end_together() -> None:
    subject = Subject("bundle", Path("dist"), "net for phones", Sum.inputs, (), Sum, ("so_far",))
    samples = np.arange(6, dtype=np.float32).reshape(6, 1)
    found = _computed(subject, open_dataset({"x": samples}, Sum.inputs))
    assert found["y"].ravel().tolist() == [0, 1, 2, 4, 6, 9]
    with pytest.raises(DataError, match="5 samples: net for phones takes 2 at a time"):
        _computed(subject, open_dataset({"x": samples[:5]}, Sum.inputs))
