"""Reads images: a folder of one folder per class, a flat one without labels, or single files.

Classes are the folders' names, sorted, or in the order of the lines of ``labels.txt`` beside them. An image
is turned upright (EXIF), made RGB or BGR (grey for inputs of one channel), scaled so that it just covers the
input's height and width, and cropped around its centre. Of an animation the first frame is taken. It stays
uint8: normalisation comes after.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.data.source import Column, nearest
from deploy.errors import DataError, missing_extra
from deploy.spec.tensors import Colours, TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
CLASS_LIST = "labels.txt"
AUDIO = frozenset({".wav", ".flac", ".mp3", ".ogg", ".m4a"})
AUDIO_HINT = (
    "sound becomes the model's input by your own code: --data python:module:function, "
    "which yields (input, label) for each file"
)
_PIXEL_LIMIT = 64_000_000
"""Larger images are refused before a pixel is decoded: a few bytes can claim to be gigapixels."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files in order, each with its class number where there are classes."""

    origin: str
    files: tuple[Path, ...]
    classes: np.ndarray | None
    size: tuple[int, int]
    channels: int
    channels_last: bool
    image_name: str
    label_name: str
    colours: Colours = "RGB"

    @property
    def columns(self) -> Mapping[str, Column]:
        count, size = len(self.files), self.size
        shape = (*size, self.channels) if self.channels_last else (self.channels, *size)
        columns = {self.image_name: Column(np.dtype(np.uint8), (count, *shape))}
        if self.classes is not None:
            columns[self.label_name] = Column(np.dtype(np.int64), (count,))
        return columns

    def rows(self, names: Sequence[str], selected: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(selected), size):
            index = selected[start : start + size]
            block: dict[str, np.ndarray] = {}
            if self.image_name in names:
                block[self.image_name] = np.stack([self._pixels(self.files[i]) for i in index])
            if self.classes is not None and self.label_name in names:
                block[self.label_name] = self.classes[index]
            yield block

    def digest(self, names: Sequence[str]) -> str:
        order = "" if self.colours == "RGB" else f":{self.colours}"
        form = f"{self.size}:{self.channels}:{self.channels_last}:{names}{order}"
        hasher = hashlib.sha256(form.encode())
        for i, path in enumerate(self.files):
            label = -1 if self.classes is None else int(self.classes[i])
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            hasher.update(f"{label}:{content};".encode())
        return hasher.hexdigest()

    def _pixels(self, path: Path) -> np.ndarray:
        """uint8, (height, width, channels) or (channels, height, width)."""
        image = _decode(path, "L" if self.channels == 1 else "RGB")
        pixels = np.asarray(_covering(image, *self.size)).reshape(*self.size, self.channels)
        pixels = pixels[..., ::-1] if self.colours == "BGR" else pixels
        return pixels if self.channels_last else pixels.transpose(2, 0, 1)


def open_images(folder: Path, spec: TensorSpec, labels: str) -> ImageFiles:
    """List the images under ``folder`` for the input ``spec``; none is decoded yet.

    Raises DataError where there are no images or the input does not take images of a fixed size,
    ToolchainError where Pillow is missing.
    """
    _require_pillow()
    files, classes = _listed(folder)
    if not files:
        audio = sum(p.suffix.lower() in AUDIO for p in folder.rglob("*"))
        raise DataError(
            f"{folder}: no images found",
            hint=AUDIO_HINT
            if audio
            else f"expected {folder}/<class>/<image> or {folder}/<image>; "
            f"known endings: {', '.join(sorted(SUFFIXES))}",
        )
    size, channels, channels_last = _image_shape(str(folder), spec)
    return ImageFiles(
        str(folder), files, classes, size, channels, channels_last, spec.name, labels, spec.colours
    )


def open_image_files(paths: Sequence[Path], spec: TensorSpec) -> ImageFiles:
    """Single images, and those of flat folders, in this order and without labels, for the input ``spec``.

    Raises DataError for what is not there, for a folder of class folders, and as `open_images` does.
    """
    _require_pillow()
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found, classes = _listed(path)
            if classes is not None:
                raise DataError(
                    f"{path}: holds folders of classes, not images",
                    hint="give it as data, in place of an .npz file; or name one of the folders",
                )
            if not found:
                raise DataError(f"{path}: no images found", hint=f"endings: {', '.join(sorted(SUFFIXES))}")
            files += found
        elif not path.is_file():
            raise DataError(
                f"{path}: {'not a file' if path.exists() else 'no such file'}", hint="check the path"
            )
        else:
            files.append(path)
    origin = str(paths[0]) if len(paths) == 1 else f"{len(files)} images"
    size, channels, channels_last = _image_shape(origin, spec)
    return ImageFiles(origin, tuple(files), None, size, channels, channels_last, spec.name, "", spec.colours)


def image_inputs(inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Those that look like images: rank 4 with 1 or 3 channels."""
    return [s for s in inputs if len(s.shape) == 4 and (s.shape[1] in (1, 3) or s.shape[3] in (1, 3))]


def frames(path: Path) -> int:
    """Number of frames or pages; 1 for what is no image too, since reading it says more."""
    from PIL import Image

    try:
        with _opened(path) as opened:
            return int(getattr(opened, "n_frames", 1))
    except (OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError):
        return 1


def class_names(folder: Path) -> tuple[str, ...]:
    """The classes of a folder of class folders, in the order of their numbers; none for a flat one."""
    folders = _class_folders(folder)
    return tuple(_class_names(folder, folders)) if folders else ()


def read_classes(path: Path) -> tuple[str, ...]:
    """One name a line, in the order of the class numbers. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: is not UTF-8 text", hint="write one class name per line") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror}", hint="one class name per line") from e
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise DataError(f"{path}: names no classes", hint="write one class name per line")
    return names


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError as e:
        raise missing_extra("Pillow", "images") from e


def _class_folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _listed(folder: Path) -> tuple[tuple[Path, ...], np.ndarray | None]:
    """The image files in order and their class numbers, which are missing for a flat folder."""
    flat = _images_in(folder)
    folders = _class_folders(folder)
    if not folders:
        return tuple(flat), None
    if flat:
        raise DataError(
            f"{folder}: images stand beside the class folders ({flat[0].name})",
            hint="move them into the folder of their class, or keep one flat folder without labels",
        )
    names = _class_names(folder, folders)
    found = [(path, number) for number, name in enumerate(names) for path in _images_in(folder / name)]
    return tuple(path for path, _ in found), np.array([number for _, number in found], dtype=np.int64)


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _class_names(folder: Path, folders: list[str]) -> list[str]:
    """Class names in the order of their numbers; a class of ``labels.txt`` may have no folder."""
    path = folder / CLASS_LIST
    if not path.exists():
        return folders
    names = list(read_classes(path))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: class '{twice}' stands there twice", hint="name each class once")
    for name in folders:
        if name not in names:
            raise DataError(
                f"{folder}: folder '{name}' is not a class named in {CLASS_LIST}",
                hint=f"{nearest(name, names)}add a line for it, or remove the folder",
            )
    return names


def _image_shape(origin: str, spec: TensorSpec) -> tuple[tuple[int, int], int, bool]:
    """(height, width), channels, and whether these come last. Raises DataError."""
    shape = spec.shape
    if len(shape) != 4:
        raise DataError(
            f"{origin}: images were given, but the model's input is {spec}",
            hint="images need an input of shape [samples, channels, height, width] or channels last; "
            "save other data as an .npz file",
        )
    channels_last = spec.layout == "NHWC" or (
        spec.layout == "any" and shape[1] not in (1, 3) and shape[3] in (1, 3)
    )
    height, width, channels = shape[1:] if channels_last else (*shape[2:], shape[1])
    if channels not in (1, 3):
        raise DataError(
            f"{origin}: images have 1 or 3 channels, but the model's input is {spec}",
            hint=f"set [input.{spec.name}] layout to NCHW or NHWC, or save the data as an .npz file",
        )
    if not isinstance(height, int) or not isinstance(width, int):
        free = ",".join(str(s) if isinstance(s, int) else "224" for s in (1, *shape[1:]))
        raise DataError(
            f"{origin}: the model's input {spec} leaves height or width free",
            hint=f"fix the size of the images when building, for example --shape {spec.name}={free}",
        )
    if height * width > _PIXEL_LIMIT:
        raise DataError(
            f"{origin}: the model's input {spec} takes more than {_PIXEL_LIMIT} pixels",
            hint="no image that is read is so large: build it for a smaller one (--shape)",
        )
    return (height, width), int(channels), channels_last


def _opened(path: Path) -> Image:
    """Only the header is read."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        return Image.open(path)


def _decode(path: Path, mode: str) -> Image:
    """The image, upright. Raises DataError where it is too large or cannot be read."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with _opened(path) as opened:
            if opened.width * opened.height > _PIXEL_LIMIT:
                raise _too_large(path, f"{opened.width} x {opened.height} pixels")
            if opened.mode.startswith(("I", "F")):
                raise DataError(
                    f"{path}: has more than 8 bits per channel (mode {opened.mode})",
                    hint="convert it to 8 bits, or save the data as an .npz file in their own scale",
                )
            if "transparency" in opened.info:  # Pillow warns where it is dropped in one step
                return ImageOps.exif_transpose(opened).convert("RGBA").convert(mode)
            return ImageOps.exif_transpose(opened).convert(mode)
    except Image.DecompressionBombError as e:
        raise _too_large(path, "hundreds of millions of pixels") from e
    except UnidentifiedImageError as e:
        raise DataError(
            f"{path}: cannot be read as an image: its format is not known", hint=_what_it_is(path)
        ) from e
    except DataError:
        raise
    except Exception as e:  # Pillow's many decoders raise many things on a damaged file
        raise DataError(
            f"{path}: cannot be read as an image: {e}", hint="the file is damaged or no image; remove it"
        ) from e


def _what_it_is(path: Path) -> str:
    """What to do about a file that Pillow does not know, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(1024)
    if b"<svg" in start:
        return "it is an SVG, a drawing without pixels: export it as PNG"
    if start[4:8] == b"ftyp":
        return "it is HEIC, AVIF or a video: convert it to JPEG or PNG"
    if start.startswith(b"%PDF"):
        return "it is a PDF: export the page as PNG"
    return "the file is empty" if not start else "the file is damaged or no image; remove it"


def _covering(image: Image, height: int, width: int) -> Image:
    """Scaled by the smallest factor that covers height x width, then cropped around the centre."""
    from PIL import Image

    if (image.height, image.width) == (height, width):
        return image
    factor = max(height / image.height, width / image.width)
    kept_width, kept_height = width / factor, height / factor
    left, top = (image.width - kept_width) / 2, (image.height - kept_height) / 2
    # Cropping within the scaling keeps a long strip from becoming an enormous image in between.
    box = (left, top, left + kept_width, top + kept_height)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def _too_large(path: Path, size: str) -> DataError:
    return DataError(
        f"{path}: image of {size}, at most {_PIXEL_LIMIT} are read", hint="scale the image down, or remove it"
    )
