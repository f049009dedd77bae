"""Folders of images against Pillow's own operations, and images that must be refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.data.dataset import Batch, open_dataset, open_pictures
from deploy.data.images import class_names, frames, image_inputs, open_image_files, read_classes
from deploy.errors import DataError, ToolchainError
from deploy.spec.tensors import Normalisation, TensorSpec

RNG = np.random.default_rng(4)
X = TensorSpec(name="x", dtype="float32", shape=("n", 3, 8, 8), layout="NCHW")
LAST = TensorSpec(name="x", dtype="float32", shape=("n", 8, 8, 3), layout="NHWC")


def pixels(height: int = 8, width: int = 8) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def read(folder: Path, spec: TensorSpec = X, **settings: object) -> Batch:
    batches = list(open_dataset(folder, [spec], **settings).batches(100))  # type: ignore[arg-type]
    assert len(batches) == 1
    return batches[0]


def problem(folder: Path, spec: TensorSpec = X) -> DataError:
    with pytest.raises(DataError) as caught:
        read(folder, spec)
    assert caught.value.hint
    return caught.value


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """dog: a.png, B.PNG; cat: c.png; and things that are no images."""
    save(tmp_path / "dog" / "a.png", np.full((8, 8, 3), 10, np.uint8))
    save(tmp_path / "dog" / "B.PNG", np.full((8, 8, 3), 20, np.uint8))
    save(tmp_path / "cat" / "c.png", np.full((8, 8, 3), 30, np.uint8))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


@pytest.mark.parametrize("spec", [X, LAST])
def test_colours_in_the_order_of_the_model(tmp_path: Path, spec: TensorSpec) -> None:
    array = save(tmp_path / "a.png", pixels())
    turned = read(tmp_path, spec.model_copy(update={"colours": "BGR"})).feeds["x"][0]
    axis = 0 if spec is X else -1
    np.testing.assert_array_equal(np.moveaxis(turned, axis, -1), array[..., ::-1])
    digests = {
        open_dataset(tmp_path, [spec.model_copy(update={"colours": order})]).digest
        for order in ("RGB", "BGR")
    }
    assert len(digests) == 2, "other data"


def test_classes_are_the_sorted_folders(zoo: Path) -> None:
    batch = read(zoo)
    assert batch.feeds["x"].dtype == np.float32
    assert batch.feeds["x"][:, 0, 0, 0].tolist() == [30, 20, 10]
    assert batch.targets[""].tolist() == [0, 1, 1]


def test_or_stand_in_a_list(zoo: Path) -> None:
    (zoo / "labels.txt").write_text("dog\nfish\n\ncat\n")
    batch = read(zoo)
    assert batch.feeds["x"][:, 0, 0, 0].tolist() == [20, 10, 30]
    assert batch.targets[""].tolist() == [0, 0, 2]
    (zoo / "labels.txt").write_text("dog\ncats\n")
    assert "folder 'cat' is not a class named in labels.txt" in problem(zoo).message
    (zoo / "labels.txt").write_text("dog\ncat\ndog\n")
    assert "class 'dog' stands there twice" in problem(zoo).message


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    first, second = save(tmp_path / "1.png", pixels()), save(tmp_path / "2.bmp", pixels())
    for spec, order in ((X, (0, 3, 1, 2)), (LAST, (0, 1, 2, 3))):
        dataset = open_dataset(tmp_path, [spec])
        assert not dataset.labelled
        assert len(dataset) == 2
        batch = next(dataset.batches(2))
        np.testing.assert_array_equal(batch.feeds["x"], np.stack([first, second]).transpose(order))


def test_pixels_go_unchanged_to_a_model_that_takes_them(tmp_path: Path) -> None:
    array = save(tmp_path / "1.png", pixels())
    spec = LAST.model_copy(update={"dtype": "uint8", "layout": "any"})
    np.testing.assert_array_equal(read(tmp_path, spec).feeds["x"][0], array)


def test_normalisation_is_applied_once(tmp_path: Path) -> None:
    array = save(tmp_path / "1.png", pixels())
    how = Normalisation(scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    got = read(tmp_path, normalisation={"x": how}).feeds["x"][0]
    want = (array / 255 - (0.1, 0.2, 0.3)) / (0.5, 0.6, 0.7)
    np.testing.assert_allclose(got, want.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (16, 40), (40, 16), (5, 8), (4, 4), (3, 500)])
def test_scaled_to_cover_and_cropped_at_the_centre(tmp_path: Path, size: tuple[int, int]) -> None:
    """A smooth image, whose scaled values can be told from the coordinates."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    ramp = np.stack([255 * x / width, 255 * y / height, np.full_like(x, 7.0)], axis=2)
    save(tmp_path / "1.png", ramp.round().astype(np.uint8))
    got = read(tmp_path).feeds["x"][0]
    side = min(height, width)
    along = (np.arange(8) + 0.5) / 8 - 0.5
    inner = slice(2, -2)  # at the border a scaling filter sees fewer pixels
    np.testing.assert_allclose(
        got[0][:, inner], np.tile(255 * (0.5 + along * side / width), (8, 1))[:, inner], atol=2
    )
    np.testing.assert_allclose(
        got[1][inner], np.tile(255 * (0.5 + along * side / height), (8, 1)).T[inner], atol=2
    )
    np.testing.assert_array_equal(got[2], 7)


def test_turned_upright(tmp_path: Path) -> None:
    array = pixels()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    Image.fromarray(array).save(tmp_path / "1.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path, LAST).feeds["x"][0], np.rot90(array, -1))


def test_other_colours_become_rgb_or_grey(tmp_path: Path) -> None:
    grey = pixels()[:, :, 0]
    save(tmp_path / "1.png", grey)
    np.testing.assert_array_equal(read(tmp_path).feeds["x"][0], np.stack([grey] * 3))
    one = X.model_copy(update={"shape": (1, 1, 8, 8)})
    np.testing.assert_array_equal(read(tmp_path, one).feeds["x"][0, 0], grey)
    palette = Image.fromarray(pixels()).quantize(8)
    palette.save(tmp_path / "1.png", transparency=bytes([0, 128]))
    np.testing.assert_array_equal(read(tmp_path, LAST).feeds["x"][0], np.asarray(palette.convert("RGB")))


def test_views_decode_only_their_own_images(zoo: Path) -> None:
    (zoo / "dog" / "a.png").write_bytes(b"damaged")
    view = open_dataset(zoo, [X]).select(np.arange(2))
    assert [b.targets[""].tolist() for b in view.batches(1)] == [[0], [1]]


def test_the_digest_follows_pixels_classes_and_size(zoo: Path) -> None:
    digests = [open_dataset(zoo, [X]).digest]
    assert open_dataset(zoo, [X]).digest == digests[0]
    digests.append(open_dataset(zoo, [X.model_copy(update={"shape": (1, 3, 4, 4)})]).digest)
    (zoo / "labels.txt").write_text("dog\ncat\n")
    digests.append(open_dataset(zoo, [X]).digest)
    save(zoo / "dog" / "a.png", pixels())
    digests.append(open_dataset(zoo, [X]).digest)
    assert len(set(digests)) == 4


def test_no_images(tmp_path: Path) -> None:
    assert "no images found" in problem(tmp_path).message
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "readme.txt").write_text("")
    assert "no images found" in problem(tmp_path).message


def test_images_beside_class_folders(zoo: Path) -> None:
    save(zoo / "lost.png", pixels())
    assert "images stand beside the class folders (lost.png)" in problem(zoo).message


def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    path.write_text("this is text")
    assert f"{path}: cannot be read as an image" in problem(tmp_path).message
    save(path, pixels(64, 64))
    path.write_bytes(path.read_bytes()[:700])
    assert f"{path}: cannot be read as an image" in problem(tmp_path).message
    path.write_bytes(b"")
    assert f"{path}: cannot be read as an image" in problem(tmp_path).message


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    (tmp_path / "1.png").write_bytes(start + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""))
    assert "at most 64000000 are read" in problem(tmp_path).message
    assert frames(tmp_path / "1.png") == 1


def test_deep_images_would_lose_their_scale(tmp_path: Path) -> None:
    save(tmp_path / "1.png", np.full((8, 8), 40_000, np.uint16))
    assert "more than 8 bits per channel" in problem(tmp_path).message


@pytest.mark.parametrize(
    ("shape", "layout", "text"),
    [
        ((1, 10), "any", "images were given, but the model's input is x: float32[1, 10]"),
        ((1, 4, 8, 8), "NCHW", "images have 1 or 3 channels"),
        ((1, 8, 8, 3), "NCHW", "images have 1 or 3 channels"),
        ((1, 3, "h", "w"), "NCHW", "leaves height or width free"),
        ((1, 2**20, 2**20, 3), "NHWC", "takes more than 64000000 pixels"),
    ],
)
def test_inputs_that_take_no_images(zoo: Path, shape: tuple[int | str, ...], layout: str, text: str) -> None:
    spec = TensorSpec.model_validate({"name": "x", "dtype": "float32", "shape": shape, "layout": layout})
    assert text in problem(zoo, spec).message


def test_a_model_with_two_inputs_and_a_missing_pillow(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="the model has 2"):
        open_dataset(zoo, [X, X.model_copy(update={"name": "z"})])
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ToolchainError, match="Pillow is not installed") as caught:
        open_dataset(zoo, [X])
    assert "deploy-compiler[images]" in caught.value.hint


# -------------------------------------------------------------------------------------------- single images


def test_single_images_and_flat_folders_come_in_the_order_given(tmp_path: Path) -> None:
    wanted = [save(tmp_path / name, pixels()) for name in ("z.png", "f/b.png", "f/c.png")]
    source = open_image_files([tmp_path / "z.png", tmp_path / "f"], X)
    assert [path.name for path in source.files] == ["z.png", "b.png", "c.png"]
    dataset = open_pictures({"x": [tmp_path / "z.png", tmp_path / "f"]}, [X])
    (batch,) = dataset.batches(8)
    np.testing.assert_array_equal(batch.feeds["x"], np.stack(wanted).transpose(0, 3, 1, 2))
    assert dataset.sample_names() == [str(tmp_path / name) for name in ("z.png", "f/b.png", "f/c.png")]


def test_a_single_image_is_read_as_calibration_data_are(tmp_path: Path) -> None:
    save(tmp_path / "f" / "a.png", pixels(31, 17))
    (one,) = open_pictures({"x": [tmp_path / "f" / "a.png"]}, [X]).batches(1)
    np.testing.assert_array_equal(one.feeds["x"], read(tmp_path / "f").feeds["x"])


def test_an_image_and_a_vector_belong_together(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", pixels())
    vector = TensorSpec(name="v", dtype="float32", shape=("n", 2))
    np.savez(tmp_path / "v.npz", v=np.array([[1, 2]], np.float32))
    (batch,) = open_pictures({"x": [tmp_path / "a.png"]}, [vector, X], tmp_path / "v.npz").batches(4)
    np.testing.assert_array_equal(batch.feeds["x"][0], image.transpose(2, 0, 1))
    np.testing.assert_array_equal(batch.feeds["v"], [[1, 2]])
    with pytest.raises(DataError, match="no array for the model's input 'v'"):
        open_pictures({"x": [tmp_path / "a.png"]}, [vector, X])
    with pytest.raises(DataError, match="nothing is left to feed"):
        open_pictures({"x": [tmp_path / "a.png"]}, [X], tmp_path / "v.npz")
    with pytest.raises(DataError, match="has 2 samples, but 'v' has 1"):
        open_pictures({"x": [tmp_path / "a.png"] * 2}, [vector, X], tmp_path / "v.npz")
    np.savez(tmp_path / "both.npz", v=np.array([[1, 2]], np.float32), x=np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(DataError, match="holds 'x' as well"):
        open_pictures({"x": [tmp_path / "a.png"]}, [vector, X], tmp_path / "both.npz")


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    first, second = (Image.fromarray(pixels()) for _ in range(2))
    for name in ("a.gif", "a.webp", "a.png", "a.tiff"):
        path = tmp_path / name
        first.save(path, save_all=True, append_images=[second], lossless=name == "a.webp")
        assert frames(path) == 2
        (batch,) = open_pictures({"x": [path]}, [X]).batches(1)
        with Image.open(path) as opened:
            want = np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(batch.feeds["x"][0], want)
    first.save(tmp_path / "still.png")
    assert frames(tmp_path / "still.png") == 1
    (tmp_path / "no.png").write_text("no image")
    assert frames(tmp_path / "no.png") == 1


def test_colours_are_those_that_pillow_shows(tmp_path: Path) -> None:
    source = Image.fromarray(pixels())
    source.convert("CMYK").save(tmp_path / "cmyk.jpg")
    source.convert("P").save(tmp_path / "palette.png", transparency=0)
    source.convert("LA").save(tmp_path / "grey.png")
    Image.new("RGB", (1, 1), (200, 10, 0)).save(tmp_path / "one.png")
    for name in ("cmyk.jpg", "palette.png", "grey.png", "one.png"):
        (batch,) = open_pictures({"x": [tmp_path / name]}, [X]).batches(1)
        with Image.open(tmp_path / name) as opened:
            want = np.asarray(opened.convert("RGBA").convert("RGB").resize((8, 8), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(batch.feeds["x"][0], want.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("a.svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "export it as PNG"),
        ("a.heic", b"\0\0\0\x18ftypheic", "convert it to JPEG"),
        ("a.png", b"%PDF-1.7", "export the page"),
        ("a.png", b"", "empty"),
        ("a.png", b"hello", "no image"),
    ],
)
def test_what_is_no_image_is_told_what_to_become(
    tmp_path: Path, name: str, content: bytes, hint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as an image") as caught:
        list(open_pictures({"x": [tmp_path / name]}, [X]).batches(1))
    assert hint in caught.value.hint


def test_paths_that_are_no_image_files(tmp_path: Path, zoo: Path) -> None:
    for path, said in (
        (tmp_path / "no.png", "no such file"),
        (Path("/dev/null"), "not a file"),
        (zoo, "holds folders of classes"),
    ):
        with pytest.raises(DataError, match=said):
            open_image_files([path], X)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images found"):
        open_image_files([tmp_path / "empty"], X)
    (tmp_path / "empty" / "a.wav").write_bytes(b"RIFF")
    assert "python:module:function" in problem(tmp_path / "empty").hint


def test_which_inputs_look_like_images() -> None:
    vector = TensorSpec(name="v", dtype="float32", shape=("n", 2))
    deep = X.model_copy(update={"name": "deep", "shape": ("n", 64, 8, 8)})
    assert image_inputs([vector, X, deep, LAST]) == [X, LAST]


def test_names_of_classes_come_from_folders_or_a_list(zoo: Path, tmp_path: Path) -> None:
    assert class_names(zoo) == ("cat", "dog")
    (zoo / "labels.txt").write_text("unseen\ndog\ncat\n")
    assert class_names(zoo) == ("unseen", "dog", "cat")
    assert class_names(zoo / "cat") == ()
    for content, said in (
        (b"\n\n", "names no classes"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "cannot be read"),
    ):
        path = tmp_path / "list.txt"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=said):
            read_classes(path)
