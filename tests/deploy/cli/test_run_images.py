"""deploy run on pictures, on several inputs and on token ids, against ONNX Runtime fed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from deploy.pipeline import build
from deploy.spec.project import InputSection, IoSection
from deploy.spec.tensors import Normalisation

Deploy = Callable[..., tuple[int, str, str]]
Build = Callable[..., Path]
SCALED = Normalisation(scale=1 / 255, mean=(0.5,), std=(0.25,))
NAMES = ("cat", "dog", "frog", "hen")
TEXT = """g (int64[n, 6] ids, int32[n, 6] mask) => (float[n, 3] y) {
    e = Gather(table, ids)
    m = Cast<to = 1>(mask)
    u = Unsqueeze(m, last)
    w = Mul(e, u)
    s = ReduceMean<keepdims = 0>(w, second)
    h = MatMul(s, weight)
    y = LogSoftmax(h) }"""
PICTURE_AND_VECTOR = """g (float[n, 3, 8, 8] image, float[n, 2] vector) => (float[n, 5] y) {
    p = GlobalAveragePool(image)
    f = Flatten(p)
    c = Concat<axis = 1>(f, vector)
    y = Softmax(c) }"""


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


@pytest.fixture
def make(here: Path) -> Build:
    def run(path: Path, **settings: object) -> Path:
        out = here / path.stem
        made = build(path, target="x86-avx2", measure=False, precision="float", out=out, **settings)  # type: ignore[arg-type]  # each is what build takes
        return made.folder

    return run


@pytest.fixture
def picture(here: Path) -> np.ndarray:
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(here / "cat.png")
    return pixels


@pytest.fixture
def text_model(here: Path, save: Callable[..., Path]) -> Path:
    axes = {"last": np.array([-1]), "second": np.array([1])}
    return save(
        here / "text.onnx", TEXT, {"table": weights(50, 4), "weight": weights(4, 3), **axes}, opset=18
    )


@pytest.fixture
def two_inputs(here: Path, save: Callable[..., Path]) -> Path:
    return save(here / "two.onnx", PICTURE_AND_VECTOR, {})


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values.astype(np.float64))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("io", [IoSection(), IoSection(dtype="uint8", layout="NHWC")])
def test_a_picture_gives_classes_with_labels_and_probabilities(
    deploy: Deploy, make: Build, network: Path, picture: np.ndarray, io: IoSection
) -> None:
    bundle = make(network, io=io, classes=NAMES, inputs={"x": InputSection(normalisation=SCALED)})
    code, out, err = deploy("run", bundle, "--image", "cat.png", "--json", "--top", 3)
    assert (code, err) == (0, "")
    found = json.loads(out)
    x = ((picture / 255 - 0.5) / 0.25).transpose(2, 0, 1)[np.newaxis].astype(np.float32)
    (logits,) = onnxruntime.InferenceSession(network).run(None, {"x": x})
    chances = softmax(logits)[0]
    order = np.argsort(-chances)[:3]
    assert found["samples"] == 1 and found["output"] is None and found["scores"] == "y"
    (prediction,) = found["predictions"]
    assert prediction["sample"] == "cat.png"
    assert [guess["class"] for guess in prediction["top"]] == order.tolist()
    assert [guess["label"] for guess in prediction["top"]] == [NAMES[i] for i in order]
    np.testing.assert_allclose([g["probability"] for g in prediction["top"]], chances[order], rtol=1e-4)
    code, out, err = deploy("run", bundle, "--image", "cat.png")
    assert (code, err) == (0, "")
    assert out.startswith("cat.png\n")
    assert f"{NAMES[order[0]]}" in out and f"{100 * chances[order[0]]:.1f} %" in out


def test_pictures_of_a_folder_labels_from_a_file_and_outputs_kept(
    deploy: Deploy, make: Build, here: Path, network: Path, picture: np.ndarray
) -> None:
    bundle = make(network)
    (here / "many").mkdir()
    for i in range(5):
        Image.fromarray(np.roll(picture, i, axis=1)).save(here / "many" / f"{i}.png")
    (here / "names.txt").write_text("\n".join(NAMES))
    words = ("--classes", "names.txt", "-o", "out.npz")
    code, out, err = deploy("run", bundle, "--image", "many", *words)
    assert code == 0
    assert "knows no normalisation of 'x': pixels go in as 0 to 255" in err
    assert all(f"many/{i}.png" in out for i in range(5)) and any(name in out for name in NAMES)
    with np.load(here / "out.npz") as archive:
        assert archive["y"].shape == (5, 4)
    code, out, _ = deploy("run", bundle, "many", "--json")  # as data
    assert (code, len(json.loads(out)["predictions"])) == (0, 5)
    (here / "names.txt").write_text("a\nb\n")
    code, _, err = deploy("run", bundle, "--image", "many", *words)
    assert code == 4 and "2 class names were given, but output 'y' has 4 classes" in err


def test_an_animation_is_noted(
    deploy: Deploy, make: Build, here: Path, network: Path, picture: np.ndarray
) -> None:
    first, second = Image.fromarray(picture), Image.fromarray(255 - picture)
    first.save(here / "a.gif", save_all=True, append_images=[second])
    code, _, err = deploy("run", make(network), "--image", "a.gif")
    assert code == 0 and "a.gif: 2 frames or pages, the first one is taken" in err


def test_an_image_and_a_vector(
    deploy: Deploy, make: Build, here: Path, two_inputs: Path, picture: np.ndarray
) -> None:
    """Probabilities that the model gives are not put through a softmax again."""
    bundle = make(two_inputs, inputs={"image": InputSection(normalisation=SCALED)})
    x = ((picture / 255 - 0.5) / 0.25).transpose(2, 0, 1)[np.newaxis].astype(np.float32)
    feeds = {"image": x, "vector": np.array([[3, -1]], np.float32)}
    (want,) = onnxruntime.InferenceSession(two_inputs).run(None, feeds)
    np.savez(here / "vector.npz", vector=feeds["vector"])
    code, out, err = deploy("run", bundle, "vector.npz", "--image", "cat.png", "--json")
    assert (code, err) == (0, "")
    top = json.loads(out)["predictions"][0]["top"]
    got = {guess["class"]: guess["probability"] for guess in top}
    np.testing.assert_allclose([got[i] for i in range(5)], want[0], rtol=1e-4)
    code, _, err = deploy("run", bundle, "--image", "cat.png")
    assert code == 4 and "no array for the model's input 'vector'" in err


def test_text_as_ids_and_mask(deploy: Deploy, make: Build, here: Path, text_model: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50, (9, 6))
    mask = (np.arange(6) < np.arange(1, 10)[:, np.newaxis] % 7).astype(np.int32)
    np.savez(here / "calib.npz", ids=ids, mask=mask, y=np.zeros(9, np.int64))
    bundle = make(text_model, data=here / "calib.npz")
    np.savez(here / "in.npz", ids=ids.astype(np.int32), mask=mask.astype(np.int64))
    code, out, err = deploy("run", bundle, "in.npz", "--json", "-o", "out.npz")
    assert (code, err) == (0, "")
    (want,) = onnxruntime.InferenceSession(text_model).run(None, {"ids": ids, "mask": mask})
    with np.load(here / "out.npz") as archive:
        np.testing.assert_allclose(archive["y"], want, rtol=1e-4, atol=1e-5)
    code, out, err = deploy("run", bundle, "in.npz", "--json")
    chances = [p["top"][0]["probability"] for p in json.loads(out)["predictions"]]
    np.testing.assert_allclose(chances, np.exp(want).max(axis=1), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": np.full((2, 6), 50)}, "input 'ids' holds the id 50, but its table in the model has 50 rows"),
        ({"ids": np.full((2, 6), 1.5)}, "array 'ids' holds 1.5 in sample 0"),
        ({"mask": None}, "no array for the model's input 'mask'"),
        ({"types": np.zeros((2, 6), np.int64)}, "array 'types' is neither an input of the model"),
        ({"mask": np.full((2, 6), 2**40)}, "does not fit the input's type int32"),
    ],
)
def test_ids_that_do_not_fit(
    deploy: Deploy,
    make: Build,
    here: Path,
    text_model: Path,
    change: dict[str, np.ndarray | None],
    said: str,
) -> None:
    good = {"ids": np.zeros((2, 6), np.int64), "mask": np.ones((2, 6), np.int32)}
    bad = {name: array for name, array in {**good, **change}.items() if array is not None}
    np.savez(here / "bad.npz", **bad)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle here
    code, out, err = deploy("run", make(text_model), "bad.npz")
    assert (code, out) == (4, "")
    assert said in err
    code, _, err = deploy("build", text_model, "-t", "x86-avx2", "--data", "bad.npz", "--no-measure")
    assert code == 4 and said in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "nothing to feed"),
        (("--image", "nothing.png"), 4, "nothing.png: no such file"),
        (("--image", "photo=cat.png"), 2, "the model has no input 'photo'"),
        (("--image", "x=cat.png", "-o", "nowhere/a.npz"), 2, "no such folder"),
        (("cat.png",), 4, "takes it as --image cat.png"),
        (("a.wav",), 4, "python:module:function"),
        (("--image", "cat.png", "--classes", "none.txt"), 4, "none.txt: cannot be read"),
    ],
)
def test_what_cannot_be_is_said_in_one_message(
    deploy: Deploy, make: Build, here: Path, network: Path, picture: np.ndarray,
    words: tuple[str, ...], code: int, said: str,
) -> None:  # fmt: skip
    (here / "a.wav").write_bytes(b"RIFF")
    found, out, err = deploy("run", make(network), *words)
    assert (found, out) == (code, "")
    assert said in err and err.count("error:") == 1


def test_models_without_image_inputs_or_with_several(
    deploy: Deploy, make: Build, here: Path, text_model: Path, save: Callable[..., Path], picture: np.ndarray
) -> None:
    code, _, err = deploy("run", make(text_model), "--image", "cat.png")
    assert code == 4 and "no input of the model takes images" in err
    text = """g (float[n, 3, 8, 8] a, float[n, 3, 8, 8] b) => (float[n, 3, 8, 8] y) { y = Sub(a, b) }"""
    pair = make(save(here / "pair.onnx", text, {}))
    code, _, err = deploy("run", pair, "--image", "cat.png")
    assert code == 2 and "several image inputs: a, b" in err and "--image a=cat.png" in err
    code, out, _ = deploy("run", pair, "--image", "a=cat.png", "--image", "b=cat.png", "-o", "y.npz")
    assert code == 0 and "float32 [1, 3, 8, 8]" in out
    with np.load(here / "y.npz") as archive:
        assert not archive["y"].any()
