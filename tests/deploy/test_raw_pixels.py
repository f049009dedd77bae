"""Artifacts that take pixels, against ONNX Runtime on the model as given, fed by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from deploy.bundle.read import Bundle, open_bundle
from deploy.errors import DataError, UsageError
from deploy.pipeline import build
from deploy.spec.project import InputSection, IoSection, IoType
from deploy.spec.tensors import Normalisation

NUMBERS = Normalisation(scale=1 / 255, mean=(0.5, 0.4, 0.6), std=(0.25, 0.2, 0.3))
PIXELS = np.random.default_rng(7).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)


def wanted(network: Path, pixels: np.ndarray) -> np.ndarray:
    normalised = (pixels / 255 - np.asarray(NUMBERS.mean)) / np.asarray(NUMBERS.std)
    session = onnxruntime.InferenceSession(network)
    (found,) = session.run(None, {"x": normalised.transpose(0, 3, 1, 2).astype(np.float32)})
    return np.asarray(found)


@pytest.fixture
def make(network: Path, tmp_path: Path) -> Callable[..., Bundle]:
    def run(**settings: object) -> Bundle:
        return build(
            network,
            target="x86-avx2",
            measure=False,
            out=tmp_path / "dist",
            cache=tmp_path / "cache",
            inputs={"x": InputSection(normalisation=NUMBERS)},
            **settings,  # type: ignore[arg-type]  # each is what build takes
        )

    return run


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("precision", ["float", "int8"])
def test_the_artifact_computes_what_the_model_does(
    make: Callable[..., Bundle], network: Path, dtype: IoType, precision: str
) -> None:
    bundle = make(data={"x": PIXELS}, precision=precision, io=IoSection(dtype=dtype, layout="NHWC"))
    (spec,) = bundle.manifest.artifact.inputs
    assert (spec.dtype, spec.shape[1:], spec.layout) == (dtype, (8, 8, 3), "NHWC")
    assert spec.normalisation == NUMBERS.model_copy(update={"folded": True})
    fed = PIXELS if dtype == "uint8" else (PIXELS.astype(np.int16) - 128).astype(np.int8)
    with open_bundle(bundle.folder) as runner:
        got = runner.run({"x": fed})["y"]
    want = wanted(network, PIXELS)
    error = np.abs(got - want).max() / np.abs(want).max()
    assert error < (1e-5 if precision == "float" else 0.05)
    assert bundle.manifest.verification.passed


def test_an_image_folder_npz_of_bytes_and_npz_of_floats_are_the_same_data(
    make: Callable[..., Bundle], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(PIXELS):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    np.savez(tmp_path / "floats.npz", x=PIXELS.transpose(0, 3, 1, 2).astype(np.float32))
    np.savez(tmp_path / "bytes.npz", x=PIXELS)
    io = IoSection(dtype="uint8", layout="NHWC")
    plans = {
        make(data=source, io=io).manifest.plan_sha256
        for source in (folder, tmp_path / "floats.npz", tmp_path / "bytes.npz")
    }
    assert len(plans) == 1


def test_normalised_samples_for_a_model_that_normalises_are_refused(make: Callable[..., Bundle]) -> None:
    with pytest.raises(DataError, match="takes pixels, whole numbers"):
        make(data={"x": (PIXELS / 255).astype(np.float32)}, io=IoSection(dtype="uint8"))


def test_noise_for_pixels_is_pixels(make: Callable[..., Bundle]) -> None:
    bundle = make(random_calibration=True, io=IoSection(dtype="uint8"))
    with np.load(bundle.folder / "selftest.npz") as stored:
        assert stored["input/x"].dtype == np.uint8
        assert stored["input/x"].max() > 200


def test_another_form_is_another_cleaned_graph(make: Callable[..., Bundle]) -> None:
    types = [make(io=io).manifest.artifact.inputs[0].dtype for io in (IoSection(), IoSection(dtype="uint8"))]
    assert types == ["float32", "uint8"]


def test_a_board_takes_pixels_too(make: Callable[..., Bundle], network: Path, tmp_path: Path) -> None:
    bundle = build(
        network,
        target="jetson-orin-nano",
        data={"x": PIXELS},
        out=tmp_path / "dist",
        cache=tmp_path / "cache",
        io=IoSection(dtype="uint8", layout="NHWC"),
        inputs={"x": InputSection(normalisation=NUMBERS)},
    )
    with open_bundle(bundle.folder) as runner:
        got = runner.run({"x": PIXELS})["y"]
    want = wanted(network, PIXELS)
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


# -------------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("given", ["file", "names"])
def test_names_of_classes_are_carried(make: Callable[..., Bundle], tmp_path: Path, given: str) -> None:
    names = ("cat", "dog", "tree frog", "übel")
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n\n", encoding="utf-8")
    assert make(classes=names if given == "names" else tmp_path / "labels.txt").manifest.classes == names


def test_names_that_are_too_few_are_told_before_anything_is_built(make: Callable[..., Bundle]) -> None:
    with pytest.raises(DataError, match="3 class names, but the model's outputs are y: float32") as caught:
        make(classes=("a", "b", "c"))
    assert caught.value.hint


@pytest.mark.parametrize(("count", "carried"), [(4, ("c0", "c1", "c2", "c3")), (2, ())])
def test_class_folders_name_the_classes_if_there_are_as_many(
    make: Callable[..., Bundle], tmp_path: Path, count: int, carried: tuple[str, ...]
) -> None:
    for i in range(count):
        (tmp_path / "data" / f"c{i}").mkdir(parents=True)
        for j in range(2):
            Image.fromarray(PIXELS[2 * i + j]).save(tmp_path / "data" / f"c{i}" / f"{j}.png")
    assert make(data=tmp_path / "data", precision="float").manifest.classes == carried


def test_a_wish_that_fits_no_input_is_a_usage_error(tmp_path: Path, save: Callable[..., Path]) -> None:
    path = save(tmp_path / "m.onnx", "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }", {})
    with pytest.raises(UsageError, match="looks like an image"):
        build(path, target="x86-avx2", io=IoSection(dtype="uint8"), out=tmp_path, cache=tmp_path / "c")
